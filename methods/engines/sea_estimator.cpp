#include "methods/engines/sea_estimator.h"

#include <cmath>
#include <cstring>

#include "harness/autodiff/vector.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/vector_math.h"

namespace subquad {
namespace {

using namespace engine;

constexpr Index kGroup = 24;  // rows of the MLP at once: its three tiles stay near L1
constexpr float kEps = 1e-5f;

// body(first, vector of x[first ..], count); lanes beyond count are zero.
template <class Body>
void each_part(const float* x, Index count, Body&& body) {
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, load(x + i), Index{kLanes});
  if (i < count) body(i, engine::load_part(x + i, count - i), count - i);
}

// y = (x - mean) / sqrt(variance + eps) (* weight + bias); weight and bias are whole vectors or
// null, y too is written in whole vectors, zero beyond count. In place or not.
void normalize_row(const float* x, Index count, const float* weight, const float* bias, float* y) {
  Vec sum{};
  each_part(x, count, [&](Index, Vec v, Index) { sum += v; });
  const float mean = horizontal_sum(sum) / static_cast<float>(count);
  Vec squares{};
  each_part(x, count, [&](Index, Vec v, Index n) {
    Vec d = v - mean;
    if (n < kLanes) {
      float lanes[kLanes];
      store(lanes, d);
      d = engine::load_part(lanes, n);
    }
    squares += d * d;
  });
  const float rest = 1 / std::sqrt(horizontal_sum(squares) / static_cast<float>(count) + kEps);
  each_part(x, count, [&](Index i, Vec v, Index n) {
    Vec d = (v - mean) * rest;
    if (weight != nullptr) d = d * load(weight + i) + load(bias + i);
    if (n == kLanes) {
      store(y + i, d);
    } else if (weight != nullptr) {
      store(y + i, Vec{});
      engine::store_part(y + i, n, d);
    } else {
      engine::store_part(y + i, n, d);
    }
  });
}

void copy_rows(const Parameter& from, Index rows, Index width, Index wide, float* to) {
  for (Index r = 0; r < rows; ++r) std::copy_n(from.value.data() + r * width, width, to + r * wide);
}

// out[o, :] = bias[o] + sum_t weights[o, t] taps[t][:] for ROWS channels.
template <int ROWS, int VECTORS>
[[gnu::always_inline]] inline void tap_block(const float* const* taps, Index offset, Index terms,
                                             const float* weights, Index ldw, const float* bias,
                                             bool relu, float* out, Index ldo) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = broadcast(bias[r]);
  for (Index t = 0; t < terms; ++t) {
    const float* const tap = taps[t] + offset;
    Vec row[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) row[v] = load(tap + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vec factor = broadcast(weights[r * ldw + t]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v)
      store(out + r * ldo + v * kLanes, relu ? engine::max(sum[r][v], Vec{}) : sum[r][v]);
}

// All output channels of one row; out [channels, ldo], `wide` columns.
void tap_rows(const float* const* taps, Index terms, const float* weights, const float* bias,
              Index channels, bool relu, Index wide, float* out, Index ldo) {
  for_column_blocks(wide, [&](Index c, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr int kRows = kRegisters == 32 || kVectors == 1 ? 4 : 2;
    Index o = 0;
    for (; o + kRows <= channels; o += kRows)
      tap_block<kRows, kVectors>(taps, c, terms, weights + o * terms, terms, bias + o, relu,
                                 out + o * ldo + c, ldo);
    if constexpr (kRows == 4)
      for (; o + 2 <= channels; o += 2)
        tap_block<2, kVectors>(taps, c, terms, weights + o * terms, terms, bias + o, relu,
                               out + o * ldo + c, ldo);
    for (; o < channels; ++o)
      tap_block<1, kVectors>(taps, c, terms, weights + o * terms, terms, bias + o, relu,
                             out + o * ldo + c, ldo);
  });
}

// Zeros around the valid columns of one channel's row [ld] with room for kLanes on both sides.
void clear_borders(float* row, Index width, Index wide) {
  store(row, Vec{});
  for (Index c = width; c < wide; ++c) row[kLanes + c] = 0;
  store(row + kLanes + wide, Vec{});
}

// Columns times two by linear interpolation, half-pixel centres, clamped: y[2 c] = x[c-1] / 4 +
// 3 x[c] / 4, y[2 c + 1] = 3 x[c] / 4 + x[c+1] / 4. x has a vector of room on both sides.
void double_columns(float* x, Index width, float* y, Index wide_out) {
  x[-1] = x[0];
  x[width] = x[width - 1];
  for (Index c = 0; 2 * c < wide_out; c += kLanes) {
    const Vec here = load(x + c) * 0.75f;
    const Vec even = here + load(x + c - 1) * 0.25f, odd = here + load(x + c + 1) * 0.25f;
    IntVec low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i / 2 + (i % 2) * kLanes;
      high[i] = kLanes / 2 + i / 2 + (i % 2) * kLanes;
    }
    store(y + 2 * c, __builtin_shuffle(even, odd, low));
    if (2 * c + kLanes < wide_out) store(y + 2 * c + kLanes, __builtin_shuffle(even, odd, high));
  }
}

struct WorkSizes {
  Index x, hidden, y, taps;
};
WorkSizes tile_sizes(const SeaShape& s) {
  return {kGroup * round_up(s.inputs(), kLanes), kGroup * round_up(s.hidden(), kLanes),
          kGroup * s.per_head() * round_up(s.width(), kLanes),
          // pointers, as room for floats
          round_up(9 * s.image_channels() * (static_cast<Index>(sizeof(void*)) / 4), kLanes)};
}
Index row_floats(const SeaShape& s) { return round_up(s.width(), kLanes) + 2 * kLanes; }

}  // namespace

