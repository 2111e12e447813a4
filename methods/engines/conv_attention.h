// Attention whose logits are piecewise Toeplitz: from segments and their profiles to the output.
//
//   Y(t, :) = sum_j exp(u_i(t - j)) v(j, :) / D(t),   D(t) = sum_j exp(u_i(t - j)),  j in segment
//   i,
// where u_i is the first column of segment i below the diagonal; without a causal mask, lags below
// 0 come from the segment's last column. One global shift of the logits keeps exp in range and
// cancels.
//
// D comes from windowed sums of the kernels, never from a transform. A transform leaves the same
// absolute error on all rows of a block, which is much for a row whose D is small: such rows are
// found by an estimate of the error and computed directly (the row guard).
#pragma once

#include <span>
#include <vector>

#include "methods/engines/conv_cost.h"
#include "methods/engines/conv_direct.h"
#include "methods/engines/conv_fft.h"
#include "methods/engines/conv_kernels.h"
#include "methods/engines/conv_partitioned.h"
#include "methods/engines/conv_profiles.h"

namespace subquad {

struct ConvHeadSizes {
  Index n = 0, d_k = 0, d_v = 0;
  Index max_segments = 1;
  bool causal = true;
  std::vector<Index> starts = {};  // if known beforehand
};

// T: the type of kernels and transforms. The direct engine is float alone.
template <class T>
class ConvAttention {
 public:
  using Sizes = ConvHeadSizes;
  void prepare(const Sizes& sizes, const ConvPlan& plan, Planner planner);
  static double bytes(const Sizes& sizes, const ConvPlan& plan);

  // One head. guard: the largest estimated error of a row, relative to the values, that is left.
  // Returns the number of rows that were computed directly.
  Index forward(std::span<const Index> starts, const float* q, const float* k, const float* v,
                double scale, double guard, float* out);
  // The same from kernels that hold logits already.
  Index forward_from_logits(const float* q, const float* k, const float* v, double scale,
                            double guard, float* out);
  ConvKernels<T>& kernels() { return w_; }
  const double* normalizers() const { return sums_.data(); }
  // Estimated error of every row of the last call, relative to the values.
  const double* errors() const { return errors_.data(); }

 private:
  void estimate_errors(const float* v);

  Sizes sizes_;
  ConvPlan plan_;
  Index block_ = 0;  // rows that share an error
  ConvProfiles<T> profiles_;
  ConvKernels<T> w_;
  DirectConv<T> direct_;
  FftConv<T> fft_;
  PartitionedConv<T> partitioned_;
  AlignedArray<double> sums_, rounding_, inverse_, errors_;  // [n]
  AlignedArray<double> energy_;                              // [segments, blocks of lags]
  AlignedArray<double> value_energy_;                        // [pieces]
  AlignedArray<double> accumulators_;                        // [threads, d_v]
  AlignedArray<std::uint8_t> skip_;                          // [n] rows of v that are not finite
  AlignedArray<Index> guarded_;                              // [n]
};

extern template class ConvAttention<float>;
extern template class ConvAttention<double>;

}  // namespace subquad
