// From queries, keys and segments to the kernels of convolutional attention and their row sums.
#pragma once

#include "methods/engines/conv_kernels.h"

namespace subquad {

// T: the type of the kernels. The logits of a segment are those of its first column at lags >= 0
// and, without a causal mask, those of its last column at lags < 0.
template <class T>
class ConvProfiles {
 public:
  void prepare(Index n, Index d_k, Index max_segments, bool causal);
  static double bytes(Index n, Index d_k, Index max_segments, bool causal);

  // w = scale q_t . k_j for the columns j that stand for the segments. O(lags d_k).
  void logits(const float* q, const float* k, double scale, ConvKernels<T>* w);
  // w = exp(w - the largest logit of all). The shift cancels in the output.
  void exponentiate(ConvKernels<T>* w);
  // sums[t] = D(t) = sum_j W(t, j), and rounding[t], an upper bound of its absolute error.
  // Windows of a kernel are summed once per chunk of rows and slide inside it. O(lags + n^2/1024).
  void normalizers(const ConvKernels<T>& w, double* sums, double* rounding);

  // The column that stands for lags >= 0 or < 0 of segment i.
  static Index column(const ConvKernels<T>& w, Index i, bool negative) {
    return negative ? w.end(i) - 1 : w.start(i);
  }

 private:
  void grow_scratch();

  Index d_k_ = 0;
  AlignedArray<T> keys_;          // [1 or 2, segments, d_k]: first and last columns
  AlignedArray<double> largest_;  // [segments]
  AlignedArray<T> tiles_;         // [threads, queries of a tile and products]
  AlignedArray<double> changes_;  // [threads, 2, rows of a chunk]
  int threads_ = 0;
};

extern template class ConvProfiles<float>;
extern template class ConvProfiles<double>;

}  // namespace subquad
