// Cells of SEA: the exact map between cells of the compressed mask and keys, the number of cells
// that are kept, and which keys a kept cell stands for.
// Source: Lee et al. 2024, "SEA" (arXiv 2310.01777), section 3, and the authors' code. Integers
// throughout: the map in floating point differs from the definition for long sequences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "harness/core/random.h"

namespace subquad::engine {

// Cell c of a row that sees `length` keys owns the keys [first(c), first(c + 1)):
// first(c) = round_half_up(c length / cells). With fewer keys than cells some cells own none.
struct SeaCells {
  Index cells = 1, length = 0;

  Index first(Index c) const { return (2 * c * length + cells) / (2 * cells); }
  Index width(Index c) const { return first(c + 1) - first(c); }
  // The cell of key j < length.
  Index of_key(Index j) const {
    Index c = std::min((2 * j + 1) * cells / (2 * length), cells - 1);
    while (c > 0 && first(c) > j) --c;
    while (first(c + 1) <= j) ++c;
    return c;
  }
};

// round(numerator / denominator), halves to even.
inline Index round_half_even(Index numerator, Index denominator) {
  const Index whole = numerator / denominator, rest = 2 * (numerator % denominator);
  return rest > denominator || (rest == denominator && whole % 2 == 1) ? whole + 1 : whole;
}

// Cells kept out of `all`, which stand for `length` keys in `cells` cells each, when `keys` keys
// are wanted in each of all / cells groups.
inline Index sea_budget(Index all, Index keys, Index cells, Index length) {
  return std::clamp<Index>(round_half_even(all / cells * keys * cells, length), 1, all);
}

// Calls emit(key) in ascending order for the keys that a kept cell [first, last) stands for: all of
// them, or `most` evenly spaced ones counted from the right.
template <class Emit>
inline void sea_stretch(Index first, Index last, Index most, Emit&& emit) {
  const Index width = last - first, count = std::min(width, most);
  if (count == width) {
    for (Index j = first; j < last; ++j) emit(j);
  } else {
    for (Index i = count - 1; i >= 0; --i) emit(last - 1 - i * width / count);
  }
}

// A number in (0, 1) for cell `place` of a random mask, from its place alone. Place of cell c of
// query t and head bh = b * heads + h: (bh n + t) cells + c.
inline float sea_hashed(Seed seed, Index place) {
  std::uint64_t x = seed + 0x9e3779b97f4a7c15ull * static_cast<std::uint64_t>(place + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;  // splitmix64
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return (static_cast<float>(x >> 40) + 0.5f) * 0x1p-24f;
}

}  // namespace subquad::engine
