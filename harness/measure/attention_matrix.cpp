#include "harness/measure/attention_matrix.h"

#include <algorithm>

#include "harness/core/random.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/reference.h"

namespace subquad {
namespace {

void compare_attention_rows(const Cell& cell, Method& method, const PassRun& run,
                            CellReport& report) {
  const Problem& p = cell.problem;
  if (cell.error.matrix_rows <= 0 || cell.pass == Pass::decode || cell.pass == Pass::backward)
    return;
  const Index heads = std::min(p.batch * p.heads, cell.error.matrix_rows);
  const Index per_head = std::min(p.n, (cell.error.matrix_rows + heads - 1) / heads);
  const Inputs in = run.inputs(0);
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
  }
  if (const auto m = sums.metrics()) {
    if (!m->negative) report.put("kl", m->kl);
    report.put("topk_mass", m->topk_mass);
    report.put("matrix_error", m->relative);
    report.put("row_tv", m->row_tv);
    report.put_count("matrix_rows", m->judged_rows);
    report.put_count("topk", std::min(cell.error.top_k, p.n_kv));
  }
}

}  // namespace

void attention_matrix(const Cell& cell, Method& method, const PassRun& run, CellReport& report) {
  try {
    compare_attention_rows(cell, method, run, report);
  } catch (const std::exception& error) {
    report.doubt("attention_rows", error.what());
  }
}

}  // namespace subquad
