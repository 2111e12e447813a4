// Products with segment-form convolution matrices by long transforms, as in the paper (arXiv
// 2405.05219, algorithm 2) but with one product per segment instead of differences of generators.
//
//   shared: one length F >= n + max L_i - 1 for all segments (L_i columns each): the products add
//   up
//           as spectra and a column needs one inverse transform. F also keeps what would wrap
//           around out of rows 0 .. n-1, so 2 n is not needed.
//   local:  each segment has the shortest length that holds its rows and columns, and an inverse of
//           its own: the same work in total, with smaller arrays.
// Time O(count m n log n) for m columns.
#pragma once

#include <vector>

#include "methods/engines/conv_kernels.h"
#include "methods/engines/fft.h"

namespace subquad {

template <class T>
class FftConv {
 public:
  struct Sizes {
    Index n = 0;
    Index columns = 0;       // at most
    Index max_segments = 1;  // at most
    bool causal = true;
    bool shared = true;
    // The segments if they are known beforehand; then a shared transform is as short as can be.
    std::vector<Index> starts = {};
    bool wide = false;  // values and results are doubles
  };
  void prepare(const Sizes& sizes, Planner planner);
  static double bytes(const Sizes& sizes);

  // As in PartitionedConv. Value: float, or double if prepared `wide`.
  void set_kernels(const ConvKernels<T>& w);
  template <class Value>
  void apply(const Value* x, Index columns, const double* row_scale, const std::uint8_t* skip,
             Value* out);

  // Shared: the transform that the present kernels use.
  const RealFft<T>& fft() const { return *plans_.front(); }

  // Lengths that a transform may have, ascending: plans are made before the segments are known.
  static std::vector<Index> lengths(const Sizes& sizes);

 private:
  // The length for the rows and columns of a segment.
  static Index needed(const Sizes& sizes, Index start, Index end);
  static Index scratch_values(const Sizes& s);   // of one thread
  static Index spectrum_values(const Sizes& s);  // of the longest transform
  static Index stride(const Sizes& sizes);       // between columns
  template <class Value>
  void shared_columns(Value* columns, Index count, const double* row_scale, T* work) const;
  template <class Value>
  void local_column(Value* column, const double* row_scale, T* work) const;
  const RealFft<T>& plan_for(Index length) const;
  void grow_scratch();

  Sizes sizes_;
  Index spectrum_ = 0, scratch_size_ = 0;
  std::vector<RealFft<T>> fft_;           // ascending
  std::vector<const RealFft<T>*> plans_;  // [segments] in use
  std::vector<Index> offsets_;            // [segments] of its spectrum
  const ConvKernels<T>* w_ = nullptr;
  AlignedArray<T> kernels_;
  AlignedArray<T> scratch_;      // [threads, scratch_values]: one padded column and spectra
  AlignedArray<float> columns_;  // [columns, stride] values, then results
  AlignedArray<double> wide_columns_;
  int threads_ = 0;
};

extern template class FftConv<float>;
extern template class FftConv<double>;

}  // namespace subquad
