// Two results of the same cells: what is called a change, and what is not.
#include "harness/sweep/compare.h"

#include <fmt/core.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "harness/core/error.h"
#include "harness/core/random.h"
#include "harness/sweep/row.h"

using namespace subquad;

namespace {

// `cells` x `rounds` rows whose times vary by `noise`, the first `noisy` cells by ten times that;
// `factor` slows the first cell.
std::vector<RowFields> results(int cells, int rounds, Seed seed, double noise, double factor = 1,
                               int noisy = 0) {
  std::vector<RowFields> rows;
  Random random(seed, "compare");
  for (int cell = 0; cell < cells; ++cell)
    for (int round = 0; round < rounds; ++round) {
      const double time = 1e-3 * (cell + 1) * (cell == 0 ? factor : 1) *
                          std::exp((cell < noisy ? 10 : 1) * noise * random.normal());
      rows.push_back({{"cell_id", fmt::format("{:016x}", cell)},
                      {"round", std::to_string(round)},
                      {"status", "ok"},
                      {"method", "m"},
                      {"n", std::to_string(64 * (cell + 1))},
                      {"cpu", "a cpu"},
                      {"time_s", fmt::format("{}", time)},
                      {"peak_bytes", "1000000"},
                      {"rel_error", "0.01"},
                      {"calibration_before", "50"}});
    }
  return rows;
}

const CellChange& find(const Comparison& comparison, const std::string& cell,
                       const std::string& quantity) {
  for (const CellChange& c : comparison.changes)
    if (c.cell_id == cell && c.quantity == quantity) return c;
  throw std::runtime_error("no " + quantity + " of " + cell);
}

const std::string kFirst = "0000000000000000";
using Verdict = CellChange::Verdict;

}  // namespace

TEST_CASE("noise alone is no change, a hundred times", "[compare]") {
  std::size_t called = 0;
  for (Seed seed = 1; seed <= 100; ++seed) {
    const Comparison comparison =
        compare_results(results(40, 3, 2 * seed, 0.08), results(40, 3, 2 * seed + 1, 0.08));
    called += comparison.regressions() + comparison.improvements() > 0;
    CHECK(comparison.noise == Approx(0.08 * std::sqrt(2.0)).epsilon(0.4));
  }
  CHECK(called <= 12);  // 5 are promised; 12 or more have a probability below 0.5 %
}

TEST_CASE("noise alone is no change where few cells have most of it", "[compare]") {
  for (const int rounds : {2, 3, 5}) {
    std::size_t called = 0;
    for (Seed seed = 1; seed <= 200; ++seed) {
      const Comparison comparison = compare_results(results(40, rounds, 2 * seed, 0.02, 1, 4),
                                                    results(40, rounds, 2 * seed + 1, 0.02, 1, 4));
      called += comparison.regressions() + comparison.improvements() > 0;
    }
    CHECK(called <= 20);  // 10 are promised; more than 20 have a probability below 0.2 %
  }
}

TEST_CASE("an interval is that of Student's t", "[compare]") {
  // Two cells with ratios around 1 that differ by a known spread; share = 0.05 / 1 cell.
  const auto half = [](const std::vector<double>& log_ratios) {
    std::vector<RowFields> a = results(1, static_cast<int>(log_ratios.size()), 1, 0), b = a;
    for (std::size_t i = 0; i < b.size(); ++i)
      b[i]["time_s"] = fmt::format("{:.17g}", 1e-3 * std::exp(log_ratios[i]));
    const Comparison comparison = compare_results(a, b);
    return std::log(find(comparison, kFirst, "time_s").high) -
           std::log(find(comparison, kFirst, "time_s").ratio);
  };
  // 0.975 quantiles of 1, 2, 3, 4 and 9 degrees of freedom, from tables.
  CHECK(half({-1e-3, 1e-3}) == Approx(12.7062 * 1e-3).epsilon(1e-4));
  CHECK(half({-1e-3, 0, 1e-3}) == Approx(4.30265 * 1e-3 / std::sqrt(3.0)).epsilon(1e-4));
  CHECK(half({-1e-3, 1e-3, -1e-3, 1e-3}) == Approx(3.18245 * 1e-3 / std::sqrt(3.0)).epsilon(1e-4));
  CHECK(half({-1e-3, 1e-3, 0, -1e-3, 1e-3}) ==
        Approx(2.77645 * 1e-3 / std::sqrt(5.0)).epsilon(1e-4));
  CHECK(half({-1e-3, 1e-3, -1e-3, 1e-3, -1e-3, 1e-3, -1e-3, 1e-3, -1e-3, 1e-3}) ==
        Approx(2.26216 * 1e-3 / 3).epsilon(1e-4));
}

