// Between rows of values in memory and columns that a transform can take: the same numbers in
// another order and precision, by squares of 8 x 8 that stay in registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "harness/core/types.h"

namespace subquad::lanes {

constexpr Index kSquare = 8;

template <class T>
struct Eight {
  typedef T Vec __attribute__((vector_size(kSquare * sizeof(T))));
};
template <class T>
struct EightMask;
template <>
struct EightMask<float> {
  typedef std::int32_t Vec __attribute__((vector_size(kSquare * 4)));
};
template <>
struct EightMask<double> {
  typedef std::int64_t Vec __attribute__((vector_size(kSquare * 8)));
};

// In place: 8 vectors as the rows of a square. Round `step` swaps what lies `step` off the
// diagonal.
template <class T>
[[gnu::always_inline]] inline void transpose_eight(typename Eight<T>::Vec (&rows)[kSquare]) {
#pragma GCC unroll 3
  for (int step = 1; step < kSquare; step *= 2) {
    typename EightMask<T>::Vec upper, lower;
    for (int i = 0; i < kSquare; ++i) {
      const bool right = (i & step) != 0;
      constexpr int kOther = kSquare;  // the first lane of the second vector
      upper[i] = right ? kOther + i - step : i;
      lower[i] = right ? kOther + i : i + step;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kSquare; ++i) {
      if ((i & step) != 0) continue;
      const auto a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, upper);
      rows[i + step] = __builtin_shuffle(a, b, lower);
    }
  }
}

// One square of rows_to_columns, and of columns_to_rows.
template <class In, class T>
[[gnu::always_inline]] inline void square_to_columns(const In* x, Index ld, T* to, Index stride) {
  typename Eight<T>::Vec square[kSquare];
#pragma GCC unroll 8
  for (Index i = 0; i < kSquare; ++i) {
    typename Eight<In>::Vec row;
    std::memcpy(&row, x + i * ld, sizeof row);
    square[i] = __builtin_convertvector(row, typename Eight<T>::Vec);
  }
  transpose_eight<T>(square);
#pragma GCC unroll 8
  for (Index i = 0; i < kSquare; ++i) std::memcpy(to + i * stride, &square[i], sizeof square[i]);
}
template <class T, class Out, class Factor>
[[gnu::always_inline]] inline void square_to_rows(const T* from, Index stride, Factor&& factor,
                                                  Out* out, Index ld) {
  typename Eight<T>::Vec square[kSquare];
#pragma GCC unroll 8
  for (Index i = 0; i < kSquare; ++i) std::memcpy(&square[i], from + i * stride, sizeof square[i]);
  transpose_eight<T>(square);
#pragma GCC unroll 8
  for (Index i = 0; i < kSquare; ++i) {
    const auto row = __builtin_convertvector(
        __builtin_convertvector(square[i], typename Eight<double>::Vec) * factor(i),
        typename Eight<Out>::Vec);
    std::memcpy(out + i * ld, &row, sizeof row);
  }
}

// Rows that are gone through together: they fill the cache lines of the columns. Every column is a
// stream of its own, too many for the processor to see ahead by itself.
constexpr Index kRowsTogether = 16, kRowsAhead = 64;

// to[c * stride + r] = x[r * ld + c] for r < rows, c < columns.
template <class In, class T>
void rows_to_columns(const In* x, Index ld, Index rows, Index columns, T* to, Index stride) {
  const Index whole_rows = rows / kSquare * kSquare, whole = columns / kSquare * kSquare;
  for (Index r0 = 0; r0 < whole_rows; r0 += kRowsTogether)
    for (Index c = 0; c < whole; c += kSquare) {
      for (Index i = 0; i < kSquare; ++i)
        __builtin_prefetch(to + (c + i) * stride + r0 + kRowsAhead, 1);
      for (Index r = r0; r < r0 + kRowsTogether && r < whole_rows; r += kSquare)
        square_to_columns(x + r * ld + c, ld, to + c * stride + r, stride);
    }
  for (Index r = 0; r < rows; ++r)
    for (Index c = r < whole_rows ? whole : 0; c < columns; ++c)
      to[c * stride + r] = static_cast<T>(x[r * ld + c]);
}

// out[r * ld + c] = from[c * stride + r] * unit * scale[r]; scale may be null.
template <class T, class Out>
void columns_to_rows(const T* from, Index stride, Index rows, Index columns, double unit,
                     const double* scale, Out* out, Index ld) {
  const Index whole_rows = rows / kSquare * kSquare, whole = columns / kSquare * kSquare;
  const auto factor = [&](Index r) { return scale != nullptr ? unit * scale[r] : unit; };
  for (Index r0 = 0; r0 < whole_rows; r0 += kRowsTogether)
    for (Index c = 0; c < whole; c += kSquare) {
      for (Index i = 0; i < kSquare; ++i)
        __builtin_prefetch(from + (c + i) * stride + r0 + kRowsAhead);
      for (Index r = r0; r < r0 + kRowsTogether && r < whole_rows; r += kSquare)
        square_to_rows(
            from + c * stride + r, stride, [&](Index i) { return factor(r + i); }, out + r * ld + c,
            ld);
    }
  for (Index r = 0; r < rows; ++r)
    for (Index c = r < whole_rows ? whole : 0; c < columns; ++c)
      out[r * ld + c] = static_cast<Out>(static_cast<double>(from[c * stride + r]) * factor(r));
}

}  // namespace subquad::lanes
