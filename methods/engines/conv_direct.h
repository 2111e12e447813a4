// Products with segment-form convolution matrices without transforms: every entry of the matrix is
// used, none is stored. The best way for short sequences and for many short segments.
#pragma once

#include "methods/engines/conv_kernels.h"

namespace subquad {

// Work space for apply(): x in rows of whole vectors, and one tile per thread.
template <class T>
class DirectConv {
 public:
  void prepare(Index n, Index columns);
  static double bytes(Index n, Index columns);

  // out(t, :) = row_scale[t] sum_j W(t, j) x(j, :); x, out [n, columns]; row_scale may be null.
  // A value that a row does not see is never read. Time n^2 columns (causal: half of it) at the
  // speed of a matrix product (float) or of plain loops (double).
  void apply(const ConvKernels<T>& w, const T* x, Index columns, const double* row_scale, T* out);

 private:
  static Index wide(Index columns);
  static Index tile_values(Index columns);
  void row_block(const ConvKernels<T>& w, const T* x, Index first, Index rows, Index width, T* tile,
                 T* sums) const;

  Index columns_ = 0;
  AlignedArray<T> rows_;     // [n, wide]
  AlignedArray<T> scratch_;  // [threads, tile and sums]
  int threads_ = 0;
};

extern template class DirectConv<float>;
extern template class DirectConv<double>;

// out(j, :) = sum_t W(t, j) x(t, :); plain loops over n^2 entries, for gradients of short
// sequences.
void direct_transposed(const ConvKernels<double>& w, const double* x, Index columns, double* out);
// to.profile(i)[lag] = sum over j in segment i of <g(j + lag, :), x(j, :)>.
void direct_correlate(const double* g, const double* x, Index columns, ConvKernels<double>* to);

}  // namespace subquad
