// The least-squares Toeplitz fit of every segment, in place of its first column:
//   u_i(l) = mean over j in segment i of scale q_{j+l} . k_j.
// Our variant of the profiles of arXiv 2405.05219: it averages the noise of content, but looks at
// later queries and keys. Computed as cross-correlations, O(k d_k n log n).
#pragma once

#include "methods/engines/conv_partitioned.h"

namespace subquad {

class MeanProfiles {
 public:
  void prepare(Index n, Index d_k, Index max_segments, bool causal, Planner planner);
  static double bytes(Index n, Index d_k, Index max_segments, bool causal);

  // Fills the logits of `to`, whose starts are set.
  template <class T>
  void fill(const float* q, const float* k, double scale, ConvKernels<T>* to);

 private:
  static PartitionedConv<double>::Sizes sizes(Index n, Index d_k, Index max_segments, bool causal);

  Index n_ = 0, d_k_ = 0;
  PartitionedConv<double> correlator_;
  ConvKernels<double> sums_;
  AlignedArray<double> q_, k_;  // [n, d_k]
};

extern template void MeanProfiles::fill(const float*, const float*, double, ConvKernels<float>*);
extern template void MeanProfiles::fill(const float*, const float*, double, ConvKernels<double>*);

}  // namespace subquad
