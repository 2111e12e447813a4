// Training calls for Method::fit: inputs of a task, with exact dense outputs.
#pragma once

#include "harness/core/capture.h"
#include "harness/core/method.h"
#include "harness/core/task.h"

namespace subquad {

// What a fit can be told: the section `fit` of a config.
struct FitConfig {
  Index steps = 200;
  double learning_rate = 1e-2;
  Index sets = 8;    // input sets, used in turn
  std::string save;  // folder or file for the fitted parameters; "" = not kept
};
const std::vector<Field<FitConfig>>& fit_fields();

// Input sets kFirstFitSet, kFirstFitSet + 1, ... of a task: never those that are judged. Exact
// outputs are computed in double precision, one set per call of next(), and rounded.
class TaskFitData final : public FitData {
 public:
  // `distinct` sets are used in turn; their tensors are kept.
  TaskFitData(const Task& task, const Problem& problem, Seed seed, Index distinct);
  void next(Inputs* inputs, ConstTensorView* dense_out) override;

 private:
  const Task& task_;
  Problem problem_;
  Seed seed_;
  std::vector<QKV> inputs_;
  std::vector<Tensor> outputs_;
  Index distinct_, next_ = 0;
};

}  // namespace subquad
