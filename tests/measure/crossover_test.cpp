#include "harness/measure/crossover.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "harness/core/error.h"
#include "harness/sweep/crossover_table.h"

using namespace subquad;

namespace {

LengthPairs length(double n, const std::vector<double>& ratios) {  // method / baseline per round
  LengthPairs out{.n = n, .rounds = {}};
  for (const double ratio : ratios) out.rounds.push_back({{ratio}, {1.0}});
  return out;
}

RowFields row(const std::string& method, int n, int round, double time_s, double peak_bytes) {
  return {{"cell_id", method + std::to_string(n)},
          {"round", std::to_string(round)},
          {"status", "ok"},
          {"method", method},
          {"label", method},
          {"method_params", method == "dense" ? "" : "eps=1e-6"},
          {"task", "gaussian"},
          {"task_params", "temperature=1"},
          {"pass", "forward"},
          {"causal", "0"},
          {"batch", "1"},
          {"heads", "1"},
          {"n", std::to_string(n)},
          {"n_kv", std::to_string(n)},
          {"d_k", "64"},
          {"d_v", "64"},
          {"scale", "0.125"},
          {"threads", "1"},
          {"seed", "1"},
          {"cpu", "test"},
          {"host", "here"},
          {"build_id", "b"},
          {"time_s", std::to_string(time_s)},
          {"peak_bytes", std::to_string(peak_bytes)}};
}

// dense takes n^2, linear 512 n: they meet at n = 512. Memory: n against 2000.
std::vector<RowFields> quadratic_against_linear() {
  std::vector<RowFields> rows;
  for (const int n : {128, 256, 1024, 4096})
    for (const int round : {0, 1, 2}) {
      const double drift = 1 + round;  // the machine slows down for both alike
      rows.push_back(row("dense", n, round, drift * n * n, n));
      rows.push_back(row("linear", n, round, drift * 512.0 * n, 2000));
    }
  return rows;
}

const CrossoverRow* find(const std::vector<CrossoverRow>& rows, const std::string& quantity,
                         const std::string& label) {
  for (const CrossoverRow& entry : rows)
    if (entry.identity.at("quantity") == quantity && entry.identity.at("label") == label)
      return &entry;
  return nullptr;
}

}  // namespace

TEST_CASE("a ratio of 4 at 256 and of 1/4 at 1024 crosses at 512") {
  const Crossover found = crossover_length({length(256, {4}), length(1024, {0.25})});
  REQUIRE(found.outcome == CrossoverOutcome::crossover);
  CHECK(found.n == Approx(512));
  CHECK_FALSE(found.interval.has_value());  // one round: nothing to resample
  CHECK(found.ratio_at_min_n == Approx(0.25));
  CHECK(found.ratio_at_max_n == Approx(4));
  CHECK(str(found) == "512");
}

TEST_CASE("interpolation is linear in the logarithms, not halfway") {
  // log2 ratio +1 at 256 and -3 at 4096: zero after one of the four octaves.
  const Crossover found = crossover_length({length(4096, {0.125}), length(256, {2})});
  REQUIRE(found.outcome == CrossoverOutcome::crossover);
  CHECK(found.n == Approx(512));
}

TEST_CASE("a method that wins everywhere has no crossover but is always better") {
  const Crossover found = crossover_length({length(256, {0.9, 0.8}), length(512, {0.5, 0.4})});
  CHECK(found.outcome == CrossoverOutcome::always);
  CHECK(found.share == 1);
  CHECK(str(found) == "always (from 256)");
}

TEST_CASE("a method that loses at the largest length has not reached its crossover") {
  const Crossover never = crossover_length({length(256, {3}), length(512, {2})});
  CHECK(never.outcome == CrossoverOutcome::not_reached);
  CHECK(str(never) == "not reached (up to 512)");
  const Crossover lost_again = crossover_length({length(256, {0.5}), length(512, {2})});
  CHECK(lost_again.outcome == CrossoverOutcome::not_reached);
  CHECK(crossover_length({length(256, {1})}).outcome == CrossoverOutcome::not_reached);
}

TEST_CASE("only the last change of sign counts") {
  const Crossover found = crossover_length(
      {length(128, {4}), length(256, {0.5}), length(512, {2}), length(2048, {0.5})});
  REQUIRE(found.outcome == CrossoverOutcome::crossover);
  CHECK(found.n == Approx(1024));
}

