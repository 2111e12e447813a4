#include "harness/sweep/plan.h"

#include <algorithm>
#include <map>

#include "harness/core/error.h"
#include "harness/sweep/estimate.h"

namespace subquad {

std::vector<Step> make_plan(std::size_t cells, int rounds, Seed seed) {
  std::vector<Step> plan;
  for (int round = 0; round < rounds; ++round) {
    std::vector<Step> steps;
    for (std::size_t i = 0; i < cells; ++i) steps.push_back({i, round});
    Random random(seed, "order of cells", {static_cast<std::uint64_t>(round)});
    random.shuffle(steps);
    plan.insert(plan.end(), steps.begin(), steps.end());
  }
  return plan;
}

std::vector<Cell> select_shard(const std::vector<Cell>& cells, int index, int count) {
  if (count < 1 || index < 0 || index >= count)
    throw UserError(
        fmt::format("--shard: got {}/{}, expected I/N with 0 <= I < N (shards are counted from 0)",
                    index, count));
  std::vector<Cell> selected;
  const std::vector<int> shard = shard_of_cells(cells, count);
  for (std::size_t i = 0; i < cells.size(); ++i)
    if (shard[i] == index) selected.push_back(cells[i]);
  return selected;
}

std::string comparison_group(const Cell& cell) {
  return cell.pass == Pass::train ? cell.id() : cell.reference_id();
}

std::vector<int> shard_of_cells(const std::vector<Cell>& cells, int count) {
  if (count == 1) return std::vector<int>(cells.size(), 0);
  struct Group {
    double seconds = 0;
    std::vector<std::size_t> cells;
  };
  std::vector<Group> groups;  // in order of appearance
  std::map<std::string, std::size_t> number;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const auto [found, fresh] = number.emplace(comparison_group(cells[i]), groups.size());
    if (fresh) groups.push_back({reference_seconds(cells[i]), {}});
    groups[found->second].seconds += estimated_seconds(cells[i]);
    groups[found->second].cells.push_back(i);
  }
  // Longest first, each to the shard that has least. A stable sort: the same everywhere.
  std::stable_sort(groups.begin(), groups.end(),
                   [](const Group& a, const Group& b) { return a.seconds > b.seconds; });
  std::vector<double> load(static_cast<std::size_t>(count), 0);
  std::vector<int> shard(cells.size(), 0);
  for (const Group& group : groups) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += group.seconds;
    for (const std::size_t i : group.cells) shard[i] = static_cast<int>(least - load.begin());
  }
  return shard;
}

double estimated_seconds(const Cell& cell) { return Estimator().of(cell).seconds; }

double reference_bytes(const Cell& cell) {
  const Problem& p = cell.problem;
  const double heads = static_cast<double>(p.batch * p.heads);
  const double flops = 2 * heads * p.visible_entries() * static_cast<double>(p.d_k + p.d_v);
  const Index rows = flops > 1e9 * cell.error.max_gflop ? std::min(p.n, cell.error.rows) : p.n;
  double numbers = static_cast<double>(rows) * static_cast<double>(p.d_v) +
                   static_cast<double>(cell.error.matrix_rows) * static_cast<double>(p.n_kv);
  if (cell.wants_gradients())
    numbers += static_cast<double>(p.n * p.d_k + p.n_kv * (p.d_k + p.d_v));
  return 8 * heads * numbers;
}

bool needs_reference(const Cell& cell) { return cell.pass != Pass::train && !cell.whole_model(); }

}  // namespace subquad
