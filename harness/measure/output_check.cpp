#include "harness/measure/output_check.h"

#include <fmt/core.h>

#include <cstring>

#include "harness/measure/cell_report.h"
#include "harness/measure/error_metrics.h"

namespace subquad {
namespace {

constexpr double kSameOutput = 1e-5;  // two calls on the same input may differ by this much

}  // namespace

void OutputCheck::fill_outputs(Index set) {
  for (const PassOutput& output : run_.outputs(set)) fill_untouched(output.tensor);
}

void OutputCheck::require_finite(Index set, const char* when) {
  for (const PassOutput& output : run_.outputs(set)) {
    const std::string bad = describe(output_state(output.tensor), output.tensor, output.name);
    if (!bad.empty()) throw WrongResult(fmt::format("{}{}", when, bad));
  }
}

void OutputCheck::check_outputs(Index set) {
  require_finite(set, "");
  if (set < static_cast<Index>(checked_.size())) {
    compare_with_check(set);
  } else {
    checked_.push_back(copy_of(set));
  }
}

std::vector<Tensor> OutputCheck::copy_of(Index set) {
  std::vector<Tensor> copies;
  for (const PassOutput& output : run_.outputs(set)) {
    copies.emplace_back(output.tensor.shape());
    std::memcpy(copies.back().data(), output.tensor.data(),
                static_cast<std::size_t>(output.tensor.size()) * sizeof(float));
  }
  return copies;
}

bool OutputCheck::compare_with_check(Index set) {
  bool same = true;
  const auto outputs = run_.outputs(set);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const Tensor& expected = checked_[static_cast<std::size_t>(set)][i];
    const TensorView& got = outputs[i].tensor;
    if (std::memcmp(got.data(), expected.data(),
                    static_cast<std::size_t>(got.size()) * sizeof(float)) == 0)
      continue;
    same = false;
    require_finite(set, "in a timed call: ");
    const double off = relative_difference(got, expected.view());
    if (!(off <= kSameOutput))
      throw WrongResult(
          fmt::format("{} of a timed call differs from the checked call on the same input by "
                      "{:.3g}, at most {:.3g} is allowed",
                      outputs[i].name, off, kSameOutput));
  }
  if (!same && !random_) not_reproducible_ = true;
  return same;
}

}  // namespace subquad
