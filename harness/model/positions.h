// Tables of fixed position encodings: sinusoids that are added or joined, and rotations of q and k.
#pragma once

#include <cmath>

#include "harness/core/tensor.h"

namespace subquad {

inline constexpr double kWaveLength = 10000;  // Vaswani et al. 2017, section 3.5; RoFormer likewise

// [n, width]: sine in even columns, cosine in odd ones.
template <class T>
AlignedArray<T> sinusoid_table(Index n, Index width) {
  AlignedArray<T> table(n * width);
  for (Index t = 0; t < n; ++t)
    for (Index i = 0; i < width; ++i) {
      const double angle =
          static_cast<double>(t) *
          std::pow(kWaveLength, -static_cast<double>(i / 2 * 2) / static_cast<double>(width));
      table[t * width + i] = static_cast<T>(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
    }
  return table;
}

// [n, half] each: column i turns columns i and half + i of a row of width 2 half.
template <class T>
struct RotationTable {
  AlignedArray<T> cosine, sine;

  RotationTable() = default;
  RotationTable(Index n, Index half) : cosine(n * half), sine(n * half) {
    for (Index t = 0; t < n; ++t)
      for (Index i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(t) *
            std::pow(kWaveLength, -static_cast<double>(i) / static_cast<double>(half));
        cosine[t * half + i] = static_cast<T>(std::cos(angle));
        sine[t * half + i] = static_cast<T>(std::sin(angle));
      }
  }
};

}  // namespace subquad
