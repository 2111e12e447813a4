#include "methods/engines/tiled_attention.h"
#include "methods/engines/tiled_attention_detail.h"

namespace subquad {

void TiledAttention::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                              const float* row_lse, const Gradients& grads, const float* delta) {
  pack(in, true);
  const Problem& p = problem_;
  const Index heads = p.batch * p.heads, padded_n = padded_rows(p.n);
  // delta = rowsum(dout * out); rows of whole vectors where the widths are ragged.
  constexpr Index kRowsPerItem = 256;
  const Index row_items = (p.n + kRowsPerItem - 1) / kRowsPerItem;
  parallel_for(heads * row_items, [&](Index item, int) {
    const Index bh = item / row_items, first = item % row_items * kRowsPerItem;
    const Index count = std::min(kRowsPerItem, p.n - first), place = bh * p.n + first;
    for (Index i = place; i < place + count; ++i) {
      delta_[i] = delta != nullptr
                      ? delta[i]
                      : Eigen::Map<const Vector>(dout.data() + i * p.d_v, p.d_v)
                            .dot(Eigen::Map<const Vector>(out.data() + i * p.d_v, p.d_v));
    }
    if (queries_.size() > 0)
      pack_rows(in.q.data() + place * p.d_k, count, p.d_k, wide_k_, nullptr,
                queries_.data() + place * wide_k_);
    if (douts_.size() > 0)
      pack_rows(dout.data() + place * p.d_v, count, p.d_v, wide_v_, nullptr,
                douts_.data() + place * wide_v_);
  });
  const float* const dout_rows = douts_.size() > 0 ? douts_.data() : dout.data();
  const Index blocks = (p.n_kv + kBackKeys - 1) / kBackKeys;
  const float scale = static_cast<float>(p.logit_scale());
  parallel_for(heads * groups_, [&](Index item, int thread) {
    const Index bh = item % heads, group = item / heads;
    float* place = scratch_.data() + thread * scratch_floats_;
    const auto carve = [&](Index floats) { return std::exchange(place, place + floats); };
    Scratch scratch{};
    scratch.q = carve(kBackRows * wide_k_);
    scratch.dout = carve(kBackRows * wide_v_);
    scratch.scores = carve(kBackRows * kBackKeys);
    scratch.dscores = carve(kBackRows * kBackKeys);
    scratch.dk = carve(kBackKeys * wide_k_);
    scratch.dv = carve(kBackKeys * wide_v_);
    float* const dq = dq_parts_.data() + (bh * groups_ + group) * padded_n * wide_k_;
    std::fill_n(dq, padded_n * wide_k_, 0.0f);
    // Interleaved blocks: every group gets early (long) and late (short) ones of a causal pattern.
    for (Index block = group; block < blocks; block += groups_) {
      const Index j0 = block * kBackKeys, count = std::min(kBackKeys, p.n_kv - j0);
      backward_block(head(in, bh), bh, j0, scratch, dout_rows + bh * p.n * wide_v_,
                     row_lse + bh * p.n, dq);
      for (Index j = 0; j < count; ++j) {
        float* const dk = grads.dk.data() + (bh * p.n_kv + j0 + j) * p.d_k;
        float* const dv = grads.dv.data() + (bh * p.n_kv + j0 + j) * p.d_v;
        for (Index c = 0; c < p.d_k; ++c) dk[c] = scale * scratch.dk[j * wide_k_ + c];
        for (Index c = 0; c < p.d_v; ++c) dv[c] = scratch.dv[j * wide_v_ + c];
      }
    }
  });
  parallel_for(heads * row_items, [&](Index item, int) {
    const Index bh = item / row_items, first = item % row_items * kRowsPerItem;
    const Index count = std::min(kRowsPerItem, p.n - first);
    for (Index i = first; i < first + count; ++i) {
      float* const dq = grads.dq.data() + (bh * p.n + i) * p.d_k;
      for (Index c = 0; c < p.d_k; ++c) dq[c] = 0;
      for (Index group = 0; group < groups_; ++group) {
        const float* const part =
            dq_parts_.data() + ((bh * groups_ + group) * padded_n + i) * wide_k_;
        for (Index c = 0; c < p.d_k; ++c) dq[c] += part[c];
      }
      for (Index c = 0; c < p.d_k; ++c) dq[c] *= scale;
    }
  });
}

// Gradients that pass through the keys [j0, j0 + kBackKeys): dk, dv (tiles of the scratch) and the
// contribution to dq (added to dq_rows [n, wide_k]).
void TiledAttention::backward_block(const Head& h, Index bh, Index j0, Scratch& scratch,
                                    const float* dout, const float* lse, float* dq_rows) const {
  const Problem& p = problem_;
  const Index width = std::min(kBackKeys, p.n_kv - j0);
  std::fill_n(scratch.dk, kBackKeys * wide_k_, 0.0f);
  std::fill_n(scratch.dv, kBackKeys * wide_v_, 0.0f);
  for_stripes_of_keys(bh, j0 / kBackKeys, [&](const Stripe& stripe) {
    if (stripe.k_end <= j0 || stripe.k_begin >= j0 + width) return;
    // Queries that see a key of this block, in tiles that start with the stripe.
    const Index from = std::max(stripe.q_begin, j0 - stripe.hi + 1) - stripe.q_begin;
    const Index to = std::min({p.n, stripe.q_end, j0 + width - stripe.lo});
    for (Index i0 = stripe.q_begin + from / kBackRows * kBackRows; i0 < to; i0 += kBackRows)
      backward_tile(h, stripe, i0, std::min({kBackRows, p.n - i0, stripe.q_end - i0}), j0, scratch,
                    dout, lse, dq_rows + i0 * wide_k_);
  });
}