TEST_CASE("a cell that got slower is found, one that got faster too", "[compare]") {
  const auto a = results(40, 5, 1, 0.02), b = results(40, 5, 2, 0.02, 1.25);
  Comparison comparison = compare_results(a, b);
  CHECK(comparison.regressions() == 1);
  CHECK(comparison.improvements() == 0);
  const CellChange& slower = find(comparison, kFirst, "time_s");
  CHECK(slower.verdict == Verdict::regression);
  CHECK((slower.low < 1.25 && 1.25 < slower.high));
  CHECK((slower.low > 1.1 && slower.high < 1.4));
  CHECK(find(compare_results(b, a), kFirst, "time_s").verdict == Verdict::improvement);
  // Certain, but smaller than what counts.
  CHECK(compare_results(results(40, 5, 1, 0.001), results(40, 5, 2, 0.001, 1.02)).regressions() ==
        0);
  CompareOptions strict;
  strict.threshold = 0.01;
  CHECK(compare_results(results(40, 5, 1, 0.001), results(40, 5, 2, 0.001, 1.02), strict)
            .regressions() == 1);
}

TEST_CASE("failures, memory, error and accuracy are compared as well", "[compare]") {
  const auto a = results(3, 2, 1, 0.01);
  const auto changed = [&](const std::string& column, const std::string& value) {
    auto b = a;
    for (RowFields& row : b)
      if (row.at("cell_id") == kFirst) row[column] = value;
    return compare_results(a, b);
  };
  CHECK(changed("status", "crash").regressions() == 2);  // in each round
  CHECK(changed("status", "unstable").regressions() == 0);
  CHECK(changed("status", "unstable").left_out == 2);
  CHECK(changed("peak_bytes", "1200000").regressions() == 1);
  CHECK(changed("peak_bytes", "800000").improvements() == 1);
  CHECK(changed("peak_bytes", "1000100").regressions() == 0);
  CHECK(changed("rel_error", "0.02").regressions() == 1);
  CHECK(changed("rel_error", "0.0100001").regressions() == 0);
  CHECK(changed("rel_error", "nan").regressions() == 1);
  auto with_accuracy = a, worse = a;
  for (RowFields& row : with_accuracy) row["accuracy"] = "0.9";
  for (RowFields& row : worse) row["accuracy"] = "0.85";
  CHECK(compare_results(with_accuracy, worse).regressions() == 3);
  for (RowFields& row : worse) row["accuracy"] = row.at("round") == "0" ? "nan" : "0.9";
  CHECK(compare_results(with_accuracy, worse).regressions() == 3);
  CHECK(compare_results(worse, worse).regressions() == 0);
}

TEST_CASE("what has no counterpart is said", "[compare]") {
  const auto a = results(3, 2, 1, 0.01), b = results(2, 2, 1, 0.01);
  CHECK(compare_results(a, b).only_a == 1);
  CHECK(compare_results(b, a).only_b == 1);
  CHECK(compare_results(a, a).gone == 0);
  CHECK(compare_results(a, results(3, 1, 1, 0.01)).gone == 3);  // a round of each
  CHECK(compare_results(results(3, 1, 1, 0.01), a).gone == 0);
  CHECK_THROWS_AS(compare_results(a, {}), UserError);
  auto other = a;
  for (RowFields& row : other) row["cpu"] = "another cpu";
  CHECK_THROWS_AS(compare_results(a, other), UserError);
  CompareOptions mixed;
  mixed.mixed_hardware = true;
  CHECK(compare_results(a, other, mixed).cells == 3);
  CHECK_FALSE(compare_results(results(3, 1, 1, 0.01), results(3, 1, 2, 0.01)).warnings.empty());
}

TEST_CASE("values that are not measured are the same bit for bit, or listed", "[compare]") {
  const auto a = results(3, 2, 1, 0.01);
  auto b = results(3, 2, 2, 0.05);  // other times
  b[1]["status"] = "unstable";
  b[2]["flags"] = "steal";
  std::reverse(b.begin(), b.end());
  CHECK(different_values(a, b).empty());
  b[0]["rel_error"] = "0.010000001";
  REQUIRE(different_values(a, b).size() == 1);
  CHECK(different_values(a, b)[0].find("rel_error: 0.01 and 0.010000001") != std::string::npos);
  b.pop_back();
  CHECK(different_values(a, b).size() == 2);
  for (const char* column : {"rel_error", "accuracy", "loss", "cosine", "kl", "keys_per_query",
                             "state_bytes", "cell_id", "seed", "n", "recall_topk"})
    CHECK_FALSE(is_measured(column));
  for (const char* column : {"time_s", "wall_s", "host", "mhz", "vm_hwm_bytes", "token_p95_s"})
    CHECK(is_measured(column));
}