void SeaEstimator::prepare(const SeaShape& shape) {
  shape_ = shape;
  const Index c = shape.image_channels(), w = shape.width();
  wide_in_ = round_up(shape.inputs(), kLanes);
  wide_hidden_ = round_up(shape.hidden(), kLanes);
  wide_width_ = round_up(w, kLanes);
  wide_cells_ = round_up(shape.cells, kLanes);
  ld_ = row_floats(shape);
  image_floats_ = c * ld_;
  const auto room = [](AlignedArray<float>* a, Index size) { *a = AlignedArray<float>(size); };
  room(&w1_, shape.inputs() * wide_hidden_);
  for (auto* a : {&b1_, &ln1_w_, &ln1_b_}) room(a, wide_hidden_);
  room(&w2_, shape.hidden() * shape.per_head() * wide_width_);
  room(&b2_, shape.per_head() * wide_width_);
  room(&w3_, 2 * wide_hidden_);
  room(&zeros_, ld_);
  if (!shape.cnn) return;
  for (auto* a : {&ln2_w_, &ln2_b_}) room(a, wide_width_);
  for (auto* a : {&ln3_w_, &ln3_b_}) room(a, wide_cells_);
  for (auto* a : {&conv1_w_, &conv2_w_}) room(a, c * c * 9);
  for (auto* a : {&conv1_b_, &conv2_b_}) room(a, c);
  room(&conv3_w_, shape.causal ? shape.heads * c : 2 * shape.heads * c * 9);
  room(&conv3_b_, 2 * shape.heads);
}

double SeaEstimator::bytes(const SeaShape& s) {
  const Index c = s.image_channels(), hidden = round_up(s.hidden(), kLanes),
              width = round_up(s.width(), kLanes), cells = round_up(s.cells, kLanes);
  const auto in_lines = [](Index floats) { return round_up(floats, 16); };
  Index floats = s.inputs() * hidden + 3 * in_lines(hidden) + s.hidden() * s.per_head() * width +
                 in_lines(s.per_head() * width) + 2 * hidden + in_lines(row_floats(s));
  if (s.cnn)
    floats += 2 * in_lines(width) + 2 * in_lines(cells) + 2 * in_lines(c * c * 9) +
              2 * in_lines(c) + in_lines(s.causal ? s.heads * c : 2 * s.heads * c * 9) +
              in_lines(2 * s.heads);
  return 4.0 * static_cast<double>(floats);
}

