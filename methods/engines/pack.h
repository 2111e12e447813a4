// Copies that make the inner products unit-stride: transposed panels, and rows of whole vectors.
#pragma once

#include <algorithm>

#include "methods/engines/tile_product.h"
#include "methods/engines/transpose_square.h"

namespace subquad::engine {

// Rows [n, d] -> panels [n / kPanel, d, kPanel], times `factor`; masked and missing rows are zero.
inline void pack_panel(const float* rows, Index n, Index d, Index panel, float factor,
                       const std::uint8_t* mask, float* out) {
  const Index first = panel * kPanel, count = std::min<Index>(kPanel, n - first);
  const float* const from = rows + first * d;
  const auto present = [&](Index j) {
    return j < count && (mask == nullptr || mask[first + j] != 0);
  };
  const Index squares = d / kLanes * kLanes;
  for (Index j = 0; j < kPanel; j += kLanes)
    for (Index x = 0; x < squares; x += kLanes) {
      if (j >= count) {
        for (int i = 0; i < kLanes; ++i) store(out + (x + i) * kPanel + j, Vec{});
        continue;
      }
      Vec square[kLanes];
      if (j + kLanes <= count && mask == nullptr) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(from + (j + i) * d + x) * factor;
      } else {
        for (int i = 0; i < kLanes; ++i)
          square[i] = present(j + i) ? load(from + (j + i) * d + x) * factor : Vec{};
      }
      transpose_square(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(out + (x + i) * kPanel + j, square[i]);
    }
  for (Index x = squares; x < d; ++x)
    for (Index j = 0; j < kPanel; ++j)
      out[x * kPanel + j] = present(j) ? from[j * d + x] * factor : 0.0f;
}

// The largest squared norm of the panel's keys, in any lane; NaN is passed over.
inline Vec panel_norms(const float* panel, Index d) {
  Vec sum[kPanelVectors] = {};
  for (Index x = 0; x < d; ++x)
    for (int v = 0; v < kPanelVectors; ++v) {
      const Vec value = load(panel + x * kPanel + v * kLanes);
      sum[v] += value * value;
    }
  Vec largest{};
  for (const Vec& s : sum) largest = s > largest ? s : largest;
  return largest;
}

// Rows [n, d] -> rows [n, wide], zero beyond d; masked rows are zero.
inline void pack_rows(const float* rows, Index n, Index d, Index wide, const std::uint8_t* mask,
                      float* out) {
  for (Index i = 0; i < n; ++i) {
    const bool present = mask == nullptr || mask[i] != 0;
    for (Index x = 0; x < d; ++x) out[i * wide + x] = present ? rows[i * d + x] : 0.0f;
    for (Index x = d; x < wide; ++x) out[i * wide + x] = 0.0f;
  }
}

}  // namespace subquad::engine
