#include "harness/sweep/plan.h"

#include <algorithm>
#include <map>

#include "harness/core/error.h"

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
  std::map<std::string, int> group;  // reference id -> number in order of appearance
  std::vector<Cell> selected;
  for (const Cell& cell : cells) {
    const int number =
        group.emplace(cell.reference_id(), static_cast<int>(group.size())).first->second;
    if (number % count == index) selected.push_back(cell);
  }
  return selected;
}

namespace {

// Six operations per parameter and token, and attention as if it were dense.
double estimated_training(const Cell& cell) {
  constexpr double kRate = 4e10;  // operations per second and thread: a guess, within a factor 3
  const auto count = [&](const char* key) {
    return static_cast<double>(std::get<Index>(cell.train.at(key)));
  };
  const Problem& p = cell.problem;
  const double d = count("d_model") > 0 ? count("d_model") : static_cast<double>(p.heads * p.d_v);
  const double mlp = std::get<double>(cell.train.at("mlp"));
  const double per_token =
      count("layers") * ((4 + 2 * mlp) * d * d + 2 * static_cast<double>(p.n) * d);
  return 6 * count("steps") * static_cast<double>(p.batch * p.n) * per_token / kRate / cell.threads;
}

}  // namespace

double estimated_seconds(const Cell& cell) {
  if (cell.pass == Pass::train && !cell.train.empty()) return estimated_training(cell);
  constexpr double kProcess =
      0.03;  // start, inputs, check and end of a worker, measured on small n
  return kProcess + cell.measure.warmup_s + cell.measure.repetitions * cell.measure.min_time_s;
}

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
