#include "methods/engines/tiled_attention.h"

#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/tile_product.h"

namespace subquad::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// Forward tile: 24 queries x 768 keys of scores (72 KiB) stay in L2 together with the values.
constexpr Index kTileRows = kRowUnit;
constexpr Index kTileKeys = kPanel * (768 / kPanel);
// Backward tile: 96 x 192; the longer side of queries keeps the transposed products long.
constexpr Index kBackRows = 4 * kRowUnit;
constexpr Index kBackKeys = kPanel * (192 / kPanel);
constexpr int kScoreRows = product_rows(kPanelVectors);

Index round_up(Index x, Index unit) { return (x + unit - 1) / unit * unit; }

// Columns [lo, hi) of a score tile that a row keeps; empty rows have lo == hi.
struct Bounds {
  Index lo = 0, hi = 0;
};

// The bounds of rows i0 .. i0+rows-1 within columns [j0, j0 + width); returns their union.
Bounds row_bounds(const Band& band, Index i0, Index rows, Index j0, Index width, Bounds* bounds,
                  Index tile_rows) {
  Bounds all{width, 0};
  for (Index r = 0; r < tile_rows; ++r) {
    const Index i = i0 + r;
    Bounds b;
    if (r < rows && i >= band.q_begin && i < band.q_end) {
      b.lo = std::clamp<Index>(band.first(i) - j0, 0, width);
      b.hi = std::clamp<Index>(band.last(i) - j0, 0, width);
      if (b.lo >= b.hi) b = {};
    }
    bounds[r] = b;
    if (b.lo < b.hi) {
      all.lo = std::min(all.lo, b.lo);
      all.hi = std::max(all.hi, b.hi);
    }
  }
  if (all.lo >= all.hi) all = {};
  return all;
}

Bounds union_of(const Bounds* bounds, Index rows) {
  Bounds all{kNoLimit, 0};
  for (Index r = 0; r < rows; ++r)
    if (bounds[r].lo < bounds[r].hi) {
      all.lo = std::min(all.lo, bounds[r].lo);
      all.hi = std::max(all.hi, bounds[r].hi);
    }
  return all.lo < all.hi ? all : Bounds{};
}

// scores[r, panel columns] = a[r, :] * panels, for the panels that a group of rows needs.
void score_product(const float* a, Index lda, Index depth, const float* panels,
                   const Bounds* bounds, Index tile_rows, float* scores, Index ld) {
  // Panels outside, rows inside: a panel is read from L2 once and stays in L1 for all rows.
  const Bounds all = union_of(bounds, tile_rows);
  if (all.lo >= all.hi) return;
  for (Index p = all.lo / kPanel; p * kPanel < all.hi; ++p)
    for (Index r = 0; r < tile_rows; r += kScoreRows) {
      const Bounds group = union_of(bounds + r, kScoreRows);
      if (group.hi <= p * kPanel || group.lo >= (p + 1) * kPanel) continue;
      product_block<kScoreRows, kPanelVectors, false>(a + r * lda, lda, 1, depth,
                                                      panels + p * depth * kPanel, kPanel,
                                                      scores + r * ld + p * kPanel, ld);
    }
}

// out[r, :] += weights[r, j] * rows[j, :] over the columns that row r keeps. Rows of a register
// block share the columns that all of them keep; the few others are added row by row, so that a
// value which a query must not see is never touched (not even times zero: it may be NaN).
void weighted_rows(const float* weights, Index ld, const Bounds* bounds, Index tile_rows,
                   const float* rows, Index width, float* out) {
  for_column_blocks(width, [&](Index c, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr int kRows = product_rows(kVectors);
    for (Index r0 = 0; r0 < tile_rows; r0 += kRows) {
      Bounds common{0, kNoLimit};
      for (Index r = r0; r < r0 + kRows; ++r) {
        if (bounds[r].lo >= bounds[r].hi) continue;
        common.lo = std::max(common.lo, bounds[r].lo);
        common.hi = std::min(common.hi, bounds[r].hi);
      }
      // Empty rows of the block have zero weights nowhere; they must not join the shared product.
      const bool whole = std::all_of(bounds + r0, bounds + r0 + kRows,
                                     [](const Bounds& b) { return b.lo < b.hi; });
      if (!whole || common.lo >= common.hi) common = {0, 0};
      if (common.lo < common.hi)
        product_block<kRows, kVectors, true>(weights + r0 * ld + common.lo, ld, 1,
                                             common.hi - common.lo, rows + common.lo * width + c,
                                             width, out + r0 * width + c, width);
      for (Index r = r0; r < r0 + kRows; ++r) {
        const bool shared = common.lo < common.hi;
        const auto add = [&](Index from, Index to) {
          if (from >= to) return;
          product_block<1, kVectors, true>(weights + r * ld + from, ld, 1, to - from,
                                           rows + from * width + c, width, out + r * width + c,
                                           width);
        };
        add(bounds[r].lo, shared ? common.lo : bounds[r].hi);
        if (shared) add(common.hi, bounds[r].hi);
      }
    }
  });
}

