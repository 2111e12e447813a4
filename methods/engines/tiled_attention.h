// Exact softmax attention over a pattern of bands, by tiles with a running softmax: the engine of
// dense, windowed and block-sparse methods. O(n) extra memory, cost proportional to the kept
// entries, same bits for any thread count.
//
// Forward: Dao, "FlashAttention-2", arXiv 2307.08691, algorithm 1; backward: algorithm 2, by
// recomputation from the row log-sum-exp. See README.md for what bounds the speed.
#pragma once

#include <vector>

#include "harness/core/method.h"

namespace subquad::engine {

inline constexpr Index kNoLimit = Index{1} << 40;

// The entries (i, j) with i in [q_begin, q_end), j in [k_begin, k_end) and i + lo <= j < i + hi.
struct Band {
  Index q_begin = 0, q_end = 0, k_begin = 0, k_end = 0;
  Index lo = -kNoLimit, hi = kNoLimit;

  Index first(Index i) const { return std::max(k_begin, i + lo); }  // of query i
  Index last(Index i) const { return std::min(k_end, i + hi); }     // one past
  Index count(Index i) const { return std::max<Index>(0, last(i) - first(i)); }
};

// Everything that the problem lets a query see: one band.
std::vector<Band> full_pattern(const Problem& problem);
// Kept entries of one head.
double entries(const std::vector<Band>& bands);

class TiledAttention {
 public:
  // `bands` must not overlap. Allocates everything that the passes need.
  void prepare(const Problem& problem, std::vector<Band> bands, bool gradients);

  // out [batch, heads, n, d_v]; row_lse [batch * heads * n] receives the natural log-sum-exp of
  // each row's logits (-infinity where a query sees no key), or is null. Rows without keys are
  // zero.
  void forward(const Inputs& in, TensorView out, float* row_lse);
  // Gradients of sum(out * dout); row_lse and out as forward left them.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const float* row_lse,
                const Gradients& grads);

  double allocated_bytes() const;  // of all buffers, after prepare

 private:
  struct Scratch;  // per thread
  struct Head;     // pointers of one head
  Head head(const Inputs& in, Index bh) const;
  void pack(const Inputs& in, bool gradients);
  void forward_tile(const Head& head, Index i0, Scratch& scratch, float* out, float* lse) const;
  void backward_block(const Head& head, Index group, Index j0, Scratch& scratch, const float* dout,
                      const float* lse, float* dk, float* dv) const;

  Problem problem_;
  std::vector<Band> bands_;
  std::vector<std::vector<std::size_t>> bands_of_tile_;  // by query tile
  Index wide_k_ = 0, wide_v_ = 0;                        // d_k, d_v rounded up to whole vectors
  Index panels_ = 0;                                     // per head
  Index groups_ = 1;  // key groups with dq accumulators of their own
  bool copy_keys_ = false, copy_values_ = false;
  AlignedArray<float> key_panels_;     // [batch*heads, panels, d_k, kPanel], times scale * log2(e)
  AlignedArray<float> value_panels_;   // [batch*heads, panels, d_v, kPanel]; backward only
  AlignedArray<float> keys_, values_;  // [batch*heads, n_kv, wide]: rows of whole vectors
  AlignedArray<float> queries_, douts_;  // likewise [batch*heads, n, wide]; backward only
  AlignedArray<float> bias_;      // [batch, panels * kPanel]: 0 or -infinity, where keys are masked
  AlignedArray<float> delta_;     // [batch*heads, n]: rowsum(dout * out)
  AlignedArray<float> dq_parts_;  // [batch*heads, groups, n, wide_k]
  AlignedArray<float> scratch_;   // [threads, scratch floats]
  Index scratch_floats_ = 0;
};

}  // namespace subquad::engine
