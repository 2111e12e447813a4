// What the two halves of TiledAttention share: tile sizes, bounds of rows, pointers of a head.
// Included by tiled_attention*.cpp alone.
#pragma once

#include <utility>

#include "harness/core/parallel.h"
#include "methods/engines/pack.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/tiled_attention.h"

namespace subquad {

using namespace engine;

// Forward tile: 24 queries x 768 keys of scores (72 KiB) stay in L2 together with the values.
inline constexpr Index kTileRows = kRowUnit;
inline constexpr Index kTileKeys = kPanel * (768 / kPanel);
// Backward tile: 96 x 192; the longer side of queries keeps the transposed products long.
inline constexpr Index kBackRows = 4 * kRowUnit;
inline constexpr Index kBackKeys = kPanel * (192 / kPanel);

// Panels that are packed by one item of work.
inline constexpr Index kPackedPanels = 8;

// Rows of a dq accumulator: register blocks at its end write past row n.
inline Index padded_rows(Index n) { return n + kRowUnit; }

// The bounds of rows i0 .. i0+rows-1 of a stripe within columns [j0, j0 + width); returns their
// union.
inline Bounds row_bounds(const Stripe& stripe, Index i0, Index rows, Index j0, Index width,
                         Bounds* bounds, Index tile_rows) {
  for (Index r = 0; r < tile_rows; ++r) {
    Bounds b;
    if (r < rows) {
      b.lo = std::clamp<Index>(stripe.first(i0 + r) - j0, 0, width);
      b.hi = std::clamp<Index>(stripe.last(i0 + r) - j0, 0, width);
    }
    bounds[r] = b.lo < b.hi ? b : Bounds{};
  }
  return union_of(bounds, tile_rows);
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
  float key_norm;             // the largest squared norm of a key in key_panels
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

template <class Body>
void TiledAttention::for_stripes(Index bh, Index i0, Body&& body) const {
  for (const Stripe& stripe : pattern_.common) body(stripe);
  if (pattern_.query_block == 0) return;
  const auto y = static_cast<std::size_t>(
      bh % problem_.heads % pattern_.listed_heads * pattern_.blocks + i0 / pattern_.query_block);
  for (Index x = pattern_.starts[y]; x < pattern_.starts[y + 1]; ++x)
    body(pattern_.listed[static_cast<std::size_t>(x)]);
}

template <class Body>
void TiledAttention::for_stripes_of_keys(Index bh, Index block, Body&& body) const {
  for (const Stripe& stripe : pattern_.common) body(stripe);
  if (pattern_.query_block == 0) return;
  const Index blocks = (problem_.n_kv + kBackKeys - 1) / kBackKeys;
  const auto y =
      static_cast<std::size_t>(bh % problem_.heads % pattern_.listed_heads * blocks + block);
  for (Index x = key_starts_[y]; x < key_starts_[y + 1]; ++x)
    body(pattern_.listed[static_cast<std::size_t>(by_keys_[static_cast<std::size_t>(x)])]);
}

}  // namespace subquad
