#include "methods/engines/gathered_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "methods/engines/chunk_product.h"

namespace subquad {

using namespace engine;

namespace {

// Rows from[index[r]] [*, d] times `factor` (and times row_factor[index[r]]) -> to [rows, wide],
// zero beyond d.
void gather(const float* from, Index d, const std::int32_t* index, Index rows, float factor,
            const float* row_factor, Index wide, float* to) {
  const Index whole = d / kLanes * kLanes;
  constexpr Index kAhead = 12;  // rows on their way: about what a core can wait for at once
  request_rows(from, d, index, std::min(kAhead, rows));
  for (Index r = 0; r < rows; ++r) {
    if (r + kAhead < rows) request_rows(from, d, index + r + kAhead, 1);
    const Index place = index[r];
    const float* const row = from + place * d;
    const float f = row_factor == nullptr ? factor : factor * row_factor[place];
    for (Index c = 0; c < whole; c += kLanes) store(to + r * wide + c, load(row + c) * f);
    for (Index c = whole; c < d; ++c) to[r * wide + c] = row[c] * f;
    std::fill(to + r * wide + d, to + (r + 1) * wide, 0.0f);
  }
}

// c [rows, ld] = a [rows, wide] * b [wide, ld] in the columns that a block of rows needs; seen(r)
// of them are those of row r, no fewer than of the row before.
template <class Seen>
void product_of_seen(const float* a, Index wide, Index rows, const float* b, Index ld,
                     const Seen& seen, float* c) {
  for_row_blocks<kProductVectors>(rows, [&](Index r, auto count) {
    constexpr int kRows = decltype(count)::value;
    for_column_blocks(round_up(seen(r + kRows - 1), kLanes), [&](Index x, auto vectors) {
      product_block<kRows, decltype(vectors)::value, false>(a + r * wide, wide, 1, wide, b + x, ld,
                                                            c + r * ld + x, ld);
    });
  });
}

}  // namespace

GatheredAttention::GatheredAttention(Index rows, Index keys, Index d_k, Index d_v, bool gradients,
                                     float* memory)
    : d_k_(d_k),
      d_v_(d_v),
      wide_k_(round_up(d_k, kLanes)),
      wide_v_(round_up(d_v, kLanes)),
      room_(round_up(keys, kLanes)),
      gradients_(gradients) {
  const auto carve = [&](Index floats) { return std::exchange(memory, memory + floats); };
  queries_ = carve(rows * wide_k_);
  keys_ = carve(room_ * wide_k_);
  key_cols_ = carve(room_ * wide_k_);
  values_ = carve(room_ * wide_v_);
  scores_ = carve(rows * room_);
  out_ = carve(rows * wide_v_);
  if (!gradients) return;
  value_cols_ = carve(room_ * wide_v_);
  dscores_ = carve(rows * room_);
  dq_ = carve(rows * wide_k_);
  dk_ = carve(room_ * wide_k_);
  dv_ = carve(room_ * wide_v_);
}

Index GatheredAttention::floats(Index rows, Index keys, Index d_k, Index d_v, bool gradients) {
  const Index wide_k = round_up(d_k, kLanes), wide_v = round_up(d_v, kLanes);
  const Index room = round_up(keys, kLanes);
  const Index forward =
      rows * wide_k + 2 * room * wide_k + room * wide_v + rows * room + rows * wide_v;
  const Index backward = 2 * room * wide_v + rows * room + rows * wide_k + room * wide_k;
  return gradients ? forward + backward : forward;
}

Index GatheredAttention::seen(const GatheredTile& tile, Index r) const {
  return tile.visible == nullptr ? count_ : tile.visible[r];
}

// Time O(count (d_k + d_v)).
void GatheredAttention::load_keys(const GatheredHead& head, const std::int32_t* index,
                                  Index count) {
  count_ = count;
  ld_ = round_up(count, kLanes);
  gather(head.k, d_k_, index, count, 1.0f, head.key_factor, wide_k_, keys_);
  gather(head.v, d_v_, index, count, 1.0f, nullptr, wide_v_, values_);
  std::fill(keys_ + count * wide_k_, keys_ + ld_ * wide_k_, 0.0f);
  transpose(keys_, wide_k_, ld_, wide_k_, key_cols_, ld_);
  if (!gradients_) return;
  std::fill(values_ + count * wide_v_, values_ + ld_ * wide_v_, 0.0f);
  transpose(values_, wide_v_, ld_, wide_v_, value_cols_, ld_);
  std::fill_n(dk_, ld_ * wide_k_, 0.0f);
  std::fill_n(dv_, ld_ * wide_v_, 0.0f);
}

// scores_ = logits * log2(e), -infinity where a key is not seen, up to whole vectors of every row.
void GatheredAttention::score(const GatheredHead& head, const GatheredTile& tile) {
  gather(head.q, d_k_, tile.query, tile.rows, head.scale * kLog2e, nullptr, wide_k_, queries_);
  product_of_seen(
      queries_, wide_k_, tile.rows, key_cols_, ld_, [&](Index r) { return seen(tile, r); },
      scores_);
  for (Index r = 0; r < tile.rows; ++r) {
    const Index visible = seen(tile, r);
    float* const row = scores_ + r * ld_;
    std::fill(row + visible, row + ld_, -kInfinity);
    if (tile.hidden != nullptr && tile.hidden[r] >= 0) row[tile.hidden[r]] = -kInfinity;
  }
}

// Time O(rows count (d_k + d_v)).
void GatheredAttention::attend(const GatheredHead& head, const GatheredTile& tile) {
  score(head, tile);
  // Lanes of kLanes rows are reduced together: alone, a row's horizontal steps would cost as much
  // as its exponentials.
  Vec lanes[kLanes];
  for (Index first = 0; first < tile.rows; first += kLanes) {
    const Index rows = std::min<Index>(kLanes, tile.rows - first);
    const auto whole = [&](Index r) { return Bounds{0, round_up(seen(tile, first + r), kLanes)}; };
    const auto row = [&](Index r) { return scores_ + (first + r) * ld_; };
    float largest[kLanes], total[kLanes];
    std::fill_n(lanes, kLanes, broadcast(-kInfinity));
    for (Index r = 0; r < rows; ++r)
      if (whole(r).hi > 0) lanes[r] = row_max(row(r), whole(r));
    store(largest, reduce_each(lanes, [](Vec a, Vec b) { return max(a, b); }));
    std::fill_n(lanes, kLanes, Vec{});
    for (Index r = 0; r < rows; ++r) {
      largest[r] = std::ceil(largest[r]);  // exponentiate wants whole numbers
      lanes[r] =
          exponentiate(row(r), whole(r), largest[r] == -kInfinity ? 0.0f : largest[r], Vec{});
    }
    store(total, reduce_each(lanes, [](Vec a, Vec b) { return a + b; }));
    for (Index r = 0; r < rows; ++r) {
      const bool empty = largest[r] == -kInfinity && total[r] == 0;
      sum_[first + r] = empty ? 1.0f : total[r];
      lse_[first + r] = empty ? -kInfinity : kLn2 * (largest[r] + std::log2(total[r]));
    }
  }
  // Rows of a register block share the keys that all of them see; the others are added row by row.
  for_column_blocks(wide_v_, [&](Index x, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    for_row_blocks<kVectors>(tile.rows, [&](Index first, auto rows) {
      const Index common = seen(tile, first);
      product_block<decltype(rows)::value, kVectors, false>(scores_ + first * ld_, ld_, 1, common,
                                                            values_ + x, wide_v_,
                                                            out_ + first * wide_v_ + x, wide_v_);
      for (Index r = first; r < first + decltype(rows)::value; ++r) {
        const Vec factor = broadcast(1.0f / sum_[r]);
        if (seen(tile, r) > common)
          product_block<1, kVectors, true>(scores_ + r * ld_ + common, ld_, 1,
                                           seen(tile, r) - common, values_ + common * wide_v_ + x,
                                           wide_v_, out_ + r * wide_v_ + x, wide_v_);
        for (Index v = 0; v < kVectors; ++v) {
          float* const place = out_ + r * wide_v_ + x + v * kLanes;
          store(place, load(place) * factor);
        }
      }
    });
  });
}

// Time O(rows count (3 d_k + 2 d_v)).
void GatheredAttention::differentiate(const GatheredHead& head, const GatheredTile& tile,
                                      const float* dout, float factor, const float* lse,
                                      const float* delta) {
  score(head, tile);
  gather(dout, d_v_, tile.query, tile.rows, factor, nullptr, wide_v_, out_);
  product_of_seen(
      out_, wide_v_, tile.rows, value_cols_, ld_, [&](Index r) { return seen(tile, r); }, dscores_);
  Vec lanes[kLanes];
  for (Index first = 0; first < tile.rows; first += kLanes) {
    const Index rows = std::min<Index>(kLanes, tile.rows - first);
    float own[kLanes];
    std::fill_n(lanes, kLanes, Vec{});
    for (Index r = 0; r < rows; ++r) {
      float* const s = scores_ + (first + r) * ld_;
      float* const ds = dscores_ + (first + r) * ld_;
      const float row_lse = lse[tile.query[first + r]];
      const Vec shift = broadcast(row_lse == -kInfinity ? kInfinity : row_lse * kLog2e);
      for (Index j = 0; j < ld_; j += kLanes) {
        const Vec weight = exp2_nonpositive(load(s + j) - shift);
        // Weights of zero must win over whatever is not seen.
        const Vec dp = weight == 0.0f ? Vec{} : load(ds + j);
        store(s + j, weight);
        store(ds + j, dp);
        lanes[r] += weight * dp;
      }
    }
    store(own, reduce_each(lanes, [](Vec a, Vec b) { return a + b; }));
    for (Index r = 0; r < rows; ++r) {
      const float* const s = scores_ + (first + r) * ld_;
      float* const ds = dscores_ + (first + r) * ld_;
      const Vec mean = broadcast(delta == nullptr ? own[r] : delta[tile.query[first + r]]);
      const Vec scale = broadcast(head.scale);
      for (Index j = 0; j < ld_; j += kLanes)
        store(ds + j, load(s + j) * (load(ds + j) - mean) * scale);
    }
  }
  // Queries are ordered: a block of keys is seen from one of them on.
  const auto transposed = [&](const float* a, const float* b, Index wide, float* to) {
    for_column_blocks(wide, [&](Index x, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      Index from = 0;
      for_row_blocks<kVectors>(count_, [&](Index j, auto keys) {
        while (from < tile.rows && seen(tile, from) <= j) ++from;
        product_block<decltype(keys)::value, kVectors, true>(a + from * ld_ + j, 1, ld_,
                                                             tile.rows - from, b + from * wide + x,
                                                             wide, to + j * wide + x, wide);
      });
    });
  };
  transposed(scores_, out_, wide_v_, dv_);
  gather(head.q, d_k_, tile.query, tile.rows, 1.0f, nullptr, wide_k_, queries_);  // unscaled now
  transposed(dscores_, queries_, wide_k_, dk_);
  for_column_blocks(wide_k_, [&](Index x, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    for_row_blocks<kVectors>(tile.rows, [&](Index r, auto rows) {
      product_block<decltype(rows)::value, kVectors, false>(
          dscores_ + r * ld_, ld_, 1, seen(tile, r + decltype(rows)::value - 1), keys_ + x, wide_k_,
          dq_ + r * wide_k_ + x, wide_k_);
    });
  });
}

}  // namespace subquad
