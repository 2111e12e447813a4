// Sizes that the parts of the ZETA engine share, and what it allocates: one list for prepare() and
// for the declared memory.
#pragma once

#include "methods/engines/zeta_attention.h"

namespace subquad {

inline constexpr Index kTokenBlock = 256;     // tokens of a block of sums; a part of every bit
inline constexpr Index kRowBlock = 64;        // queries of a work item
inline constexpr Index kNearCache = 1 << 19;  // bytes; larger heads fetch their values ahead
inline constexpr Index kMaxPointWidth = 64;   // of a row of points

namespace zeta_detail {

// Adds a token to sums [d_v + width].
inline void add_token(const float* v, Index d_v, const float* k, Index width, double* sum) {
  for (Index c = 0; c < d_v; ++c) sum[c] += static_cast<double>(v[c]);
  for (Index c = 0; c < width; ++c) sum[d_v + c] += static_cast<double>(k[c]);
}

}  // namespace zeta_detail

template <class Make>
void ZetaAttention::layout(Heads& h, const ZetaOptions& o, const Problem& p, bool gradients,
                           Make&& make) {
  const Index heads = p.batch * p.heads, width = ZetaPoints::width(o.points.d_key);
  const Index blocks = (p.n_kv + kTokenBlock - 1) / kTokenBlock, list = o.list_size(p.n_kv);
  const bool searched = o.candidates == ZetaOptions::Candidates::z_order;
  const bool chosen = o.candidates != ZetaOptions::Candidates::none;
  make(h.q, heads * p.n * width);
  make(h.k, heads * p.n_kv * width);
  make(h.q_code, searched ? heads * p.n : 0);
  make(h.q_order, searched ? heads * p.n : 0);
  make(h.code, searched ? heads * p.n_kv : 0);
  make(h.position, chosen ? heads * p.n_kv : 0);
  make(h.coordinate, chosen ? heads * o.points.d_key * (p.n_kv + engine::kLanes) : 0);
  make(h.real, heads);
  make(h.sums, o.history ? heads * (blocks + 1) * (p.d_v + width) : 0);
  make(h.counts, o.history ? heads * (blocks + 1) : 0);
  make(h.mean_k, o.history ? heads * p.n * width : 0);
  make(h.mean_count, o.history ? heads * p.n : 0);
  if (!gradients) return;
  make(h.dq, heads * p.n * width);
  make(h.dk, heads * p.n_kv * width);
  const bool fused = o.range_size(p.n_kv, p.causal) > 0;
  make(h.weight, fused ? 0 : heads * p.n * list);
  make(h.slope, fused ? 0 : heads * p.n * list);
  for (auto* mean : {&h.mean_weight, &h.mean_slope, &h.mean_dot})
    make(*mean, o.history ? heads * p.n : 0);
  make(h.dwidth, heads * ((p.n + kRowBlock - 1) / kRowBlock));
}

template <class Make>
void ZetaAttention::layout(zeta_detail::Work& w, const ZetaOptions& o, const Problem& p,
                           bool gradients, Make&& make) {
  const Index width = ZetaPoints::width(o.points.d_key);
  const bool searched = o.candidates == ZetaOptions::Candidates::z_order;
  const bool chunked = searched && p.causal;
  make(w.sort, searched ? 2 * std::max(p.n, p.n_kv) : 0);
  make(w.code, chunked ? p.n_kv : 0);
  make(w.position, chunked ? p.n_kv : 0);
  make(w.kept, chunked ? p.n_kv + 1 : 0);
  make(w.coordinate, chunked ? o.points.d_key * (p.n_kv + engine::kLanes) : 0);
  make(w.distance, engine::whole_vectors(o.window(p.n_kv)));
  make(w.chosen, o.window(p.n_kv) + 1);
  const Index attended =
      engine::whole_vectors(o.list_size(p.n_kv) + o.range_size(p.n_kv, p.causal) + 1);
  make(w.index, 2 * attended);
  make(w.x, 2 * attended);
  make(w.weight, attended);
  if (gradients) {
    make(w.slope, attended);
    make(w.value_dot, attended);
  }
  make(w.running, p.d_v + width);
}

}  // namespace subquad
