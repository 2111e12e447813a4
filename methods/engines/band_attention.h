// Exact softmax attention over a band of keys, without the attention matrix: streaming softmax on
// tiles. Engine of dense attention and sliding windows.
//
// Source: FlashAttention-2 (Dao 2023, arXiv 2307.08691), algorithms 1 and 2: query tiles outside,
// running row maximum m and sum l, one division at the end, only lse = m + log l kept.
// Backward recomputes the weights from lse. It runs in two passes, one with query tiles outside
// for dq and one with key tiles outside for dk and dv: no two threads write the same row, so the
// bits do not depend on the thread count, and the extra memory stays O(n).
#pragma once

#include <vector>

#include "harness/core/method.h"
#include "methods/engines/band.h"

namespace subquad {

class BandAttention {
 public:
  // Makes the work space; forward and backward allocate nothing unless there are more threads then.
  void prepare(const Problem& problem, const Band& band, bool gradients);

  // out [batch, heads, n, d_v]. lse [batch * heads * n] receives the row log-sum-exp of the scaled
  // logits (-infinity for a row that sees no key) unless it is null.
  void forward(const Inputs& in, TensorView out, float* lse);
  // Overwrites grads.dq, dk, dv; out and lse are those of forward.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const float* lse,
                const Gradients& grads);

  // Bytes that prepare() allocates for this problem with the present thread count.
  static double work_bytes(const Problem& problem, const Band& band, bool gradients);
  // Operations of the listed passes: scores and values forward; scores, values, dv, dk, dq
  // backward (its second recomputation of the scores is not counted as useful).
  static double flops(const Problem& problem, const Band& band, Pass pass);

 private:
  struct Work;  // of one thread

  void grow_work();
  void forward_tile(const Inputs& in, TensorView out, float* lse, Index bh, Index r0, Index thread);
  void query_gradients(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                       const float* lse, const Gradients& grads, Index bh, Index r0, Index thread);
  void key_gradients(const Inputs& in, ConstTensorView dout, const float* lse,
                     const Gradients& grads, Index bh, Index c0, Index c1, Index thread);
  void recompute(const Inputs& in, ConstTensorView dout, const float* lse, Index bh, Index r0,
                 Index r1, Index c0, Index c1, Work& work);

  Problem problem_;
  Band band_;
  bool gradients_ = false;
  Index rows_ = 0;                         // queries of a tile
  std::vector<Index> key_cuts_;            // borders of the key tiles of the dk, dv pass
  std::vector<AlignedArray<float>> work_;  // one per thread
  AlignedArray<float> delta_;              // [batch * heads * n] rowsum(dout * out)
};

}  // namespace subquad