TEST_CASE("a tie counts as not yet won, and is the crossover when wins follow") {
  const Crossover found =
      crossover_length({length(256, {2}), length(512, {1}), length(1024, {0.5})});
  REQUIRE(found.outcome == CrossoverOutcome::crossover);
  CHECK(found.n == Approx(512));
}

TEST_CASE("the interval of two rounds has the crossovers of either round as its ends") {
  // Medians of two drawn rounds at 1024: log2 ratio -2 (1/4), -3 (1/2), -4 (1/4).
  const Crossover found = crossover_length({length(256, {4, 4}), length(1024, {0.25, 0.0625})});
  REQUIRE(found.outcome == CrossoverOutcome::crossover);
  CHECK(found.n == Approx(256 * std::pow(4, 2.0 / 5)));
  REQUIRE(found.interval.has_value());
  CHECK(found.interval->low == Approx(256 * std::pow(4, 1.0 / 3)));
  CHECK(found.interval->high == Approx(512));
  CHECK(found.share == 1);
  CHECK(str(found) == "446 [406, 512]");
}

TEST_CASE("samples within a single round give an interval as well") {
  LengthPairs last{.n = 1024, .rounds = {{{0.25, 0.0625}, {1.0, 1.0}}}};
  const Crossover found = crossover_length({length(256, {4}), last});
  REQUIRE(found.interval.has_value());
  CHECK(found.interval->low == Approx(256 * std::pow(4, 1.0 / 3)));
  CHECK(found.interval->high == Approx(512));
}

TEST_CASE("drift that hits both sides of a round leaves the interval without width") {
  std::vector<LengthPairs> lengths;
  for (const auto& [n, ratio] : {std::pair{256.0, 4.0}, std::pair{1024.0, 0.25}})
    lengths.push_back({n, {{{ratio}, {1}}, {{8 * ratio}, {8}}, {{64 * ratio}, {64}}}});
  const Crossover found = crossover_length(lengths);
  REQUIRE(found.interval.has_value());
  CHECK(found.interval->low == Approx(512));
  CHECK(found.interval->high == Approx(512));
}

TEST_CASE("an interval that leaves the measured lengths is open there") {
  // Median at 1024 is a tie; a quarter of the resamples wins and crosses at 512.
  const Crossover found = crossover_length({length(256, {4, 4}), length(1024, {0.25, 4})});
  CHECK(found.outcome == CrossoverOutcome::not_reached);
  REQUIRE(found.interval.has_value());
  CHECK(found.interval->low == Approx(512));
  CHECK(std::isinf(found.interval->high));
  CHECK(found.share == Approx(0.75).margin(0.05));
  CHECK(str(found) == "not reached (up to 1024) [512, >1024]");
}

TEST_CASE("the bootstrap is reproducible and depends on its seed only") {
  std::vector<LengthPairs> lengths{length(256, {3, 1.1, 2, 1.5}),
                                   length(1024, {0.7, 0.2, 0.9, 1.2})};
  const Crossover first = crossover_length(lengths);
  const Crossover second = crossover_length(lengths);
  REQUIRE(first.interval.has_value());
  CHECK(first.interval->low == second.interval->low);
  CHECK(first.interval->high == second.interval->high);
  CHECK(first.interval->low < first.n);
  CHECK(first.interval->high > first.n);
}

TEST_CASE("values that are not positive numbers are refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(crossover_length({length(256, {0})}), InternalError);
  CHECK_THROWS_AS(crossover_length({length(256, {nan})}), InternalError);
  CHECK_THROWS_AS(crossover_length({length(256, {1}), length(256, {2})}), InternalError);
  CHECK_THROWS_AS(crossover_length({}), InternalError);
  CHECK_THROWS_AS(crossover_length({{256, {}}}), InternalError);
}

