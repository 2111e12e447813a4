// Estimates of cells, and how they fall into shards.
#include "harness/sweep/estimate.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "harness/core/error.h"
#include "harness/sweep/plan.h"
#include "tests/fixtures/sweep_fixture.h"

using namespace subquad;
using fixture::make_cell;

namespace {

// Three methods on the same data, at `count` lengths that double: very unequal groups.
std::vector<Cell> unequal_cells(int count) {
  std::vector<Cell> cells;
  for (int i = 0; i < count; ++i)
    for (const char* method : {"dense", "linear", "sliding_window"}) {
      Cell cell = make_cell(method, Index{64} << i);
      cell.problem.d_k = cell.problem.d_v = 64;
      cell.problem.causal = true;
      cells.push_back(cell);
    }
  return cells;
}

}  // namespace

TEST_CASE("every cell is in one shard, and what is compared stays together", "[shard]") {
  const std::vector<Cell> cells = unequal_cells(8);
  for (const int count : {1, 2, 3, 5, 8, 20}) {
    const std::vector<int> shard = shard_of_cells(cells, count);
    CHECK(shard == shard_of_cells(cells, count));
    std::map<std::string, int> of_group;
    std::size_t selected = 0;
    for (int s = 0; s < count; ++s) selected += select_shard(cells, s, count).size();
    CHECK(selected == cells.size());
    for (std::size_t i = 0; i < cells.size(); ++i) {
      CHECK((shard[i] >= 0 && shard[i] < count));
      CHECK(of_group.emplace(cells[i].reference_id(), shard[i]).first->second == shard[i]);
    }
  }
}

TEST_CASE("shards are balanced by what their cells take", "[shard]") {
  const std::vector<Cell> cells = unequal_cells(9);
  std::map<std::string, double> groups;
  std::vector<double> load(3, 0);
  double total = 0;
  const std::vector<int> shard = shard_of_cells(cells, 3);
  for (std::size_t i = 0; i < cells.size(); ++i) {
    double seconds = estimated_seconds(cells[i]);
    if (groups.emplace(cells[i].reference_id(), 0).second) seconds += reference_seconds(cells[i]);
    groups[cells[i].reference_id()] += seconds;
    load[static_cast<std::size_t>(shard[i])] += seconds;
    total += seconds;
  }
  double largest = 0;
  for (const auto& [group, seconds] : groups) largest = std::max(largest, seconds);
  // The bound of longest-first: 4/3 of the best there can be.
  const double bound = 4.0 / 3 * std::max(total / 3, largest);
  CHECK(*std::max_element(load.begin(), load.end()) <= bound);
  CHECK(*std::min_element(load.begin(), load.end()) > 0);
}

TEST_CASE("a longer problem takes longer, and more threads take less", "[estimate]") {
  const Estimator estimator;
  Cell small = make_cell("dense", 512), large = make_cell("dense", 16384);
  for (Cell* cell : {&small, &large}) cell->problem.d_k = cell->problem.d_v = 64;
  CHECK(estimator.of(large).seconds > 2 * estimator.of(small).seconds);
  CHECK(estimator.of(large).bytes > estimator.of(small).bytes);
  Cell two = large;
  two.threads = 2;
  CHECK(estimator.of(two).seconds < estimator.of(large).seconds);
  CHECK(reference_seconds(large) > reference_seconds(small));
  // Options alone bound it from below.
  CHECK(estimator.of(make_cell("not_registered")).seconds >=
        small.measure.repetitions * small.measure.min_time_s);
}

TEST_CASE("earlier rows are better than a guess", "[estimate]") {
  Cell cell = make_cell("dense", 4096), other = make_cell("dense", 8192);
  for (Cell* c : {&cell, &other}) c->problem.d_k = c->problem.d_v = 64;
  const auto row = [&](const char* round, const char* status, const char* wall) {
    return RowFields{{"cell_id", cell.id()},  {"round", round},
                     {"status", status},      {"wall_s", wall},
                     {"vm_hwm_bytes", "5e8"}, {"method", "dense"},
                     {"pass", "forward"},     {"threads", "1"},
                     {"gflops", "0.5"},       {"method_params", to_string(cell.method_settings)}};
  };
  Estimator estimator;
  const Estimate guess = estimator.of(other);
  CHECK(guess.from == "analytic");
  estimator.learn({row("0", "ok", "7"), row("1", "ok", "8"), row("2", "unstable", "9"),
                   row("3", "interrupted", "0.01")});
  CHECK(estimator.of(cell).seconds == 8);
  CHECK(estimator.of(cell).bytes == 5e8);
  CHECK(estimator.of(cell).from == "measured");
  // Another length of the same method runs at the rate that was seen, far below the guess.
  CHECK(estimator.of(other).from == "rate");
  CHECK(estimator.of(other).seconds > 5 * guess.seconds);
}