void SeaEstimator::pack(const SeaWeights& w) {
  const SeaShape& s = shape_;
  const Index hidden = s.hidden(), c = s.image_channels();
  copy_rows(w.w1, s.inputs(), hidden, wide_hidden_, w1_.data());
  copy_rows(w.b1, 1, hidden, wide_hidden_, b1_.data());
  copy_rows(w.ln1_w, 1, hidden, wide_hidden_, ln1_w_.data());
  copy_rows(w.ln1_b, 1, hidden, wide_hidden_, ln1_b_.data());
  copy_rows(w.w2, hidden * s.per_head(), s.width(), wide_width_, w2_.data());
  copy_rows(w.b2, s.per_head(), s.width(), wide_width_, b2_.data());
  for (Index i = 0; i < hidden; ++i)
    for (Index g = 0; g < 2; ++g) w3_[g * wide_hidden_ + i] = w.w3.value[2 * i + g];
  b3_[0] = w.b3.value[0];
  b3_[1] = w.b3.value[1];
  if (!s.cnn) return;
  std::copy_n(w.conv1_w.value.data(), c * c * 9, conv1_w_.data());
  std::copy_n(w.conv2_w.value.data(), c * c * 9, conv2_w_.data());
  std::copy_n(w.conv1_b.value.data(), c, conv1_b_.data());
  std::copy_n(w.conv2_b.value.data(), c, conv2_b_.data());
  for (Index h = 0; h < s.heads; ++h) conv3_b_[h] = conv3_b_[s.heads + h] = w.conv3_b.value[h];
  if (s.causal) {
    std::copy_n(w.conv3_w.value.data(), s.heads * c, conv3_w_.data());
    copy_rows(w.ln2_w, 1, s.width(), wide_width_, ln2_w_.data());
    copy_rows(w.ln2_b, 1, s.width(), wide_width_, ln2_b_.data());
    copy_rows(w.ln3_w, 1, s.cells, wide_cells_, ln3_w_.data());
    copy_rows(w.ln3_b, 1, s.cells, wide_cells_, ln3_b_.data());
    return;
  }
  // Rows times two and then a 3 x 3 convolution, as one convolution with two results per row: row
  // 2 g sees rows g-1, g, g of before, row 2 g + 1 sees g, g, g+1.
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < c; ++i)
      for (Index x = 0; x < 3; ++x) {
        const auto tap = [&](Index y) { return w.conv3_w.value[((h * c + i) * 3 + y) * 3 + x]; };
        const auto even = [&](Index y) -> float& {
          return conv3_w_[((h * c + i) * 3 + y) * 3 + x];
        };
        const auto odd = [&](Index y) -> float& {
          return conv3_w_[(((s.heads + h) * c + i) * 3 + y) * 3 + x];
        };
        even(0) = tap(0);
        even(1) = tap(1) + tap(2);
        odd(1) = tap(0) + tap(1);
        odd(2) = tap(2);
      }
}

// ---- blocks ----

Index SeaEstimator::block_rows(const SeaShape& s) {
  // Our choice: 256 KiB of image; the halo (up to 10 rows) should stay small beside the block.
  const Index row_bytes = 4 * s.image_channels() * row_floats(s);
  return std::clamp<Index>((Index{1} << 18) / row_bytes / 16 * 16, 32, 128);
}

SeaEstimator::Needs SeaEstimator::needs(Range out) const {
  Needs n;
  if (!shape_.cnn) {
    n.image = out;
  } else if (shape_.causal) {
    n.middle2 = out;
    n.middle1 = {std::max<Index>(0, out.first - 4), out.last};
    n.image = {std::max<Index>(0, out.first - 8), out.last};
  } else {
    const Index rows = shape_.rows(), half = (rows + 1) / 2;
    const auto widen = [&](Range r) {
      return Range{std::max<Index>(0, r.first - 1), std::min(half, r.last + 1)};
    };
    const Index last = std::min(2 * half, rows % 2 == 0 ? out.last : out.last + 1);
    n.top = {out.first / 2, (last + 1) / 2};
    n.middle2 = widen(n.top);
    n.middle1 = widen(n.middle2);
    n.image = {std::max<Index>(0, 2 * n.middle1.first - 1), std::min(rows, 2 * n.middle1.last)};
  }
  return n;
}

