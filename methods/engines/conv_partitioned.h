// Products with segment-form convolution matrices, cut into blocks: each block of values is
// transformed once, whatever the number of segments.
//
// Rows and columns are cut into R = ceil(n / B) blocks. A piece is the part of a segment inside one
// block of columns; there are P <= R + count - 1 pieces. Over transforms of length 2 B,
//   out block r = first half of F^-1 ( sum over pieces p of F(x_p) F(window of lags (r - b_p) B) ),
// where the window q holds the lags [(q - 1) B, (q + 1) B), so that nothing is added across blocks.
// (This is uniformly partitioned convolution by overlap-save; the spec of the paper has none of
// it.) Time O((P + R) m B log B + P R m B + count n log B) for m columns; the middle term is a
// product of small complex matrices, per frequency, that runs near the peak of the multiply-add
// units.
//
// Rounding errors of row t come from blocks that the row sees, not from the whole sequence.
#pragma once

#include <vector>

#include "methods/engines/conv_kernels.h"
#include "methods/engines/fft.h"

namespace subquad {

template <class T>
class PartitionedConv {
 public:
  struct Sizes {
    Index n = 0;
    Index columns = 0;       // at most
    Index max_segments = 1;  // at most
    bool causal = true;
    Index block = 0;  // B, a power of two >= 8
    bool correlate = false;
    bool alone = false;  // on the caller's thread: for short products by the thousand
  };
  // Makes plans and work space for the present number of threads.
  void prepare(const Sizes& sizes, Planner planner);
  static double bytes(const Sizes& sizes);

  // Transforms the kernels; to be called again whenever w has changed.
  void set_kernels(const ConvKernels<T>& w);

  // out(t, :) = row_scale[t] sum_j W(t, j) x(j, :); x, out [n, columns]; row_scale may be null.
  // Rows of x flagged in `skip` (may be null) count as zero.
  template <class In, class Out>
  void apply(const In* x, Index columns, const double* row_scale, const std::uint8_t* skip,
             Out* out);
  // out(j, :) = sum_t W(t, j) x(t, :).
  void apply_transposed(const T* x, Index columns, T* out);
  // to.profile(i)[lag] = sum over j in segment i of <g(j + lag, :), x(j, :)>; g, x [n, columns].
  void correlate(const T* g, const T* x, Index columns, ConvKernels<T>* to);

  Index block() const { return sizes_.block; }

 private:
  struct Piece {
    Index segment, block, begin, end;  // rows [begin, end) of x
    Index kernel;                      // number of the window for output block r, minus r
  };
  static Index blocks(const Sizes& s) { return (s.n + s.block - 1) / s.block; }
  static Index max_pieces(const Sizes& s) { return blocks(s) + s.max_segments - 1; }
  static Index max_kernels(const Sizes& s);
  static Index vectors(const Sizes& s);         // per spectrum, padded
  static Index scratch_values(const Sizes& s);  // of one thread

  template <class Body>
  void for_items(Index count, Body&& body) const;
  void grow_scratch();
  T* scratch(int thread) { return scratch_.data() + thread * scratch_values(sizes_); }
  // Spectrum of `count` values, at their place in a block, into slot (item, column) of `to`.
  void scatter(const T* spectrum, Index items, Index slot, T* to) const;
  void gather(const T* from, Index items, Index slot, T* spectrum) const;
  template <class In>
  void load(const In* x, Index ld, Index column, Index count, Index begin, Index end, Index block,
            const std::uint8_t* skip, T* rows) const;
  void transform(T* rows, Index count, T* spectrum, Index items, Index item, T* to) const;

  Sizes sizes_;
  RealFft<T> fft_;
  std::vector<Piece> pieces_;
  std::vector<Index> kernel_base_;  // [segments] number of a segment's first window
  Index kernel_count_ = 0;
  bool causal_ = true;
  AlignedArray<T> kernels_;  // [vectors, kernels, 2 (re, im), lanes]
  AlignedArray<T> sums_;     // likewise; correlate only
  AlignedArray<T> scratch_;  // [threads, scratch_values]
  int threads_ = 0;
};

extern template class PartitionedConv<float>;
extern template class PartitionedConv<double>;

}  // namespace subquad
