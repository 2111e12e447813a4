// Exact softmax attention over a pattern of visible keys, without the attention matrix: the engine
// of dense attention, windows and block-sparse methods. O(n) extra memory, cost proportional to the
// kept entries, the same bits for any thread count.
//
// Source: FlashAttention-2 (Dao 2023, arXiv 2307.08691), algorithms 1 and 2: query tiles outside,
// running row maximum and sum, one division at the end, only the row log-sum-exp kept; backward
// recomputes the weights from it. README.md says what bounds the speed.
#pragma once

#include <vector>

#include "harness/core/method.h"
#include "methods/engines/pattern.h"

namespace subquad {

class TiledAttention {
 public:
  // Makes the work space; forward and backward allocate nothing unless there are more threads then,
  // or a key mask comes.
  void prepare(const Problem& problem, Pattern pattern, bool gradients);
  // From now on calls have n queries and n keys, at most as many as prepare() was told, and see the
  // first n rows and columns of its pattern. Allocates nothing. For patterns without lists.
  void shorten(Index n);

  // out [batch, heads, n, d_v]. lse [batch * heads * n] receives the natural row log-sum-exp of the
  // scaled logits (-infinity for a row that sees no key, whose output is zero) unless it is null.
  void forward(const Inputs& in, TensorView out, float* lse);
  // Overwrites grads.dq, dk, dv; out and lse are those of forward. delta [batch * heads * n] takes
  // the place of rowsum(dout * out) unless it is null (for outputs that more goes into).
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const float* lse,
                const Gradients& grads, const float* delta = nullptr);

  // Bytes that prepare() allocates for this problem with the present thread count, its copy of the
  // pattern included.
  static double work_bytes(const Problem& problem, const Pattern& pattern, bool gradients);
  // Operations of a pass: scores and values forward; scores, values, dv, dk, dq backward. A
  // decoding step meets the keys of the last query.
  static double flops(const Problem& problem, const Pattern& pattern, Pass pass);

 private:
  struct Tile {  // of queries: it never crosses the blocks of the pattern
    Index i0, rows;
  };
  struct Sizes;
  struct Head;     // pointers of one head
  struct Scratch;  // of one thread

  Index tiles() const;  // per head
  Tile tile(Index number) const;
  // Calls body(stripe) for every stripe of head bh that may hold an entry of the queries' tile, in
  // a fixed order.
  template <class Body>
  void for_stripes(Index bh, Index i0, Body&& body) const;
  // The same for the keys of one block of backward.
  template <class Body>
  void for_stripes_of_keys(Index bh, Index block, Body&& body) const;
  void list_by_keys();
  Head head(const Inputs& in, Index bh) const;
  void pack(const Inputs& in, bool gradients);
  void forward_tile(const Head& head, Index bh, Tile tile, Scratch& scratch, float* out,
                    float* lse) const;
  void backward_block(const Head& head, Index bh, Index j0, Scratch& scratch, const float* dout,
                      const float* lse, float* dq_rows) const;
  void backward_tile(const Head& head, const Stripe& stripe, Index i0, Index rows, Index j0,
                     Scratch& scratch, const float* dout, const float* lse, float* dq) const;

  Problem problem_;
  Index capacity_ = 0;  // n_kv that there is room for
  Pattern pattern_;
  // Numbers of the listed stripes that meet a block of keys: those of block x of head h are
  // by_keys_[key_starts_[y] .. key_starts_[y + 1]) with y = (h % listed_heads) * blocks + x.
  std::vector<Index> key_starts_, by_keys_;
  Index wide_k_ = 0, wide_v_ = 0;  // d_k, d_v rounded up to whole vectors
  Index panels_ = 0;               // per head
  Index groups_ = 1;               // groups of keys with dq accumulators of their own
  Index scratch_floats_ = 0;       // per thread
  bool copy_keys_ = false, copy_values_ = false;
  AlignedArray<float> key_panels_;       // [batch*heads, panels, d_k, panel], times scale * log2(e)
  AlignedArray<float> value_panels_;     // [batch*heads, panels, d_v, panel]; backward only
  AlignedArray<float> keys_, values_;    // [batch*heads, n_kv, wide]: rows of whole vectors
  AlignedArray<float> queries_, douts_;  // likewise [batch*heads, n, wide]; backward only
  AlignedArray<float> bias_;             // [batch, panels * panel]: 0 or -infinity, with a key mask
  AlignedArray<float> delta_;            // [batch*heads, n]: rowsum(dout * out)
  AlignedArray<float> dq_parts_;         // [batch*heads, groups, n, wide_k]
  AlignedArray<float> key_norms_;  // [batch*heads, packed parts]: largest squared norm, scaled
  AlignedArray<float> scratch_;    // [threads, scratch_floats_]
};

}  // namespace subquad
