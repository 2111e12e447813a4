// Register-blocked products of small tiles: the inner loops of every attention engine.
//
//   c[r, :] (+)= sum_t a[r * a_row + t * a_col] * b[t * ldb + :]
//
// a is read by broadcasts (any strides, so a transposed tile costs nothing), b by unit-stride
// vectors, c lives in registers for the whole sum. kProductRows x kProductVectors accumulators
// leave room for one row of b and one broadcast. Sums of a call start at zero and are added to c
// once: long sums are thereby blocked, which keeps float32 rounding small.
#pragma once

#include "methods/engines/simd.h"

namespace subquad::engine {

// Accumulator blocks that fit the register file, by vectors per row; every one divides kRowUnit.
constexpr int product_rows(int vectors) {
  if (kRegisters == 32) return vectors >= 4 ? 6 : vectors == 3 ? 8 : 12;
  return vectors >= 3 ? 4 : vectors == 2 ? 6 : 12;
}
inline constexpr int kRowUnit = 24;  // rows of a tile come in multiples of this
inline constexpr int kProductVectors = kRegisters == 32 ? 4 : 2;  // widest block of columns
inline constexpr int kPanelVectors = 3;                // vectors per row of a packed panel
inline constexpr int kPanel = kPanelVectors * kLanes;  // keys per panel

// Calls take(row, vectors of that row's sums) while the sums are in registers.
template <int ROWS, int VECTORS, class Take>
[[gnu::always_inline]] inline void product_block_into(const float* __restrict a, Index a_row,
                                                      Index a_col, Index terms,
                                                      const float* __restrict b, Index ldb,
                                                      Take&& take) {
  Vec sum[ROWS][VECTORS], row[VECTORS];
  if (terms > 0) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vec factor = broadcast(a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = factor * row[v];
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = Vec{};
  }
  for (Index t = 1; t < terms; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) row[v] = load(b + t * ldb + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vec factor = broadcast(a[r * a_row + t * a_col]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) take(r, sum[r]);
}

template <int ROWS, int VECTORS, bool ACCUMULATE>
[[gnu::always_inline]] inline void product_block(const float* __restrict a, Index a_row,
                                                 Index a_col, Index terms,
                                                 const float* __restrict b, Index ldb,
                                                 float* __restrict c, Index ldc) {
  product_block_into<ROWS, VECTORS>(a, a_row, a_col, terms, b, ldb, [&](int r, Vec* sum) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      float* const place = c + r * ldc + v * kLanes;
      if constexpr (ACCUMULATE) sum[v] += load(place);
      store(place, sum[v]);
    }
  });
}

// Calls body(first column, std::integral_constant<int, vectors>) for blocks that cover `width`
// floats (a multiple of kLanes).
template <class Body>
inline void for_column_blocks(Index width, Body&& body) {
  Index c = 0;
  for (; c + kProductVectors * kLanes <= width; c += kProductVectors * kLanes)
    body(c, std::integral_constant<int, kProductVectors>{});
  if constexpr (kProductVectors == 4) {
    if (c + 3 * kLanes <= width) {
      body(c, std::integral_constant<int, 3>{});
      c += 3 * kLanes;
    } else if (c + 2 * kLanes <= width) {
      body(c, std::integral_constant<int, 2>{});
      c += 2 * kLanes;
    }
  }
  if (c < width) body(c, std::integral_constant<int, 1>{});
}

// Calls body(first row, std::integral_constant<int, rows>) for blocks that cover any number of
// rows: whole register blocks, then pairs, then a single one.
template <int VECTORS, class Body>
inline void for_row_blocks(Index rows, Body&& body) {
  constexpr int kRows = product_rows(VECTORS);
  Index r = 0;
  for (; r + kRows <= rows; r += kRows) body(r, std::integral_constant<int, kRows>{});
  for (; r + 2 <= rows; r += 2) body(r, std::integral_constant<int, 2>{});
  if (r < rows) body(r, std::integral_constant<int, 1>{});
}

// c [rows, width] (+)= a * b [terms, width] for any number of rows; width is a multiple of kLanes.
template <bool ACCUMULATE>
inline void product(const float* a, Index a_row, Index a_col, Index rows, Index terms,
                    const float* b, Index ldb, Index width, float* c, Index ldc) {
  for_column_blocks(width, [&](Index x, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    for_row_blocks<kVectors>(rows, [&](Index r, auto count) {
      product_block<decltype(count)::value, kVectors, ACCUMULATE>(
          a + r * a_row, a_row, a_col, terms, b + x, ldb, c + r * ldc + x, ldc);
    });
  });
}

}  // namespace subquad::engine