Index SeaEstimator::work_floats(const SeaShape& s, Index rows) {
  const WorkSizes t = tile_sizes(s);
  const Index ld = row_floats(s), c = s.image_channels();
  Index images = (rows + 12) * c * ld;
  if (s.cnn) {
    const Index middle = s.causal ? rows + 4 : rows / 2 + 8;
    images += 2 * middle * c * ld;
    images += s.causal ? s.heads * ld : (rows / 2 + 4) * 2 * s.heads * ld;
  }
  return images + t.x + t.hidden + t.y + 3 * t.taps + 2 * ld + round_up(s.cells + 2, kLanes);
}

void SeaEstimator::fill_image(const float* kernel, Index kernel_head, Index kernel_row,
                              const float* v, Index v_head, Index v_row, Range rows, Range gated,
                              float* image, float* gates, float* work) const {
  const SeaShape& s = shape_;
  const WorkSizes tiles = tile_sizes(s);
  float *const x = work, *const z = x + tiles.x, *const y = z + tiles.hidden;
  const Index d = s.d_v, inputs = s.inputs(), hidden = s.hidden(),
              y_width = s.per_head() * wide_width_;
  for (Index h = 0; h < s.heads; ++h)
    for (Index first = rows.first; first < rows.last; first += kGroup) {
      const Index count = std::min(kGroup, rows.last - first);
      const float* const seen = kernel + h * kernel_head + first * kernel_row;
      const float* const values = v + h * v_head + first * v_row;
      if (s.block_norm) {
        for (Index r = 0; r < count; ++r) {
          float* const to = x + r * inputs;
          std::copy_n(seen + r * kernel_row, 2 * d, to);
          std::copy_n(values + r * v_row, d, to + 2 * d);
          for (Index block = 0; block < 3; ++block)
            normalize_row(to + block * d, d, nullptr, nullptr, to + block * d);
        }
        product<false>(x, inputs, 1, count, inputs, w1_.data(), wide_hidden_, wide_hidden_, z,
                       wide_hidden_);
      } else {  // two products in place of a copy
        product<false>(seen, kernel_row, 1, count, 2 * d, w1_.data(), wide_hidden_, wide_hidden_, z,
                       wide_hidden_);
        product<true>(values, v_row, 1, count, d, w1_.data() + 2 * d * wide_hidden_, wide_hidden_,
                      wide_hidden_, z, wide_hidden_);
      }
      for (Index r = 0; r < count; ++r) {
        float* const row = z + r * wide_hidden_;
        for (Index i = 0; i < wide_hidden_; i += kLanes)
          store(row + i, load(row + i) + load(b1_.data() + i));
        normalize_row(row, hidden, ln1_w_.data(), ln1_b_.data(), row);
        Vec gate0{}, gate1{};
        for (Index i = 0; i < wide_hidden_; i += kLanes) {
          const Vec value = load(row + i);
          Vec cdf, bell;
          autodiff::normal_cdf<float>(value, &cdf, &bell);
          const Vec gelu = value * cdf;
          store(row + i, gelu);
          gate0 += gelu * load(w3_.data() + i);
          gate1 += gelu * load(w3_.data() + wide_hidden_ + i);
        }
        if (first + r < gated.first || first + r >= gated.last) continue;
        float* const gate = gates + ((first + r - gated.first) * s.heads + h) * 2;
        gate[0] = 1 / (1 + std::exp(-(horizontal_sum(gate0) + b3_[0])));
        gate[1] = 1 / (1 + std::exp(-(horizontal_sum(gate1) + b3_[1])));
      }
      product<false>(z, wide_hidden_, 1, count, hidden, w2_.data(), y_width, y_width, y, y_width);
      for (Index r = 0; r < count; ++r)
        for (Index channel = 0; channel < s.per_head(); ++channel) {
          const float* const from = y + r * y_width + channel * wide_width_;
          const float* const bias = b2_.data() + channel * wide_width_;
          float* const line =
              image + (first + r - rows.first) * image_floats_ + (h * s.per_head() + channel) * ld_;
          float* const to = line + kLanes;
          for (Index i = 0; i < wide_width_; i += kLanes)
            store(to + i, load(from + i) + load(bias + i));
          if (s.causal && s.cnn) normalize_row(to, s.width(), ln2_w_.data(), ln2_b_.data(), to);
          clear_borders(line, s.width(), wide_width_);
        }
    }
}

