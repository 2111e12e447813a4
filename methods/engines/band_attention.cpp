#include "methods/engines/band_attention.h"

#include <cmath>
#include <utility>

#include "harness/core/parallel.h"
#include "methods/engines/pack.h"
#include "methods/engines/score_tile.h"

namespace subquad {

using namespace engine;

namespace {

// Forward tile: 24 queries x 768 keys of scores (72 KiB) stay in L2 together with the values.
constexpr Index kTileRows = kRowUnit;
constexpr Index kTileKeys = kPanel * (768 / kPanel);
// Backward tile: 96 x 192; the longer side of queries keeps the transposed products long.
constexpr Index kBackRows = 4 * kRowUnit;
constexpr Index kBackKeys = kPanel * (192 / kPanel);

// The bounds of rows i0 .. i0+rows-1 of a stripe within columns [j0, j0 + width); returns their
// union.
template <class Stripe>
Bounds row_bounds(const Stripe& stripe, Index i0, Index rows, Index j0, Index width, Bounds* bounds,
                  Index tile_rows) {
  for (Index r = 0; r < tile_rows; ++r) {
    Bounds b;
    if (r < rows) {
      b.lo = std::clamp<Index>(stripe.first(i0 + r) - j0, 0, width);
      b.hi = std::clamp<Index>(stripe.last(i0 + r) - j0, 0, width);
    }
    bounds[r] = b.lo < b.hi ? b : Bounds{};
  }
  return union_of(bounds, tile_rows);
}

}  // namespace

// Pointers of one head.
struct BandAttention::Head {
  const float* q;             // [n, d_k]
  const float* key_panels;    // [panels, d_k, kPanel]
  const float* value_panels;  // [panels, d_v, kPanel]
  const float* keys;          // [n_kv, wide_k]
  const float* values;        // [n_kv, wide_v]
  const float* queries;       // [n, wide_k]
  const float* bias;          // [panels * kPanel] or null
  const float* delta;         // [n]
};

// Per-thread memory, carved out of scratch_.
struct BandAttention::Scratch {
  float* q;        // [tile rows, wide_k]
  float* dout;     // [tile rows, wide_v]
  float* scores;   // [tile rows, tile keys]
  float* dscores;  // the same
  float* out;      // [tile rows, wide_v]
  float* dk;       // [tile keys, wide_k]
  float* dv;       // [tile keys, wide_v]
};

// Floats of every buffer, from the problem alone (and the threads for the scratch).
struct BandAttention::Sizes {
  Index wide_k, wide_v, panels, groups = 1;
  Index key_panels, value_panels = 0, keys = 0, values = 0, queries = 0, douts = 0, delta = 0,
                    dq_parts = 0, scratch;

