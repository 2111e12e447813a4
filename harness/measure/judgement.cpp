#include "harness/measure/judgement.h"

#include <fmt/core.h>

#include <algorithm>

#include "harness/core/registry.h"
#include "harness/measure/reference_file.h"

namespace subquad {
namespace {

constexpr double kGradientTolerance = 1e-4;  // of an exact method's gradients, at least

// Gradients may well be nearly alike between rows; only a vanishing one proves little.
ErrorMetrics error_weight_of_output(ErrorMetrics m) {
  if (m.constant_row_error > 0) m.constant_row_error = 1;
  return m;
}

}  // namespace

ReferenceOptions reference_options(const Cell& cell) {
  return {.gradients = cell.wants_gradients(),
          .max_gflop = cell.error.max_gflop,
          .rows = cell.error.rows};
}

void Judgement::load_reference(const std::string& reference_path) {
  if (run_.has_own_reference()) {
    reference_ = run_.own_reference();
    return;
  }
  const std::uint64_t hash = inputs_hash(run_.inputs(0));
  if (!reference_path.empty()) {
    try {
      reference_ = read_reference(reference_path, cell_.reference_id(), cell_.problem);
      if (reference_.inputs_hash == hash && !(cell_.wants_gradients() && reference_.dq.empty()))
        return;
      report_.doubt("reference_recomputed", "the reference file belongs to other inputs");
    } catch (const StorageError& error) {
      report_.doubt("reference_recomputed", error.what());
    }
  }
  const Tensor dout = cell_.wants_gradients() ? make_dout(cell_.problem, cell_.seed, 0) : Tensor();
  reference_ = exact_reference(run_.inputs(0), dout.empty() ? nullptr : &dout, cell_.problem,
                               cell_.seed, reference_options(cell_));
}

// Error of set 0 as it is in the outputs now.
ErrorMetrics Judgement::error_of(bool gradients) {
  ErrorSums sums;
  for (const PassOutput& output : run_.outputs(0)) {
    if ((output.name == "out") == gradients) continue;
    const TensorD& exact = output.name == "out"  ? reference_.out
                           : output.name == "dq" ? reference_.dq
                           : output.name == "dk" ? reference_.dk
                                                 : reference_.dv;
    const bool by_rows = output.name == "out" || output.name == "dq";
    if (!exact.empty())  // sampled rows have no dk and dv
      sums.add(exact.view(), output.tensor,
               by_rows ? reference_.rows : std::vector<std::vector<Index>>{});
  }
  return sums.metrics();
}

// Why the method must equal exact attention here, or "".
std::string Judgement::exactness() const {
  if (entry_.info.exact) return "a method declared exact";
  if (!entry_.info.exact_limit) return "";
  const Settings limit =
      resolve(cell_.method, entry_.params, entry_.info.exact_limit(cell_.problem));
  const Settings asked = resolve(cell_.method, entry_.params, cell_.method_settings);
  return limit == asked ? "a method at its exact limit" : "";
}

void Judgement::require_exact(const ErrorMetrics& m, double tolerance, const char* what) const {
  const std::string why = exactness();
  if (why.empty() || (m.relative_defined && m.relative <= tolerance)) return;
  throw WrongResult(
      fmt::format("relative error of {} against exact attention is {:.3g}; {} may "
                  "have {:.3g}",
                  what, m.relative, why, tolerance));
}

void Judgement::judge() {
  const bool gradients = cell_.wants_gradients();
  const ErrorMetrics m = error_of(gradients);
  report_.put("error_of", !gradients ? "output" : reference_.all_rows() ? "gradient" : "dq");
  if (m.relative_defined) report_.put("rel_error", m.relative);
  report_.put("max_error", m.max_abs);
  report_.put("cosine", m.cosine);
  report_.put("row_error", m.row_relative);
  const Index heads = cell_.problem.batch * cell_.problem.heads;
  const Index per_head = gradients ? reference_.dq.n() : reference_.out.n();
  const bool decode = cell_.pass == Pass::decode;
  report_.put_count("error_rows", decode ? per_head : per_head * heads);
  report_.put_count("error_rows_total", decode ? per_head : cell_.problem.n * heads);
  weak_ = weak_check(gradients ? error_weight_of_output(m) : m);
  const double gradient_tolerance = std::max(kGradientTolerance, entry_.info.tolerance);
  require_exact(m, gradients ? gradient_tolerance : entry_.info.tolerance,
                gradients ? "the gradient" : "the output");
  if (cell_.pass == Pass::forward_backward)
    require_exact(error_of(false), entry_.info.tolerance, "the output");
}

}  // namespace subquad
