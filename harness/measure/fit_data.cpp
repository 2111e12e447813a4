#include "harness/measure/fit_data.h"

#include <limits>

#include "harness/measure/reference.h"

namespace subquad {

const std::vector<Field<FitConfig>>& fit_fields() {
  using F = FitConfig;
  static const std::vector<Field<F>> fields{
      param("steps", &F::steps, {0, 1 << 30}, "optimizer steps, an input set each"),
      param("learning_rate", &F::learning_rate, {0, 10}, "highest of the schedule"),
      param("sets", &F::sets, {1, 1 << 16}, "input sets of the training data, used in turn"),
      param("save", &F::save,
            "folder for the fitted parameters, as <method>_<cell>.safetensors, or such a file; "
            "{method}, {label}, {seed}: of the cell; empty = not kept")};
  return fields;
}

TaskFitData::TaskFitData(const Task& task, const Problem& problem, Seed seed, Index distinct)
    : task_(task), problem_(problem), seed_(seed), distinct_(distinct) {
  SUBQUAD_CHECK(distinct > 0, "distinct = {}", distinct);
  // Views handed out stay valid while later sets are added.
  inputs_.reserve(static_cast<std::size_t>(distinct));
  outputs_.reserve(static_cast<std::size_t>(distinct));
}

void TaskFitData::next(Inputs* inputs, ConstTensorView* dense_out) {
  const auto which = static_cast<std::size_t>(next_++ % distinct_);
  if (which == inputs_.size()) {
    inputs_.emplace_back(problem_);
    task_.fill(problem_, seed_, kFirstFitSet + static_cast<Index>(which), &inputs_.back());
    const Reference exact = exact_reference(inputs_.back().inputs(), nullptr, problem_, seed_,
                                            {.max_gflop = std::numeric_limits<double>::infinity()});
    outputs_.push_back(cast<float>(exact.out));
  }
  *inputs = inputs_[which].inputs();
  *dense_out = outputs_[which];
}

}  // namespace subquad