  Sizes(const Problem& p, bool gradients) {
    const Index heads = p.batch * p.heads;
    wide_k = round_up(p.d_k, kLanes);
    wide_v = round_up(p.d_v, kLanes);
    panels = (p.n_kv + kPanel - 1) / kPanel;
    key_panels = heads * panels * p.d_k * kPanel;
    if (wide_v != p.d_v) values = heads * p.n_kv * wide_v;
    if (!gradients) {
      scratch = kTileRows * (wide_k + 2 * wide_v + kTileKeys);
      return;
    }
    // Groups of keys have dq accumulators of their own, so that one head keeps several threads
    // busy; their number depends on the problem alone, and so do the bits of the result.
    groups = std::clamp<Index>((8 + heads - 1) / heads, 1, (p.n_kv + kBackKeys - 1) / kBackKeys);
    value_panels = heads * panels * p.d_v * kPanel;
    if (wide_k != p.d_k) keys = heads * p.n_kv * wide_k;
    if (wide_k != p.d_k) queries = heads * p.n * wide_k;
    if (wide_v != p.d_v) douts = heads * p.n * wide_v;
    delta = heads * p.n;
    dq_parts = heads * groups * round_up(p.n, kBackRows) * wide_k;
    scratch = kBackRows * (wide_k + wide_v + 2 * kBackKeys) + kBackKeys * (wide_k + wide_v);
    scratch = std::max(scratch, kTileRows * (wide_k + 2 * wide_v + kTileKeys));
  }
  Index total(int threads) const {
    return key_panels + value_panels + keys + values + queries + douts + delta + dq_parts +
           threads * scratch;
  }
};

std::vector<BandAttention::Stripe> BandAttention::stripes(const Band& band) {
  std::vector<Stripe> list;
  const Index far = band.n + band.n_kv;
  if (band.sinks > 0)
    list.push_back({0, std::min(band.sinks, band.n_kv), -far, band.causal ? band.offset + 1 : far});
  list.push_back({band.sinks, band.n_kv, band.offset - band.before, band.offset + band.after + 1});
  return list;
}

void BandAttention::prepare(const Problem& problem, const Band& band, bool gradients) {
  problem_ = problem;
  stripes_ = stripes(band);
  const Sizes sizes(problem, gradients);
  wide_k_ = sizes.wide_k;
  wide_v_ = sizes.wide_v;
  panels_ = sizes.panels;
  groups_ = sizes.groups;
  scratch_floats_ = sizes.scratch;
  key_panels_ = AlignedArray<float>(sizes.key_panels);
  value_panels_ = AlignedArray<float>(sizes.value_panels);
  keys_ = AlignedArray<float>(sizes.keys);
  values_ = AlignedArray<float>(sizes.values);
  queries_ = AlignedArray<float>(sizes.queries);
  douts_ = AlignedArray<float>(sizes.douts);
  delta_ = AlignedArray<float>(sizes.delta);
  dq_parts_ = AlignedArray<float>(sizes.dq_parts);
  bias_ = {};
  scratch_ = AlignedArray<float>(thread_count() * scratch_floats_);
}

double BandAttention::work_bytes(const Problem& problem, const Band&, bool gradients) {
  return 4.0 * static_cast<double>(Sizes(problem, gradients).total(thread_count()));
}

double BandAttention::flops(const Problem& p, const Band& band, Pass pass) {
  const double pairs = 2.0 * static_cast<double>(p.batch * p.heads) * band.entries();
  const double d_k = static_cast<double>(p.d_k), d_v = static_cast<double>(p.d_v);
  switch (pass) {
    case Pass::forward:
      return pairs * (d_k + d_v);
    case Pass::backward:
      return pairs * (3 * d_k + 2 * d_v);
    case Pass::forward_backward:
      return pairs * (4 * d_k + 3 * d_v);
    case Pass::decode:
      return 2.0 * static_cast<double>(p.batch * p.heads * p.n_kv) * (d_k + d_v);
    default:
      return 0;
  }
}

void BandAttention::pack(const Inputs& in, bool gradients) {
  const Problem& p = problem_;
  const Index heads = p.batch * p.heads;
  const bool masked = !in.key_mask.empty();
  if (masked) {  // copies with zeroed rows; made on first use, masks are not known in prepare
    if (values_.size() == 0) values_ = AlignedArray<float>(heads * p.n_kv * wide_v_);
    if (gradients && keys_.size() == 0) keys_ = AlignedArray<float>(heads * p.n_kv * wide_k_);
    if (bias_.size() == 0) bias_ = AlignedArray<float>(p.batch * panels_ * kPanel);
    for (Index b = 0; b < p.batch; ++b)
      for (Index j = 0; j < panels_ * kPanel; ++j)
        bias_[b * panels_ * kPanel + j] =
            j < p.n_kv && in.key_mask[static_cast<std::size_t>(b * p.n_kv + j)] == 0 ? -kInfinity
                                                                                     : 0.0f;
  }
  copy_values_ = masked || wide_v_ != p.d_v;
  copy_keys_ = gradients && (masked || wide_k_ != p.d_k);
  const float factor = static_cast<float>(p.logit_scale()) * kLog2e;
  constexpr Index kChunk = 8;  // panels per item
  const Index chunks = (panels_ + kChunk - 1) / kChunk;
  parallel_for(heads * chunks, [&](Index item, int) {
    const Index bh = item / chunks, chunk = item % chunks;
    const std::uint8_t* const mask = masked ? in.key_mask.data() + bh / p.heads * p.n_kv : nullptr;
    const float* const k = in.k.data() + bh * p.n_kv * p.d_k;
    const float* const v = in.v.data() + bh * p.n_kv * p.d_v;
    const Index end = std::min(panels_, (chunk + 1) * kChunk);
    for (Index panel = chunk * kChunk; panel < end; ++panel) {
      pack_panel(k, p.n_kv, p.d_k, panel, factor, mask,
                 key_panels_.data() + (bh * panels_ + panel) * p.d_k * kPanel);
      if (gradients)
        pack_panel(v, p.n_kv, p.d_v, panel, 1.0f, mask,
                   value_panels_.data() + (bh * panels_ + panel) * p.d_v * kPanel);
      const Index first = panel * kPanel, count = std::min<Index>(kPanel, p.n_kv - first);
      const std::uint8_t* const part = mask == nullptr ? nullptr : mask + first;
      if (copy_values_)
        pack_rows(v + first * p.d_v, count, p.d_v, wide_v_, part,
                  values_.data() + (bh * p.n_kv + first) * wide_v_);
      if (copy_keys_)
        pack_rows(k + first * p.d_k, count, p.d_k, wide_k_, part,
                  keys_.data() + (bh * p.n_kv + first) * wide_k_);
    }
  });
  if (thread_count() * scratch_floats_ > scratch_.size())
    scratch_ = AlignedArray<float>(thread_count() * scratch_floats_);
}

BandAttention::Head BandAttention::head(const Inputs& in, Index bh) const {
  const Problem& p = problem_;
  Head h{};
  h.q = in.q.data() + bh * p.n * p.d_k;
  h.key_panels = key_panels_.data() + bh * panels_ * p.d_k * kPanel;
  h.value_panels =
      value_panels_.data() + (value_panels_.size() > 0 ? bh * panels_ * p.d_v * kPanel : 0);
  h.keys = copy_keys_ ? keys_.data() + bh * p.n_kv * wide_k_ : in.k.data() + bh * p.n_kv * p.d_k;
  h.values =
      copy_values_ ? values_.data() + bh * p.n_kv * wide_v_ : in.v.data() + bh * p.n_kv * p.d_v;
  h.queries = queries_.size() > 0 ? queries_.data() + bh * p.n * wide_k_ : h.q;
  h.bias = in.key_mask.empty() ? nullptr : bias_.data() + bh / p.heads * panels_ * kPanel;
  h.delta = delta_.size() > 0 ? delta_.data() + bh * p.n : nullptr;
  return h;
}

void BandAttention::forward(const Inputs& in, TensorView out, float* row_lse) {
  pack(in, false);
  const Problem& p = problem_;
  const Index tiles = (p.n + kTileRows - 1) / kTileRows, heads = p.batch * p.heads;
  parallel_for(heads * tiles, [&](Index item, int thread) {
    // Head after head, so that its keys stay in the cache; last tiles first, which in causal
    // patterns are the long ones: the queue ends with short items.
    const Index bh = item / tiles, i0 = (tiles - 1 - item % tiles) * kTileRows;
    float* place = scratch_.data() + thread * scratch_floats_;
    Scratch scratch{};
    const auto carve = [&](Index floats) { return std::exchange(place, place + floats); };
    scratch.q = carve(kTileRows * wide_k_);
    scratch.scores = carve(kTileRows * kTileKeys);
    scratch.out = carve(kTileRows * wide_v_);
    forward_tile(head(in, bh), i0, scratch, out.data() + (bh * p.n + i0) * p.d_v,
                 row_lse == nullptr ? nullptr : row_lse + bh * p.n + i0);
  });
}

void BandAttention::forward_tile(const Head& h, Index i0, Scratch& scratch, float* out,
                                 float* lse) const {
  const Problem& p = problem_;
  const Index rows = std::min(kTileRows, p.n - i0);
  const float* q = h.q + i0 * p.d_k;
  if (rows < kTileRows) {  // the register blocks read whole tiles
    std::copy_n(q, rows * p.d_k, scratch.q);
    std::fill_n(scratch.q + rows * p.d_k, (kTileRows - rows) * p.d_k, 0.0f);
    q = scratch.q;
  }
  float maximum[kTileRows], sum[kTileRows];
  std::fill_n(maximum, kTileRows, -kInfinity);
  std::fill_n(sum, kTileRows, 0.0f);
  std::fill_n(scratch.out, kTileRows * wide_v_, 0.0f);

  Bounds bounds[kTileRows];
  for (const Stripe& stripe : stripes_) {
    const Bounds reach = row_bounds(stripe, i0, rows, 0, p.n_kv, bounds, kTileRows);
    for (Index j0 = reach.lo / kPanel * kPanel; j0 < reach.hi; j0 += kTileKeys) {
      const Bounds tile =
          row_bounds(stripe, i0, rows, j0, std::min(kTileKeys, p.n_kv - j0), bounds, kTileRows);
      if (tile.lo >= tile.hi) continue;
      score_product(q, p.d_k, p.d_k, h.key_panels + j0 / kPanel * p.d_k * kPanel, bounds, kTileRows,
                    scratch.scores, kTileKeys);
      for (Index r = 0; r < rows; ++r) {
        if (bounds[r].lo >= bounds[r].hi) continue;
        float* const row = scratch.scores + r * kTileKeys;
        const Bounds whole =
            mask_row(row, bounds[r], h.bias == nullptr ? nullptr : h.bias + j0, -kInfinity);
        const float largest = std::max(maximum[r], row_max(row, whole));
        if (largest > maximum[r]) {
          const float factor = std::exp2(maximum[r] - largest);
          sum[r] *= factor;
          for (Index c = 0; c < wide_v_; c += kLanes)
            store(scratch.out + r * wide_v_ + c, load(scratch.out + r * wide_v_ + c) * factor);
          maximum[r] = largest;
        }
        // With every key masked so far the weights are zero; the shape of the product stays the
        // same, since its rounding must not depend on values.
        sum[r] += exponentiate(row, whole, maximum[r] == -kInfinity ? 0.0f : maximum[r]);
      }
      weighted_rows(scratch.scores, kTileKeys, bounds, kTileRows, h.values + j0 * wide_v_, wide_v_,
                    scratch.out);
    }
  }
  for (Index r = 0; r < rows; ++r) {
    const bool empty = maximum[r] == -kInfinity && sum[r] == 0;
    const float factor = empty ? 0.0f : 1.0f / sum[r];
    for (Index c = 0; c < p.d_v; ++c) out[r * p.d_v + c] = scratch.out[r * wide_v_ + c] * factor;
    if (lse != nullptr) lse[r] = empty ? -kInfinity : kLn2 * (maximum[r] + std::log2(sum[r]));
  }
}

void BandAttention::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                             const float* row_lse, const Gradients& grads) {
  pack(in, true);
  const Problem& p = problem_;
  const Index heads = p.batch * p.heads, padded_n = round_up(p.n, kBackRows);
  // delta = rowsum(dout * out); rows of whole vectors where the widths are ragged.
  constexpr Index kRowsPerItem = 256;
  const Index row_items = (p.n + kRowsPerItem - 1) / kRowsPerItem;
  parallel_for(heads * row_items, [&](Index item, int) {
    const Index bh = item / row_items, first = item % row_items * kRowsPerItem;
    const Index count = std::min(kRowsPerItem, p.n - first), place = bh * p.n + first;
    for (Index i = place; i < place + count; ++i) {
      float sum = 0;
      for (Index c = 0; c < p.d_v; ++c)
        sum += dout.data()[i * p.d_v + c] * out.data()[i * p.d_v + c];
      delta_[i] = sum;
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
      backward_block(head(in, bh), j0, scratch, dout_rows + bh * p.n * wide_v_, row_lse + bh * p.n,
                     dq);
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
void BandAttention::backward_block(const Head& h, Index j0, Scratch& scratch, const float* dout,
                                   const float* lse, float* dq_rows) const {
  const Problem& p = problem_;
  const Index width = std::min(kBackKeys, p.n_kv - j0);
  const float* const key_panels = h.key_panels + j0 / kPanel * p.d_k * kPanel;
  const float* const value_panels = h.value_panels + j0 / kPanel * p.d_v * kPanel;
  float* const scores = scratch.scores;
  float* const dscores = scratch.dscores;
  std::fill_n(scratch.dk, kBackKeys * wide_k_, 0.0f);
  std::fill_n(scratch.dv, kBackKeys * wide_v_, 0.0f);
  Bounds bounds[kBackRows];
  for (const Stripe& stripe : stripes_) {
    if (stripe.k_end <= j0 || stripe.k_begin >= j0 + width) continue;
    // Queries that see a key of this block.
    const Index from = std::max<Index>(0, j0 - stripe.hi + 1);
    const Index to = std::min(p.n, j0 + width - stripe.lo);
    for (Index i0 = from / kBackRows * kBackRows; i0 < to; i0 += kBackRows) {
      const Index rows = std::min(kBackRows, p.n - i0);
      const Bounds tile = row_bounds(stripe, i0, rows, j0, width, bounds, kBackRows);
      if (tile.lo >= tile.hi) continue;
      const Bounds whole{tile.lo / kRowUnit * kRowUnit, round_up(tile.hi, kRowUnit)};
      const float* q = h.queries + i0 * wide_k_;
      const float* g = dout + i0 * wide_v_;
      if (rows < kBackRows) {
        std::copy_n(q, rows * wide_k_, scratch.q);
        std::fill_n(scratch.q + rows * wide_k_, (kBackRows - rows) * wide_k_, 0.0f);
        std::copy_n(g, rows * wide_v_, scratch.dout);
        std::fill_n(scratch.dout + rows * wide_v_, (kBackRows - rows) * wide_v_, 0.0f);
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
            while (first < last && (bounds[first].lo >= j + kRows || bounds[first].hi <= j))
              ++first;
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
      float* const dq = dq_rows + i0 * wide_k_;
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
  }
}

}  // namespace subquad
