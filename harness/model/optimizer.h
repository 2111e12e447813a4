// Adam and its relatives, and the schedule of the learning rate.
#pragma once

#include "harness/model/options.h"
#include "harness/model/parameters.h"

namespace subquad {

// Learning rate of step `step` (1-based) of `steps`.
double learning_rate_at(const TrainOptions& options, Index step);

class Optimizer {
 public:
  Optimizer(const TrainOptions& options, const ParameterLayout& layout);

  // Clips `grads` in place and moves `weights`; `step` is 1-based. Returns the norm before
  // clipping. The same bits for any thread count.
  //   adamw: Loshchilov and Hutter 2019, arXiv 1711.05101 (decay decoupled); adam: Kingma and Ba,
  //   arXiv 1412.6980 (decay added to the gradient); radam: Liu et al. 2020, arXiv 1908.03265.
  double step(Index step, float* weights, float* grads);

  AlignedArray<float>& mean() { return mean_; }      // of gradients
  AlignedArray<float>& square() { return square_; }  // of squared gradients

 private:
  double clip(float* grads) const;

  TrainOptions options_;
  const ParameterLayout& layout_;
  AlignedArray<float> mean_, square_;
};

}  // namespace subquad