// The part of the queries [i0, i0 + rows); dq points to the accumulator's row i0.
void TiledAttention::backward_tile(const Head& h, const Stripe& stripe, Index i0, Index rows,
                                   Index j0, Scratch& scratch, const float* dout, const float* lse,
                                   float* dq) const {
  const Problem& p = problem_;
  const Index width = std::min(kBackKeys, p.n_kv - j0);
  const float* const key_panels = h.key_panels + j0 / kPanel * p.d_k * kPanel;
  const float* const value_panels = h.value_panels + j0 / kPanel * p.d_v * kPanel;
  float* const scores = scratch.scores;
  float* const dscores = scratch.dscores;
  Bounds bounds[kBackRows];
  const Bounds tile = row_bounds(stripe, i0, rows, j0, width, bounds, kBackRows);
  if (tile.lo >= tile.hi) return;
  const Bounds whole{tile.lo / kRowUnit * kRowUnit, round_up(tile.hi, kRowUnit)};
  const float* q = h.queries + i0 * wide_k_;
  const float* g = dout + i0 * wide_v_;
  if (rows < kBackRows) {
    const Index used = round_up(rows, kRowUnit);
    std::copy_n(q, rows * wide_k_, scratch.q);
    std::fill_n(scratch.q + rows * wide_k_, (used - rows) * wide_k_, 0.0f);
    std::copy_n(g, rows * wide_v_, scratch.dout);
    std::fill_n(scratch.dout + rows * wide_v_, (used - rows) * wide_v_, 0.0f);
    q = scratch.q;
    g = scratch.dout;
  }
  score_product(q, wide_k_, p.d_k, key_panels, bounds, kBackRows, scores, kBackKeys);
  score_product(g, wide_v_, p.d_v, value_panels, bounds, kBackRows, dscores, kBackKeys);
  for (Index r = 0; r < kBackRows; ++r) {
    float* const s = scores + r * kBackKeys;
    float* const ds = dscores + r * kBackKeys;
    const Bounds b = bounds[r];
    const float row_lse = r < rows ? lse[i0 + r] : -kInfinity;
    if (b.lo >= b.hi || row_lse == -kInfinity) {
      std::fill(s + whole.lo, s + whole.hi, 0.0f);
      std::fill(ds + whole.lo, ds + whole.hi, 0.0f);
      continue;
    }
    const Bounds kept = mask_row(s, b, h.bias == nullptr ? nullptr : h.bias + j0, -kInfinity);
    const Vec shift = broadcast(row_lse * kLog2e), delta = broadcast(h.delta[i0 + r]);
    for (Index j = kept.lo; j < kept.hi; j += kLanes) {
      const Vec weight = exp2_nonpositive(load(s + j) - shift);
      store(s + j, weight);
      // Weights of zero must win over whatever stands outside the bounds.
      store(ds + j, weight == 0.0f ? Vec{} : weight * (load(ds + j) - delta));
    }
    std::fill(s + whole.lo, s + std::max(kept.lo, whole.lo), 0.0f);
    std::fill(ds + whole.lo, ds + std::max(kept.lo, whole.lo), 0.0f);
    if (kept.hi < whole.hi) {
      std::fill(s + kept.hi, s + whole.hi, 0.0f);
      std::fill(ds + kept.hi, ds + whole.hi, 0.0f);
    }
  }
  // dv += weights^T dout, dk += dscores^T q: rows that see no key of a block of keys are left
  // out.
  const auto transposed = [&](const float* a, const float* b, Index wide, float* to_rows) {
    for_column_blocks(wide, [&](Index c, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int kRows = product_rows(kVectors);
      for (Index j = whole.lo; j < whole.hi; j += kRows) {
        Index first = 0, last = rows;
        while (first < last && (bounds[first].lo >= j + kRows || bounds[first].hi <= j)) ++first;
        while (last > first && (bounds[last - 1].lo >= j + kRows || bounds[last - 1].hi <= j))
          --last;
        if (first < last)
          product_block<kRows, kVectors, true>(a + first * kBackKeys + j, 1, kBackKeys,
                                               last - first, b + first * wide + c, wide,
                                               to_rows + j * wide + c, wide);
      }
    });
  };
  transposed(scores, g, wide_v_, scratch.dv);
  transposed(dscores, q, wide_k_, scratch.dk);
  // dq += dscores k
  for_column_blocks(wide_k_, [&](Index c, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr int kRows = product_rows(kVectors);
    for (Index r = 0; r < kBackRows; r += kRows) {
      const Bounds b = union_of(bounds + r, kRows);
      if (b.lo < b.hi)
        product_block<kRows, kVectors, true>(dscores + r * kBackKeys + b.lo, kBackKeys, 1,
                                             b.hi - b.lo, h.keys + (j0 + b.lo) * wide_k_ + c,
                                             wide_k_, dq + r * wide_k_ + c, wide_k_);
    }
  });
}

}  // namespace subquad
