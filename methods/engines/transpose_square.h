// Transposition of squares of kLanes x kLanes floats in registers, and of tiles made of them.
#pragma once

#include "methods/engines/simd.h"

namespace subquad::engine {

// Lane permutations of two vectors, by blocks of four lanes (the unit inside which shuffles are
// cheap): out = pick(a, b), where pattern(i) is a lane of a, or kLanes + a lane of b.
template <class Pattern>
[[gnu::always_inline]] inline Vec pick(Vec a, Vec b, Pattern pattern) {
  IntVec lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = pattern(i);
  return __builtin_shuffle(a, b, lanes);
}

// In place: kLanes vectors as the rows of a square, transposed. First the 4 x 4 blocks, then the
// blocks among themselves.
[[gnu::always_inline]] inline void transpose_square(Vec (&rows)[kLanes]) {
  const auto block = [](int i) { return i / 4 * 4; };
  const auto low = [&](int i) { return block(i) + i % 4 / 2 + i % 2 * kLanes; };
  const auto high = [&](int i) { return low(i) + 2; };
  const auto low_pair = [&](int i) { return block(i) + i % 2 + i % 4 / 2 * kLanes; };
  const auto high_pair = [&](int i) { return low_pair(i) + 2; };
#pragma GCC unroll 4
  for (int r = 0; r < kLanes; r += 4) {
    const Vec a = pick(rows[r], rows[r + 1], low), b = pick(rows[r], rows[r + 1], high);
    const Vec c = pick(rows[r + 2], rows[r + 3], low), d = pick(rows[r + 2], rows[r + 3], high);
    rows[r] = pick(a, c, low_pair);
    rows[r + 1] = pick(a, c, high_pair);
    rows[r + 2] = pick(b, d, low_pair);
    rows[r + 3] = pick(b, d, high_pair);
  }
  if constexpr (kLanes == 8) {
    const auto first = [](int i) { return i < 4 ? i : i - 4 + kLanes; };
    const auto second = [](int i) { return i < 4 ? i + 4 : i + kLanes; };
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec a = rows[j], b = rows[4 + j];
      rows[j] = pick(a, b, first);
      rows[4 + j] = pick(a, b, second);
    }
  } else if constexpr (kLanes == 16) {
    const auto halves = [](int i) { return i < 8 ? i : i - 8 + kLanes; };            // 0 1 | 0 1
    const auto upper = [](int i) { return i < 8 ? i + 8 : i + kLanes; };             // 2 3 | 2 3
    const auto even = [](int i) { return i % 4 + i / 4 % 2 * 8 + i / 8 * kLanes; };  // 0 2 | 0 2
    const auto odd = [&](int i) { return even(i) + 4; };                             // 1 3 | 1 3
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec a = pick(rows[j], rows[4 + j], halves), b = pick(rows[8 + j], rows[12 + j], halves);
      const Vec c = pick(rows[j], rows[4 + j], upper), d = pick(rows[8 + j], rows[12 + j], upper);
      rows[j] = pick(a, b, even);
      rows[4 + j] = pick(a, b, odd);
      rows[8 + j] = pick(c, d, even);
      rows[12 + j] = pick(c, d, odd);
    }
  }
}

// from [rows, ldf] -> to [cols, ldt]; rows and cols are multiples of kLanes.
inline void transpose(const float* from, Index ldf, Index rows, Index cols, float* to, Index ldt) {
  for (Index r = 0; r < rows; r += kLanes)
    for (Index c = 0; c < cols; c += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(from + (r + i) * ldf + c);
      transpose_square(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (c + i) * ldt + r, square[i]);
    }
}

}  // namespace subquad::engine