TEST_CASE("crossover rows of quadratic time against linear time meet where they should") {
  const std::vector<CrossoverRow> rows = crossover_rows(quadratic_against_linear());
  REQUIRE(rows.size() == 2);
  const CrossoverRow* time = find(rows, "time", "linear");
  REQUIRE(time != nullptr);
  CHECK(time->crossover.n == Approx(512));
  CHECK(time->lengths == 4);
  CHECK(time->min_rounds == 3);
  CHECK(time->identity.at("baseline") == "dense");
  const CrossoverRow* memory = find(rows, "memory", "linear");
  REQUIRE(memory != nullptr);
  CHECK(memory->crossover.n == Approx(2000));
}

TEST_CASE("failed and unstable rows form no ratio unless unstable ones are asked for") {
  std::vector<RowFields> rows = quadratic_against_linear();
  for (RowFields& entry : rows)
    if (entry["method"] == "linear") {
      if (entry["n"] == "4096") entry["status"] = "timeout";
      if (entry["n"] == "1024") entry["status"] = "unstable";
    }
  const std::vector<CrossoverRow> strict = crossover_rows(rows);
  CHECK(find(strict, "time", "linear")->crossover.outcome == CrossoverOutcome::not_reached);
  CHECK(find(strict, "time", "linear")->crossover.max_n == 256);
  const std::vector<CrossoverRow> loose = crossover_rows(rows, {.include_unstable = true});
  CHECK(find(loose, "time", "linear")->crossover.n == Approx(512));
  CHECK(find(loose, "time", "linear")->crossover.max_n == 1024);
}

TEST_CASE("ratios are formed within one round, host and build only") {
  std::vector<RowFields> rows = quadratic_against_linear();
  for (RowFields& entry : rows) {
    if (entry["method"] != "linear") continue;
    if (entry["round"] == "2") entry["build_id"] = "another";
    if (entry["n"] == "4096") entry["host"] = "elsewhere";
  }
  const std::vector<CrossoverRow> found = crossover_rows(rows);
  REQUIRE(find(found, "time", "linear") != nullptr);
  CHECK(find(found, "time", "linear")->min_rounds == 2);
  CHECK(find(found, "time", "linear")->lengths == 3);
}

TEST_CASE("parameters split a curve only where they take several values at one length") {
  std::vector<RowFields> rows = quadratic_against_linear();
  std::vector<RowFields> more;
  for (RowFields& entry : rows) {
    entry["task_params"] = "needles=" + entry["n"] + ";temperature=1";  // grows along with n
    if (entry["method"] != "linear") continue;
    RowFields wide = entry;
    wide["method_params"] = "eps=1e-3";
    more.push_back(wide);
  }
  rows.insert(rows.end(), more.begin(), more.end());
  const std::vector<CrossoverRow> found = crossover_rows(rows);
  CHECK(found.size() == 4);
  REQUIRE(find(found, "time", "linear eps=1e-3") != nullptr);
  CHECK(find(found, "time", "linear eps=1e-3")->lengths == 4);
  CHECK(find(found, "time", "linear eps=1e-6")->identity.at("task_params") == "");
}

TEST_CASE("missing values, zero bytes and a missing baseline are survived") {
  std::vector<RowFields> rows = quadratic_against_linear();
  for (RowFields& entry : rows) {
    if (entry["method"] == "linear") entry["peak_bytes"] = "0";
    if (entry["n"] == "128") entry["time_s"] = "";
  }
  const std::vector<CrossoverRow> found = crossover_rows(rows);
  CHECK(find(found, "time", "linear")->crossover.min_n == 256);
  CHECK(find(found, "memory", "linear")->crossover.outcome == CrossoverOutcome::always);
  CHECK(crossover_rows(rows, {.baseline = "nobody"}).empty());
  CHECK(crossover_rows({}).empty());
}

TEST_CASE("crossover.csv has every documented column and quotes what needs it") {
  std::vector<RowFields> rows = quadratic_against_linear();
  for (RowFields& entry : rows) entry["cpu"] = "a \"fast\" one, really";
  const CrossoverOptions options;
  const std::string text = crossover_csv(crossover_rows(rows), options);
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  REQUIRE(lines.size() == 3);
  CHECK(lines[0].rfind("quantity,task,", 0) == 0);
  CHECK(lines[1] ==
        "time,gaussian,,forward,0,1,1,n,64,64,0.125,1,\"a \"\"fast\"\" one, really\",linear,linear,"
        "dense,crossover,512,512,512,0.95,1,4,3,128,4096,0.25,8,\"512 [512, 512]\"");
}