// Row r of the result sees rows step * r + row_offsets[0 .. 2] of `in`, zero outside [0, limit).
void SeaEstimator::convolve(const float* in, Range in_rows, Index limit, Index step,
                            const Index* row_offsets, Index dilation, const float* weights,
                            const float* bias, Index out_channels, bool relu, Range out_rows,
                            float* out) const {
  const Index channels = shape_.image_channels();
  // Room for the pointers of one row's taps, then the result.
  const auto taps = reinterpret_cast<const float**>(out);
  float* const result = out + tile_sizes(shape_).taps;
  for (Index r = out_rows.first; r < out_rows.last; ++r) {
    for (Index y = 0; y < 3; ++y) {
      const Index row = step * r + row_offsets[y];
      const bool inside = row >= 0 && row < limit;
      const float* const image =
          inside ? in + (row - in_rows.first) * image_floats_ : zeros_.data();
      for (Index c = 0; c < channels; ++c)
        for (Index x = 0; x < 3; ++x)
          taps[(c * 3 + y) * 3 + x] = image + (inside ? c * ld_ : 0) + kLanes + (x - 1) * dilation;
    }
    float* const line = result + (r - out_rows.first) * out_channels * ld_;
    tap_rows(taps, 9 * channels, weights, bias, out_channels, relu, wide_width_, line + kLanes,
             ld_);
    for (Index o = 0; o < out_channels; ++o)
      clear_borders(line + o * ld_, shape_.width(), wide_width_);
  }
}

void SeaEstimator::finish_bidirectional(const float* top, Range top_rows, Range out,
                                        float* scores) const {
  const SeaShape& s = shape_;
  const Index rows = s.rows(), doubled = (rows + 1) / 2 * 2, w = s.width();
  float line[2 * kLanes + 4096];  // widths are limited by the cells
  for (Index r = out.first; r < out.last; ++r)
    for (Index h = 0; h < s.heads; ++h) {
      const auto source = [&](Index u) {
        return top + ((u / 2 - top_rows.first) * 2 * s.heads + u % 2 * s.heads + h) * ld_ + kLanes;
      };
      float* const x = line + kLanes;
      if (rows % 2 == 0) {
        std::copy_n(source(r), wide_width_, x);
      } else {  // one row more than is wanted: half-pixel centres between neighbours
        const double at =
            std::clamp((static_cast<double>(r) + 0.5) *
                               (static_cast<double>(doubled) / static_cast<double>(rows)) -
                           0.5,
                       0.0, static_cast<double>(doubled - 1));
        const auto low = static_cast<Index>(at);
        const auto part = static_cast<float>(at - static_cast<double>(low));
        const float *const a = source(low), *const b = source(std::min(low + 1, doubled - 1));
        for (Index c = 0; c < wide_width_; c += kLanes)
          store(x + c, load(a + c) * (1 - part) + load(b + c) * part);
      }
      float* const to = scores + ((r - out.first) * s.heads + h) * wide_cells_;
      if (s.stretch == 1) {
        std::copy_n(x, wide_cells_, to);
      } else if (s.stretch == 2) {
        double_columns(x, w, to, wide_cells_);
      } else {
        for (Index c = 0; c < s.cells; ++c) {
          const double at =
              std::clamp((static_cast<double>(c) + 0.5) / static_cast<double>(s.stretch) - 0.5, 0.0,
                         static_cast<double>(w - 1));
          const auto low = static_cast<Index>(at);
          const auto part = static_cast<float>(at - static_cast<double>(low));
          to[c] = x[low] * (1 - part) + x[std::min(low + 1, w - 1)] * part;
        }
      }
    }
}

