// Copies that make the inner products unit-stride: transposed panels, and rows of whole vectors.
#pragma once

#include <algorithm>

#include "methods/engines/tile_product.h"

namespace subquad::engine {

// Rows [n, d] -> panels [n / kPanel, d, kPanel], times `factor`; masked and missing rows are zero.
inline void pack_panel(const float* rows, Index n, Index d, Index panel, float factor,
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
inline void pack_rows(const float* rows, Index n, Index d, Index wide, const std::uint8_t* mask,
                      float* out) {
  for (Index i = 0; i < n; ++i) {
    const bool present = mask == nullptr || mask[i] != 0;
    for (Index x = 0; x < d; ++x) out[i * wide + x] = present ? rows[i * d + x] : 0.0f;
    for (Index x = d; x < wide; ++x) out[i * wide + x] = 0.0f;
  }
}

}  // namespace subquad::engine
