#include "methods/engines/tiled_attention.h"

#include <cmath>

#include "methods/engines/tiled_attention_detail.h"

namespace subquad {

// Floats of every buffer, from the problem alone (and the threads for the scratch).
struct TiledAttention::Sizes {
  Index wide_k, wide_v, panels, groups = 1;
  Index key_panels, value_panels = 0, keys = 0, values = 0, queries = 0, douts = 0, delta = 0,
                    dq_parts = 0, key_norms, scratch;

  Sizes(const Problem& p, bool gradients) {
    const Index heads = p.batch * p.heads;
    wide_k = round_up(p.d_k, kLanes);
    wide_v = round_up(p.d_v, kLanes);
    panels = (p.n_kv + kPanel - 1) / kPanel;
    key_panels = heads * panels * p.d_k * kPanel;
    key_norms = heads * ((panels + kPackedPanels - 1) / kPackedPanels);
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
    dq_parts = heads * groups * padded_rows(p.n) * wide_k;
    scratch = kBackRows * (wide_k + wide_v + 2 * kBackKeys) + kBackKeys * (wide_k + wide_v);
    scratch = std::max(scratch, kTileRows * (wide_k + 2 * wide_v + kTileKeys));
  }
  Index total(int threads) const {
    return key_panels + value_panels + keys + values + queries + douts + delta + dq_parts +
           key_norms + threads * scratch;
  }
};

// Listed stripes by the blocks of keys that they meet.
void TiledAttention::list_by_keys() {
  key_starts_.clear();
  by_keys_.clear();
  if (pattern_.query_block == 0) return;
  const Index blocks = (problem_.n_kv + kBackKeys - 1) / kBackKeys;
  for (Index h = 0; h < pattern_.listed_heads; ++h) {
    const auto begin = pattern_.starts[static_cast<std::size_t>(h * pattern_.blocks)];
    const auto end = pattern_.starts[static_cast<std::size_t>((h + 1) * pattern_.blocks)];
    for (Index block = 0; block < blocks; ++block) {
      key_starts_.push_back(static_cast<Index>(by_keys_.size()));
      for (Index x = begin; x < end; ++x) {
        const Stripe& s = pattern_.listed[static_cast<std::size_t>(x)];
        if (s.k_begin < (block + 1) * kBackKeys && s.k_end > block * kBackKeys)
          by_keys_.push_back(x);
      }
    }
  }
  key_starts_.push_back(static_cast<Index>(by_keys_.size()));
}

Index TiledAttention::tiles() const {
  const Index block = pattern_.query_block, n = problem_.n;
  if (block == 0) return (n + kTileRows - 1) / kTileRows;
  const Index whole = n / block, rest = n % block;
  return whole * ((block + kTileRows - 1) / kTileRows) + (rest + kTileRows - 1) / kTileRows;
}

TiledAttention::Tile TiledAttention::tile(Index number) const {
  const Index block = pattern_.query_block, n = problem_.n;
  if (block == 0) return {number * kTileRows, std::min(kTileRows, n - number * kTileRows)};
  const Index per_block = (block + kTileRows - 1) / kTileRows;
  const Index begin = number / per_block * block, end = std::min(n, begin + block);
  const Index i0 = begin + number % per_block * kTileRows;
  return {i0, std::min(kTileRows, end - i0)};
}

void TiledAttention::prepare(const Problem& problem, Pattern pattern, bool gradients) {
  problem_ = problem;
  capacity_ = problem.n_kv;
  pattern_ = std::move(pattern);
  if (gradients) list_by_keys();
  const Sizes sizes(problem, gradients);
  wide_k_ = sizes.wide_k;
  wide_v_ = sizes.wide_v;
  panels_ = sizes.panels;
  groups_ = sizes.groups;
  scratch_floats_ = sizes.scratch;
  key_norms_ = AlignedArray<float>(sizes.key_norms);
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

void TiledAttention::shorten(Index n) {
  SUBQUAD_CHECK(problem_.n == problem_.n_kv && n <= capacity_ && pattern_.query_block == 0,
                "n={} of {} prepared", n, capacity_);
  problem_.n = problem_.n_kv = n;
  panels_ = (n + kPanel - 1) / kPanel;
}

double TiledAttention::work_bytes(const Problem& problem, const Pattern& pattern, bool gradients) {
  return pattern.bytes() +
         4.0 * static_cast<double>(Sizes(problem, gradients).total(thread_count()));
}

double TiledAttention::flops(const Problem& p, const Pattern& pattern, Pass pass) {
  const double pairs = 2.0 * static_cast<double>(p.batch) * pattern.entries(p.heads);
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

void TiledAttention::pack(const Inputs& in, bool gradients) {
  const Problem& p = problem_;
  const Index heads = p.batch * p.heads;
  const bool masked = !in.key_mask.empty();
  if (masked) {  // copies with zeroed rows; made on first use, masks are not known in prepare
    if (values_.size() == 0) values_ = AlignedArray<float>(heads * capacity_ * wide_v_);
    if (gradients && keys_.size() == 0) keys_ = AlignedArray<float>(heads * capacity_ * wide_k_);
    if (bias_.size() == 0) bias_ = AlignedArray<float>(p.batch * round_up(capacity_, kPanel));
    for (Index b = 0; b < p.batch; ++b)
      for (Index j = 0; j < panels_ * kPanel; ++j)
        bias_[b * panels_ * kPanel + j] =
            j < p.n_kv && in.key_mask[static_cast<std::size_t>(b * p.n_kv + j)] == 0 ? -kInfinity
                                                                                     : 0.0f;
  }
  copy_values_ = masked || wide_v_ != p.d_v;
  copy_keys_ = gradients && (masked || wide_k_ != p.d_k);
  const float factor = static_cast<float>(p.logit_scale()) * kLog2e;
  const Index chunks = (panels_ + kPackedPanels - 1) / kPackedPanels;
  parallel_for(heads * chunks, [&](Index item, int) {
    const Index bh = item / chunks, chunk = item % chunks;
    const std::uint8_t* const mask = masked ? in.key_mask.data() + bh / p.heads * p.n_kv : nullptr;
    const float* const k = in.k.data() + bh * p.n_kv * p.d_k;
    const float* const v = in.v.data() + bh * p.n_kv * p.d_v;
    const Index end = std::min(panels_, (chunk + 1) * kPackedPanels);
    Vec norms{};
    for (Index panel = chunk * kPackedPanels; panel < end; ++panel) {
      float* const packed = key_panels_.data() + (bh * panels_ + panel) * p.d_k * kPanel;
      pack_panel(k, p.n_kv, p.d_k, panel, factor, mask, packed);
      norms = max(norms, panel_norms(packed, p.d_k));
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
    key_norms_[item] = horizontal_max(norms);
  });
  if (thread_count() * scratch_floats_ > scratch_.size())
    scratch_ = AlignedArray<float>(thread_count() * scratch_floats_);
}

TiledAttention::Head TiledAttention::head(const Inputs& in, Index bh) const {
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
  const Index chunks = (panels_ + kPackedPanels - 1) / kPackedPanels;
  h.key_norm =
      *std::max_element(key_norms_.data() + bh * chunks, key_norms_.data() + (bh + 1) * chunks);
  h.delta = delta_.size() > 0 ? delta_.data() + bh * p.n : nullptr;
  return h;
}

void TiledAttention::forward(const Inputs& in, TensorView out, float* row_lse) {
  pack(in, false);
  const Problem& p = problem_;
  const Index count = tiles(), heads = p.batch * p.heads;
  parallel_for(heads * count, [&](Index item, int thread) {
    // Head after head, so that its keys stay in the cache; last tiles first, which in causal
    // patterns are the long ones: the queue ends with short items.
    const Index bh = item / count;
    const Tile place_of = tile(count - 1 - item % count);
    float* place = scratch_.data() + thread * scratch_floats_;
    Scratch scratch{};
    const auto carve = [&](Index floats) { return std::exchange(place, place + floats); };
    scratch.q = carve(kTileRows * wide_k_);
    scratch.scores = carve(kTileRows * kTileKeys);
    scratch.out = carve(kTileRows * wide_v_);
    forward_tile(head(in, bh), bh, place_of, scratch, out.data() + (bh * p.n + place_of.i0) * p.d_v,
                 row_lse == nullptr ? nullptr : row_lse + bh * p.n + place_of.i0);
  });
}

void TiledAttention::forward_tile(const Head& h, Index bh, Tile tile_of_rows, Scratch& scratch,
                                  float* out, float* lse) const {
  const Problem& p = problem_;
  const auto [i0, rows] = tile_of_rows;
  const float* q = h.q + i0 * p.d_k;
  if (rows < kTileRows) {  // the register blocks read whole tiles
    std::copy_n(q, rows * p.d_k, scratch.q);
    std::fill_n(scratch.q + rows * p.d_k, (kTileRows - rows) * p.d_k, 0.0f);
    q = scratch.q;
  }
  // Lanes are summed at the end, and maxima of kLanes rows reduced together: horizontal steps cost
  // as much as two vectors of exponentials each.
  constexpr Index kReduced = (kTileRows + kLanes - 1) / kLanes * kLanes;
  float maximum[kTileRows], largest[kReduced];
  Vec sum[kTileRows], lanes[kReduced];
  Bounds whole[kTileRows];
  std::fill_n(maximum, kTileRows, -kInfinity);
  std::fill_n(sum, kTileRows, Vec{});
  std::fill_n(scratch.out, kTileRows * wide_v_, 0.0f);

  float longest = 0;  // squared norm of a query
  for (Index r = 0; r < rows; ++r)
    longest =
        std::max(longest, Eigen::Map<const Eigen::VectorXf>(q + r * p.d_k, p.d_k).squaredNorm());
  const bool bounded = h.bias == nullptr && longest * h.key_norm <= kBoundedScore * kBoundedScore;
  if (bounded) std::fill_n(maximum, kTileRows, 0.0f);

  Bounds bounds[kTileRows];
  for_stripes(bh, i0, [&, i0 = i0, rows = rows](const Stripe& stripe) {
    const Bounds reach = row_bounds(stripe, i0, rows, 0, p.n_kv, bounds, kTileRows);
    for (Index j0 = reach.lo / kPanel * kPanel; j0 < reach.hi; j0 += kTileKeys) {
      const Bounds tile =
          row_bounds(stripe, i0, rows, j0, std::min(kTileKeys, p.n_kv - j0), bounds, kTileRows);
      if (tile.lo >= tile.hi) continue;
      const float* const panels = h.key_panels + j0 / kPanel * p.d_k * kPanel;
      if (bounded) {
        bounded_weights(q, p.d_k, p.d_k, panels, bounds, kTileRows, scratch.scores, kTileKeys, sum);
        weighted_rows(scratch.scores, kTileKeys, bounds, kTileRows, h.values + j0 * wide_v_,
                      wide_v_, scratch.out);
        continue;
      }
      score_product(q, p.d_k, p.d_k, panels, bounds, kTileRows, scratch.scores, kTileKeys);
      std::fill_n(lanes, kReduced, broadcast(-kInfinity));
      for (Index r = 0; r < rows; ++r) {
        if (bounds[r].lo >= bounds[r].hi) continue;
        float* const row = scratch.scores + r * kTileKeys;
        whole[r] = mask_row(row, bounds[r], h.bias == nullptr ? nullptr : h.bias + j0, -kInfinity);
        lanes[r] = row_max(row, whole[r]);
      }
      for (Index r = 0; r < kReduced; r += kLanes)
        store(largest + r, reduce_each(lanes + r, [](Vec a, Vec b) { return max(a, b); }));
      for (Index r = 0; r < rows; ++r) {
        if (bounds[r].lo >= bounds[r].hi) continue;
        if (largest[r] > maximum[r]) {
          const float shift = whole_shift(largest[r]), factor = std::exp2(maximum[r] - shift);
          sum[r] *= factor;
          for (Index c = 0; c < wide_v_; c += kLanes)
            store(scratch.out + r * wide_v_ + c, load(scratch.out + r * wide_v_ + c) * factor);
          maximum[r] = shift;
        }
        // With every key masked so far the weights are zero; the shape of the product stays the
        // same, since its rounding must not depend on values.
        sum[r] = exponentiate(scratch.scores + r * kTileKeys, whole[r],
                              maximum[r] == -kInfinity ? 0.0f : maximum[r], sum[r]);
      }
      weighted_rows(scratch.scores, kTileKeys, bounds, kTileRows, h.values + j0 * wide_v_, wide_v_,
                    scratch.out);
    }
  });
  for (Index r = 0; r < rows; ++r) {
    const float total = horizontal_sum(sum[r]);
    const bool empty = total == 0;
    const float factor = empty ? 0.0f : 1.0f / total;
    for (Index c = 0; c < p.d_v; ++c) out[r * p.d_v + c] = scratch.out[r * wide_v_ + c] * factor;
    if (lse != nullptr) {  // mantissa and exponent apart: the same bits for any shift
      int exponent = 0;
      const float mantissa = std::frexp(total, &exponent);
      lse[r] = empty ? -kInfinity
                     : kLn2 * (maximum[r] + static_cast<float>(exponent) + std::log2(mantissa));
    }
  }
}

}  // namespace subquad