// Adds the bias of masked keys and sets what lies outside [b.lo, b.hi), up to whole vectors, to
// `outside`. Returns the bounds in whole vectors.
Bounds mask_row(float* row, Bounds b, const float* bias, float outside) {
  const Bounds whole{b.lo / kLanes * kLanes, round_up(b.hi, kLanes)};
  for (Index j = whole.lo; j < b.lo; ++j) row[j] = outside;
  for (Index j = b.hi; j < whole.hi; ++j) row[j] = outside;
  if (bias != nullptr)
    for (Index j = whole.lo; j < whole.hi; j += kLanes)
      store(row + j, load(row + j) + load(bias + j));
  return whole;
}

float row_max(const float* row, Bounds whole) {
  Vec m0 = load(row + whole.lo), m1 = m0, m2 = m0, m3 = m0;
  Index j = whole.lo;
  for (; j + 4 * kLanes <= whole.hi; j += 4 * kLanes) {
    m0 = max(m0, load(row + j));
    m1 = max(m1, load(row + j + kLanes));
    m2 = max(m2, load(row + j + 2 * kLanes));
    m3 = max(m3, load(row + j + 3 * kLanes));
  }
  for (; j < whole.hi; j += kLanes) m0 = max(m0, load(row + j));
  return horizontal_max(max(max(m0, m1), max(m2, m3)));
}

// row = 2^(row - shift); returns the sum.
float exponentiate(float* row, Bounds whole, float shift) {
  const Vec s = broadcast(shift);
  Vec sum0{}, sum1{};
  Index j = whole.lo;
  for (; j + 4 * kLanes <= whole.hi; j += 4 * kLanes) {
    const Vec e0 = exp2_nonpositive(load(row + j) - s);
    const Vec e1 = exp2_nonpositive(load(row + j + kLanes) - s);
    const Vec e2 = exp2_nonpositive(load(row + j + 2 * kLanes) - s);
    const Vec e3 = exp2_nonpositive(load(row + j + 3 * kLanes) - s);
    store(row + j, e0);
    store(row + j + kLanes, e1);
    store(row + j + 2 * kLanes, e2);
    store(row + j + 3 * kLanes, e3);
    sum0 += e0 + e1;
    sum1 += e2 + e3;
  }
  for (; j < whole.hi; j += kLanes) {
    const Vec e = exp2_nonpositive(load(row + j) - s);
    store(row + j, e);
    sum0 += e;
  }
  return horizontal_sum(sum0 + sum1);
}

// Rows [n, d] -> panels [n / kPanel, d, kPanel], times `factor`; masked and missing rows are zero.
void pack_panel(const float* rows, Index n, Index d, Index panel, float factor,
                const std::uint8_t* mask, float* out) {
  const Index first = panel * kPanel, count = std::min<Index>(kPanel, n - first);
  constexpr Index kBlock = 16;  // transposed in blocks of one cache line
  for (Index x0 = 0; x0 < d; x0 += kBlock)
    for (Index j = 0; j < kPanel; ++j) {
      const bool present = j < count && (mask == nullptr || mask[first + j] != 0);
      const float* const row = rows + (first + j) * d;
      for (Index x = x0; x < std::min(d, x0 + kBlock); ++x)
        out[x * kPanel + j] = present ? row[x] * factor : 0.0f;
    }
}

// Rows [n, d] -> rows [n, wide], zero beyond d; masked rows are zero.
void pack_rows(const float* rows, Index n, Index d, Index wide, const std::uint8_t* mask,
               float* out) {
  for (Index i = 0; i < n; ++i) {
    const bool present = mask == nullptr || mask[i] != 0;
    for (Index x = 0; x < d; ++x) out[i * wide + x] = present ? rows[i * d + x] : 0.0f;
    for (Index x = d; x < wide; ++x) out[i * wide + x] = 0.0f;
  }
}

}  // namespace