void SeaEstimator::finish_causal(const float* middle, Range out, float* work, float* scores) const {
  const SeaShape& s = shape_;
  const Index channels = s.image_channels();
  const auto taps = reinterpret_cast<const float**>(work);
  float* const low = work + tile_sizes(s).taps;  // [heads, ld]
  float* const bordered = low + s.heads * ld_;   // [cells + 2]
  for (Index r = 0; r < out.count(); ++r) {
    for (Index c = 0; c < channels; ++c) taps[c] = middle + r * image_floats_ + c * ld_ + kLanes;
    tap_rows(taps, channels, conv3_w_.data(), conv3_b_.data(), s.heads, false, wide_width_, low,
             ld_);
    for (Index h = 0; h < s.heads; ++h) {
      const float* const x = low + h * ld_;
      float* const to = scores + (r * s.heads + h) * wide_cells_;
      for (Index i = 0; i < s.width(); ++i)
        for (Index j = 0; j < s.stretch; ++j) to[i * s.stretch + j] = x[i];
      if (s.quirks) {  // the code pads the 1 x 1 convolution and pools cells + 2 columns
        bordered[0] = bordered[s.cells + 1] = conv3_b_[h];
        std::copy_n(to, s.cells, bordered + 1);
        for (Index c = 0; c < s.cells; ++c) {
          const Index from = c * (s.cells + 2) / s.cells,
                      till = ((c + 1) * (s.cells + 2) + s.cells - 1) / s.cells;
          float sum = 0;
          for (Index i = from; i < till; ++i) sum += bordered[i];
          to[c] = sum / static_cast<float>(till - from);
        }
      }
      normalize_row(to, s.cells, ln3_w_.data(), ln3_b_.data(), to);
    }
  }
}

void SeaEstimator::scores_from_image(const float* image, Range image_rows, const Needs& need,
                                     Range out, float* work, float* scores) const {
  const SeaShape& s = shape_;
  if (!s.cnn) {
    for (Index r = 0; r < out.count(); ++r)
      for (Index h = 0; h < s.heads; ++h)
        std::copy_n(image + (out.first + r - image_rows.first) * image_floats_ + h * ld_ + kLanes,
                    wide_cells_, scores + (r * s.heads + h) * wide_cells_);
    return;
  }
  const Index channels = s.image_channels(), taps = tile_sizes(s).taps, rows = s.rows();
  float* const room1 = work;
  float* const middle1 = room1 + taps;
  float* const room2 = middle1 + need.middle1.count() * image_floats_;
  float* const middle2 = room2 + taps;
  float* const rest = middle2 + need.middle2.count() * image_floats_;
  if (s.causal) {
    constexpr Index kBack[3] = {-4, -2, 0};
    convolve(image, image_rows, rows, 1, kBack, 2, conv1_w_.data(), conv1_b_.data(), channels, true,
             need.middle1, room1);
    convolve(middle1, need.middle1, rows, 1, kBack, 2, conv2_w_.data(), conv2_b_.data(), channels,
             true, need.middle2, room2);
    finish_causal(middle2, out, rest, scores);
  } else {
    constexpr Index kAround[3] = {-1, 0, 1};
    const Index half = (rows + 1) / 2;
    convolve(image, image_rows, rows, 2, kAround, 1, conv1_w_.data(), conv1_b_.data(), channels,
             true, need.middle1, room1);
    convolve(middle1, need.middle1, half, 1, kAround, 1, conv2_w_.data(), conv2_b_.data(), channels,
             true, need.middle2, room2);
    convolve(middle2, need.middle2, half, 1, kAround, 1, conv3_w_.data(), conv3_b_.data(),
             2 * s.heads, false, need.top, rest);
    finish_bidirectional(rest + taps, need.top, out, scores);
  }
}

void SeaEstimator::rows(const float* kernel, const float* v, Index first, Index last, float* work,
                        float* scores, float* gates) const {
  const SeaShape& s = shape_;
  const Range out{first, last};
  const Needs need = needs(out);
  float* const image = work;
  float* const rest = image + need.image.count() * image_floats_;
  fill_image(kernel, s.n * 2 * s.d_v, 2 * s.d_v * s.skip, v, s.n * s.d_v, s.d_v * s.skip,
             need.image, out, image, gates, rest);
  scores_from_image(image, need.image, need, out, rest, scores);
}

void SeaEstimator::image_row(const float* kernel, Index kernel_stride, const float* v,
                             Index v_stride, float* image, float* gates, float* work) const {
  fill_image(kernel, kernel_stride, 0, v, v_stride, 0, {0, 1}, {0, 1}, image, gates, work);
}

void SeaEstimator::last_row(const float* image, Index t, float* work, float* scores) const {
  Needs need = needs({t, t + 1});
  scores_from_image(image, {std::max<Index>(0, t - kHistory), t + 1}, need, {t, t + 1}, work,
                    scores);
}

}  // namespace subquad
