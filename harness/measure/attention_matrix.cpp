#include "harness/measure/attention_matrix.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "harness/core/error.h"
#include "harness/core/random.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/reference.h"
#include "harness/measure/statistics.h"

namespace subquad {
namespace {

void put_columns(const Cell& cell, const MatrixSums& sums, CellReport& report) {
  const auto m = sums.metrics();
  if (!m) return;
  if (!m->negative) report.put("kl", m->kl);
  report.put("topk_mass", m->topk_mass);
  report.put("matrix_error", m->relative);
  report.put("row_tv", m->row_tv);
  report.put("recall_topk", m->recall);
  report.put("mass_recall", m->mass);
  report.put_count("matrix_rows", m->judged_rows);
  report.put_count("topk", std::min(cell.error.top_k, cell.problem.n_kv));
}

// Relative error of the output against rows of the shown matrix times v, all rows together. Room
// for rounding in float; what a mask that is off by one key changes shrinks with the number of
// keys.
constexpr double kOwnMatrix = 2e-3;

class OwnMatrix {
 public:
  // `weights` are the shown rows of head (b, h).
  void add(const Inputs& in, ConstTensorView out, Index b, Index h, std::span<const Index> rows,
           const Matrix& weights) {
    const MatrixD shown = weights.cast<double>() * in.v.head(b, h).cast<double>();
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const Eigen::RowVectorXd row = shown.row(static_cast<Index>(r));
      difference_ += (out.head(b, h).row(rows[r]).cast<double>() - row).squaredNorm();
      square_ += row.squaredNorm();
    }
  }
  void require() const {
    const double relative = std::sqrt(difference_ / std::max(square_, 1e-300));
    if (difference_ == 0 || relative <= kOwnMatrix) return;
    throw WrongResult(fmt::format(
        "the output differs from the product of the method's own attention matrix and v by {:.3g} "
        "(relative); {:.3g} is for rounding",
        relative, kOwnMatrix));
  }

 private:
  double difference_ = 0, square_ = 0;
};

void compare_attention_rows(const Cell& cell, bool linear_in_v, Method& method, PassRun& run,
                            CellReport& report) {
  const Problem& p = cell.problem;
  if (cell.error.matrix_rows <= 0 || cell.pass == Pass::decode || cell.pass == Pass::backward)
    return;
  const Index heads = std::min(p.batch * p.heads, cell.error.matrix_rows);
  const Index per_head = std::min(p.n, (cell.error.matrix_rows + heads - 1) / heads);
  const Inputs in = run.inputs(0);
  OwnMatrix own;
  MatrixSums sums;
  Matrix weights(per_head, p.n_kv);
  for (Index i = 0; i < heads; ++i) {
    const Index bh = i * (p.batch * p.heads) / heads, b = bh / p.heads, h = bh % p.heads;
    std::vector<Index> rows = Random(cell.seed, "matrix.rows", {static_cast<std::uint64_t>(bh)})
                                  .sample_without_replacement(p.n, per_head);
    std::sort(rows.begin(), rows.end());
    weights.setConstant(fill_pattern());
    if (!method.attention_rows(in, b, h, rows, weights)) return;
    if (!sums.add(exact_attention_rows(in, p, b, h, rows), weights, cell.error.top_k)) {
      report.doubt("attention_rows", "its attention matrix has weights that are not finite");
      return;
    }
    if (!linear_in_v) continue;
    // Timed calls may have left set 0 out, and its outputs are then filled with a pattern.
    if (i == 0) run.call(0);
    for (const PassOutput& output : run.outputs(0))
      if (output.name == "out") own.add(in, output.tensor, b, h, rows, weights);
  }
  own.require();
  put_columns(cell, sums, report);
}

constexpr Index kTimedSteps = 256;  // wanted for the quantiles; several passes where one has fewer
constexpr Index kTimedPasses = 4;

void time_steps(PassRun& run, CellReport& report) {
  std::vector<double> seconds;
  const Index passes =
      std::clamp<Index>((kTimedSteps + run.steps() - 1) / run.steps(), 1, kTimedPasses);
  for (Index pass = 0; pass < passes; ++pass)
    if (!run.each_step(0, [&](Index, double s, const Decoder&) { seconds.push_back(s); })) return;
  report.put("token_p50_s", quantile(seconds, 0.5));
  report.put("token_p95_s", quantile(seconds, 0.95));
}

void compare_visible_keys(const Cell& cell, PassRun& run, CellReport& report) {
  const Problem& p = cell.problem;
  if (cell.error.matrix_rows <= 0) return;
  const Index heads = p.batch * p.heads, steps = run.steps();
  const Index per_head = std::min(steps, (cell.error.matrix_rows + heads - 1) / heads);
  std::vector<Index> chosen =
      Random(cell.seed, "matrix.steps").sample_without_replacement(steps, per_head);
  std::sort(chosen.begin(), chosen.end());
  std::vector<std::vector<std::vector<VisibleKey>>> seen(chosen.size());  // by step and head
  bool shown = true;
  std::size_t next = 0;
  run.each_step(0, [&](Index t, double, const Decoder& decoder) {
    if (next == chosen.size() || chosen[next] != t) return;
    for (Index bh = 0; bh < heads; ++bh) {
      seen[next].push_back(decoder.visible(bh / p.heads, bh % p.heads));
      shown = shown && !seen[next].back().empty();
    }
    ++next;
  });
  if (!shown || next != chosen.size()) return;
  MatrixSums sums;
  Matrix weights(1, p.n_kv);
  for (Index bh = 0; bh < heads; ++bh)
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      weights.setZero();
      for (const VisibleKey& key : seen[i][static_cast<std::size_t>(bh)])
        weights(0, key.position) = key.weight;
      const Index row = p.n - steps + chosen[i];
      if (!sums.add(exact_attention_rows(run.inputs(0), p, bh / p.heads, bh % p.heads, {&row, 1}),
                    weights, cell.error.top_k)) {
        report.doubt("attention_rows", "its decoder shows weights that are not finite");
        return;
      }
    }
  put_columns(cell, sums, report);
}

}  // namespace

void decoder_trace(const Cell& cell, PassRun& run, CellReport& report) {
  try {
    time_steps(run, report);
    compare_visible_keys(cell, run, report);
  } catch (const std::exception& error) {
    report.doubt("attention_rows", error.what());
  }
}

void attention_matrix(const Cell& cell, bool linear_in_v, Method& method, PassRun& run,
                      CellReport& report) {
  try {
    compare_attention_rows(cell, linear_in_v, method, run, report);
  } catch (const WrongResult&) {
    throw;
  } catch (const std::exception& error) {
    report.doubt("attention_rows", error.what());
  }
}

}  // namespace subquad