std::vector<Band> full_pattern(const Problem& p) {
  return {{0, p.n, 0, p.n_kv, -kNoLimit, p.causal ? p.causal_offset() + 1 : kNoLimit}};
}

double entries(const std::vector<Band>& bands) {
  double sum = 0;
  for (const Band& band : bands)
    for (Index i = band.q_begin; i < band.q_end; ++i) sum += static_cast<double>(band.count(i));
  return sum;
}

// Pointers of one head.
struct TiledAttention::Head {
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
struct TiledAttention::Scratch {
  float* q;        // [tile rows, wide_k]
  float* dout;     // [tile rows, wide_v]
  float* scores;   // [tile rows, tile keys]
  float* dscores;  // the same
  float* out;      // [tile rows, wide_v]
  float* dk;       // [tile keys, wide_k]
  float* dv;       // [tile keys, wide_v]
};

void TiledAttention::prepare(const Problem& problem, std::vector<Band> bands, bool gradients) {
  problem_ = problem;
  bands_ = std::move(bands);
  const Index heads = problem.batch * problem.heads;
  wide_k_ = round_up(problem.d_k, kLanes);
  wide_v_ = round_up(problem.d_v, kLanes);
  panels_ = (problem.n_kv + kPanel - 1) / kPanel;
  const Index tiles = (problem.n + kTileRows - 1) / kTileRows;
  bands_of_tile_.assign(static_cast<std::size_t>(tiles), {});
  for (std::size_t b = 0; b < bands_.size(); ++b)
    for (Index t = bands_[b].q_begin / kTileRows; t * kTileRows < bands_[b].q_end; ++t)
      bands_of_tile_[static_cast<std::size_t>(t)].push_back(b);

  key_panels_ = AlignedArray<float>(heads * panels_ * problem.d_k * kPanel);
  copy_values_ = wide_v_ != problem.d_v;
  copy_keys_ = gradients && wide_k_ != problem.d_k;
  if (copy_values_) values_ = AlignedArray<float>(heads * problem.n_kv * wide_v_);
  if (copy_keys_) keys_ = AlignedArray<float>(heads * problem.n_kv * wide_k_);
  Index back_keys = 0;
  if (gradients) {
    // Key groups have dq accumulators of their own, so that one head keeps several threads busy;
    // their number depends on the problem alone, and so do the bits of the result.
    const Index blocks = (problem.n_kv + kBackKeys - 1) / kBackKeys;
    groups_ = std::clamp<Index>((8 + heads - 1) / heads, 1, blocks);
    value_panels_ = AlignedArray<float>(heads * panels_ * problem.d_v * kPanel);
    if (wide_k_ != problem.d_k) queries_ = AlignedArray<float>(heads * problem.n * wide_k_);
    if (wide_v_ != problem.d_v) douts_ = AlignedArray<float>(heads * problem.n * wide_v_);
    delta_ = AlignedArray<float>(heads * problem.n);
    dq_parts_ = AlignedArray<float>(heads * groups_ * round_up(problem.n, kBackRows) * wide_k_);
    back_keys = kBackKeys;
  }
  const Index rows = gradients ? kBackRows : kTileRows;
  const Index scores = std::max(kTileRows * kTileKeys, gradients ? kBackRows * kBackKeys : 0);
  scratch_floats_ = rows * wide_k_ + rows * wide_v_ + scores +
                    (gradients ? kBackRows * kBackKeys : 0) + kTileRows * wide_v_ +
                    back_keys * (wide_k_ + wide_v_);
  scratch_ = AlignedArray<float>(thread_count() * scratch_floats_);
}

double TiledAttention::allocated_bytes() const {
  Index floats = 0;
  for (const AlignedArray<float>* array :
       {&key_panels_, &value_panels_, &keys_, &values_, &queries_, &douts_, &bias_, &delta_,
        &dq_parts_, &scratch_})
    floats += array->size();
  return 4.0 * static_cast<double>(floats);
}

void TiledAttention::pack(const Inputs& in, bool gradients) {
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
  h.delta = delta_.size() > 0 ? delta_.data() + bh * p.n : nullptr;
  return h;
}

void TiledAttention::forward(const Inputs& in, TensorView out, float* row_lse) {
  pack(in, false);
  const Problem& p = problem_;
  const Index tiles = (p.n + kTileRows - 1) / kTileRows, heads = p.batch * p.heads;
  parallel_for(heads * tiles, [&](Index item, int thread) {
    // Last tiles first: in causal patterns they are the long ones.
    const Index bh = item % heads, i0 = (tiles - 1 - item / heads) * kTileRows;
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

void TiledAttention::forward_tile(const Head& h, Index i0, Scratch& scratch, float* out,
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
  for (const std::size_t b : bands_of_tile_[static_cast<std::size_t>(i0 / kTileRows)]) {
    const Band& band = bands_[b];
    const Bounds reach = row_bounds(band, i0, rows, 0, p.n_kv, bounds, kTileRows);
    for (Index j0 = reach.lo / kPanel * kPanel; j0 < reach.hi; j0 += kTileKeys) {
      const Bounds tile =
          row_bounds(band, i0, rows, j0, std::min(kTileKeys, p.n_kv - j0), bounds, kTileRows);
      if (tile.lo >= tile.hi) continue;
      score_product(q, p.d_k, p.d_k, h.key_panels + j0 / kPanel * p.d_k * kPanel, bounds, kTileRows,
                    scratch.scores, kTileKeys);
      for (Index r = 0; r < rows; ++r) {
        if (bounds[r].lo >= bounds[r].hi) continue;
        float* const row = scratch.scores + r * kTileKeys;
        const Bounds whole =
            mask_row(row, bounds[r], h.bias == nullptr ? nullptr : h.bias + j0, -kInfinity);
        const float largest = std::max(maximum[r], row_max(row, whole));
        if (largest == -kInfinity) {  // every key masked so far
          bounds[r] = {};
          continue;
        }
        if (largest > maximum[r]) {
          const float factor = std::exp2(maximum[r] - largest);
          sum[r] *= factor;
          for (Index c = 0; c < wide_v_; c += kLanes)
            store(scratch.out + r * wide_v_ + c, load(scratch.out + r * wide_v_ + c) * factor);
          maximum[r] = largest;
        }
        sum[r] += exponentiate(row, whole, maximum[r]);
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

void TiledAttention::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
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
    std::fill_n(dq_parts_.data() + (bh * groups_ + group) * padded_n * wide_k_, padded_n * wide_k_,
                0.0f);
    // Interleaved blocks: every group gets early (long) and late (short) ones of a causal pattern.
    for (Index block = group; block < blocks; block += groups_) {
      const Index j0 = block * kBackKeys, count = std::min(kBackKeys, p.n_kv - j0);
      backward_block(head(in, bh), bh * groups_ + group, j0, scratch,
                     dout_rows + bh * p.n * wide_v_, row_lse + bh * p.n, scratch.dk, scratch.dv);
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

// Gradients that pass through the keys [j0, j0 + kBackKeys): dk, dv (tiles, overwritten) and the
// contribution to dq (added to the accumulators of `group`).
void TiledAttention::backward_block(const Head& h, Index group, Index j0, Scratch& scratch,
                                    const float* dout, const float* lse, float* dk,
                                    float* dv) const {
  const Problem& p = problem_;
  const Index width = std::min(kBackKeys, p.n_kv - j0);
  const Index padded_n = round_up(p.n, kBackRows);
  const float* const key_panels = h.key_panels + j0 / kPanel * p.d_k * kPanel;
  const float* const value_panels = h.value_panels + j0 / kPanel * p.d_v * kPanel;
  float* const scores = scratch.scores;
  float* const dscores = scratch.dscores;
  std::fill_n(dk, kBackKeys * wide_k_, 0.0f);
  std::fill_n(dv, kBackKeys * wide_v_, 0.0f);
  Bounds bounds[kBackRows];
  for (const Band& band : bands_) {
    if (band.k_end <= j0 || band.k_begin >= j0 + width) continue;
    // Queries of the band that see a key of this block.
    const Index from = std::max(band.q_begin, j0 - band.hi + 1);
    const Index to = std::min(band.q_end, j0 + width - band.lo);
    for (Index i0 = std::max<Index>(0, from) / kBackRows * kBackRows; i0 < to; i0 += kBackRows) {
      const Index rows = std::min(kBackRows, p.n - i0);
      const Bounds tile = row_bounds(band, i0, rows, j0, width, bounds, kBackRows);
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
      transposed(scores, g, wide_v_, dv);
      transposed(dscores, q, wide_k_, dk);
      // dq += dscores k
      float* const dq = const_cast<float*>(dq_parts_.data()) + (group * padded_n + i0) * wide_k_;
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

}  // namespace subquad::engine
