// One tile of scores: which columns each row keeps, the two products, and the running softmax of a
// row.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "methods/engines/tile_product.h"

namespace subquad::engine {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLog2e = 1.44269504088896340736f;
inline constexpr float kLn2 = 0.69314718055994530942f;
inline constexpr int kScoreRows = product_rows(kPanelVectors);

inline Index round_up(Index x, Index unit) { return (x + unit - 1) / unit * unit; }

// Columns [lo, hi) of a score tile that a row keeps; empty rows have lo == hi.
struct Bounds {
  Index lo = 0, hi = 0;
};

inline Bounds union_of(const Bounds* bounds, Index rows) {
  Bounds all{std::numeric_limits<Index>::max(), 0};
  for (Index r = 0; r < rows; ++r)
    if (bounds[r].lo < bounds[r].hi) {
      all.lo = std::min(all.lo, bounds[r].lo);
      all.hi = std::max(all.hi, bounds[r].hi);
    }
  return all.lo < all.hi ? all : Bounds{};
}

// scores[r, columns] = a[r, :] * panels, for the whole vectors of columns that a group of rows
// needs.
inline void score_product(const float* a, Index lda, Index depth, const float* panels,
                          const Bounds* bounds, Index tile_rows, float* scores, Index ld) {
  // Panels outside, rows inside: a panel is read from L2 once and stays in L1 for all rows.
  const Bounds all = union_of(bounds, tile_rows);
  if (all.lo >= all.hi) return;
  for (Index p = all.lo / kPanel; p * kPanel < all.hi; ++p)
    for (Index r = 0; r < tile_rows; r += kScoreRows) {
      const Bounds group = union_of(bounds + r, kScoreRows);
      const Index lo = std::max<Index>(group.lo - p * kPanel, 0) / kLanes;
      const Index hi = (std::min<Index>(group.hi - p * kPanel, kPanel) + kLanes - 1) / kLanes;
      if (group.hi <= p * kPanel || lo >= hi) continue;
      const auto product = [&](auto vectors) {
        product_block<kScoreRows, decltype(vectors)::value, false>(
            a + r * lda, lda, 1, depth, panels + p * depth * kPanel + lo * kLanes, kPanel,
            scores + r * ld + p * kPanel + lo * kLanes, ld);
      };
      if (hi - lo == kPanelVectors) {
        product(std::integral_constant<int, kPanelVectors>{});
      } else if (hi - lo == 2) {
        product(std::integral_constant<int, 2>{});
      } else {
        product(std::integral_constant<int, 1>{});
      }
    }
}
static_assert(kPanelVectors == 3);

// out[r, :] += weights[r, j] * rows[j, :] over the columns that row r keeps. Rows of a register
// block share the columns that all of them keep; the few others are added row by row, so that a
// value which a query must not see is never touched (not even times zero: it may be NaN).
inline void weighted_rows(const float* weights, Index ld, const Bounds* bounds, Index tile_rows,
                          const float* rows, Index width, float* out) {
  for_column_blocks(width, [&](Index c, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    constexpr int kRows = product_rows(kVectors);
    for (Index r0 = 0; r0 < tile_rows; r0 += kRows) {
      Bounds common{0, std::numeric_limits<Index>::max()};
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
inline Bounds mask_row(float* row, Bounds b, const float* bias, float outside) {
  const Bounds whole{b.lo / kLanes * kLanes, round_up(b.hi, kLanes)};
  for (Index j = whole.lo; j < b.lo; ++j) row[j] = outside;
  for (Index j = b.hi; j < whole.hi; ++j) row[j] = outside;
  if (bias != nullptr)
    for (Index j = whole.lo; j < whole.hi; j += kLanes)
      store(row + j, load(row + j) + load(bias + j));
  return whole;
}

// The largest of every lane; whole vectors, at least one.
inline Vec row_max(const float* row, Bounds whole) {
  Vec m0 = load(row + whole.lo), m1 = m0, m2 = m0, m3 = m0;
  Index j = whole.lo;
  for (; j + 4 * kLanes <= whole.hi; j += 4 * kLanes) {
    m0 = max(m0, load(row + j));
    m1 = max(m1, load(row + j + kLanes));
    m2 = max(m2, load(row + j + 2 * kLanes));
    m3 = max(m3, load(row + j + 3 * kLanes));
  }
  for (; j < whole.hi; j += kLanes) m0 = max(m0, load(row + j));
  return max(max(m0, m1), max(m2, m3));
}

// What a row of scores with this maximum is shifted by: the next even whole number. A whole number
// makes the exponential cheaper, and rescaling by powers of two exact; an even one rounds scores
// half way between two whole numbers to the same side as any other even one.
inline float whole_shift(float maximum) { return 2 * std::ceil(maximum / 2); }

// row = 2^(row - shift) for a shift of whole_shift(); adds to the sum of every lane. Panels are
// summed one after another, as bounded_weights does: both give the same bits.
inline Vec exponentiate(float* row, Bounds whole, float shift, Vec sum = Vec{}) {
  if (!(std::abs(shift) < Exp2Below::kMaxShift)) {
    for (Index j = whole.lo; j < whole.hi; j += kLanes) store(row + j, load(row + j) - shift);
    shift = 0;
  }
  const Exp2Below exp2(shift);
  Index j = whole.lo;
  const auto part = [&](Index end) {
    Vec part_sum{};
    for (; j < end; j += kLanes) {
      const Vec e = exp2(load(row + j));
      store(row + j, e);
      part_sum += e;
    }
    sum += part_sum;
  };
  if (j % kPanel != 0) part(std::min(whole.hi, round_up(j, kPanel)));
  for (; j + kPanel <= whole.hi; j += kPanel) {
    const Vec e0 = exp2(load(row + j));
    const Vec e1 = exp2(load(row + j + kLanes));
    const Vec e2 = exp2(load(row + j + 2 * kLanes));
    store(row + j, e0);
    store(row + j + kLanes, e1);
    store(row + j + 2 * kLanes, e2);
    sum += (e0 + e1) + e2;
  }
  if (j < whole.hi) part(whole.hi);
  return sum;
}

// Scores of at most this size need no maximum: their powers of two stay far from the ends of
// float32, and shifts being even numbers, the bits of the result are those of any other shift.
inline constexpr float kBoundedScore = 24;

// weights[r, columns] = 2^(a[r, :] * panels) for scores of at most kBoundedScore, exponentiated
// while they are in registers; adds to the sums of every lane and row.
inline void bounded_weights(const float* a, Index lda, Index depth, const float* panels,
                            const Bounds* bounds, Index tile_rows, float* weights, Index ld,
                            Vec* sums) {
  const Bounds all = union_of(bounds, tile_rows);
  for (Index p = all.lo / kPanel; p * kPanel < all.hi; ++p) {
    const Index first = p * kPanel;
    for (Index r0 = 0; r0 < tile_rows; r0 += kScoreRows) {
      const auto whole = [&](const Bounds& b) { return b.lo <= first && b.hi >= first + kPanel; };
      if (std::all_of(bounds + r0, bounds + r0 + kScoreRows, whole)) {
        product_block_into<kScoreRows, kPanelVectors>(
            a + r0 * lda, lda, 1, depth, panels + p * depth * kPanel, kPanel,
            [&](int r, const Vec* score) {
              float* const row = weights + (r0 + r) * ld + first;
              const Vec e0 = exp2_bounded(score[0]);
              const Vec e1 = exp2_bounded(score[1]);
              const Vec e2 = exp2_bounded(score[2]);
              store(row, e0);
              store(row + kLanes, e1);
              store(row + 2 * kLanes, e2);
              sums[r0 + r] += (e0 + e1) + e2;
            });
        continue;
      }
      Bounds part[kScoreRows];
      for (Index r = 0; r < kScoreRows; ++r) {
        const Bounds& b = bounds[r0 + r];
        part[r] = {std::clamp<Index>(b.lo - first, 0, kPanel),
                   std::clamp<Index>(b.hi - first, 0, kPanel)};
        if (part[r].lo >= part[r].hi) part[r] = {};
      }
      float* const rows = weights + r0 * ld + first;
      score_product(a + r0 * lda, lda, depth, panels + p * depth * kPanel, part, kScoreRows, rows,
                    ld);
      for (Index r = 0; r < kScoreRows; ++r) {
        if (part[r].lo >= part[r].hi) continue;
        const Bounds kept = mask_row(rows + r * ld, part[r], nullptr, -kInfinity);
        sums[r0 + r] = exponentiate(rows + r * ld, kept, 0, sums[r0 + r]);
      }
    }
  }
}
static_assert(kPanelVectors == 3);

}  // namespace subquad::engine
