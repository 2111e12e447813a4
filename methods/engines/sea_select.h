// Which cells are kept: the `keep` largest of a row of probabilities, ties in favour of the lower
// index. No sorting: a limit is moved until it separates exactly that many.
#pragma once

#include <bit>

#include "methods/engines/sea_cells.h"
#include "methods/engines/simd.h"

namespace subquad::engine {

// Kept are the values above `limit`, and the first `ties` of those that equal it. Values are
// compared by their bits, which order as the numbers do for numbers >= 0.
struct SeaLimit {
  std::int32_t limit = -1;
  Index ties = 0;

  bool keeps(float value, Index* ties_left) const {
    const auto bits = std::bit_cast<std::int32_t>(value);
    if (bits != limit) return bits > limit;
    return (*ties_left)-- > 0;
  }
};

// values [count rounded up to whole vectors], >= 0; what lies beyond count is -1.
inline Index count_above(const float* values, Index count, std::int32_t limit) {
  IntVec sum{};
  for (Index i = 0; i < count; i += kLanes)
    sum -= reinterpret_cast<IntVec>(load(values + i)) > limit - IntVec{};
  Index total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

// The limit that `keep` of `all` values pass; count(limit) says how many lie above one, none above
// `highest`. Usually ten to fifteen counts: it ends at the first limit that fits.
template <class Count>
inline SeaLimit select_by_count(const Count& count, std::int32_t highest, Index all, Index keep) {
  if (keep >= all) return {-1, 0};  // every number >= 0 lies above
  std::int32_t low = -1, high = highest;  // more than `keep` lie above low, no more above high
  Index above_high = 0;
  while (low + 1 < high) {
    const std::int32_t middle = low + (high - low) / 2;
    const Index above = count(middle);
    if (above == keep) return {middle, 0};
    if (above > keep) {
      low = middle;
    } else {
      high = middle;
      above_high = above;
    }
  }
  return {high, keep - above_high};
}

// values [wide], of which `all` are >= 0.
inline SeaLimit select_largest(const float* values, Index wide, Index all, Index keep) {
  IntVec most{};
  for (Index i = 0; i < wide; i += kLanes) {
    const IntVec v = reinterpret_cast<IntVec>(load(values + i));
    most = v > most ? v : most;
  }
  std::int32_t highest = 0;
  for (int lane = 0; lane < kLanes; ++lane) highest = std::max(highest, most[lane]);
  return select_by_count([&](std::int32_t limit) { return count_above(values, wide, limit); },
                         highest, all, keep);
}

}  // namespace subquad::engine
