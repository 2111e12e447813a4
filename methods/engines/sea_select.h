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

// Sum, largest or smallest of all lanes, by halves.
template <class Combine, int STEP = kLanes / 2>
inline std::int32_t reduce_lanes(IntVec v, Combine combine) {
  IntVec other{};
  for (int i = 0; i < kLanes; ++i) other[i] = i ^ STEP;
  v = combine(v, __builtin_shuffle(v, other));
  if constexpr (STEP > 1) {
    return reduce_lanes<Combine, STEP / 2>(v, combine);
  } else {
    return v[0];
  }
}
inline std::int32_t largest_lane(IntVec v) {
  return reduce_lanes(v, [](IntVec a, IntVec b) { return a > b ? a : b; });
}

// values [count rounded up to whole vectors], >= 0; what lies beyond count is -1.
inline Index count_above(const float* values, Index count, std::int32_t limit) {
  IntVec sum{};
  for (Index i = 0; i < count; i += kLanes)
    sum -= reinterpret_cast<IntVec>(load(values + i)) > limit - IntVec{};
  return reduce_lanes(sum, [](IntVec a, IntVec b) { return a + b; });
}

// The smallest and the largest value of (low, high], as bits; {high, low} when there is none.
struct BitRange {
  std::int32_t least, most;
};
inline BitRange range_between(const float* values, Index count, std::int32_t low,
                              std::int32_t high) {
  IntVec least = high - IntVec{}, most = low - IntVec{};
  for (Index i = 0; i < count; i += kLanes) {
    const IntVec v = reinterpret_cast<IntVec>(load(values + i));
    const auto inside = v > low && v <= high;
    least = inside && v < least ? v : least;
    most = inside && v > most ? v : most;
  }
  return {reduce_lanes(least, [](IntVec a, IntVec b) { return a < b ? a : b; }),
          largest_lane(most)};
}

// The limit that `keep` of `all` values pass. count(limit) says how many lie above one, none above
// `highest`; range(low, high) is range_between. Usually about ten counts: it ends at the first
// limit that fits. Every few counts the interval is narrowed to values that occur, so that many
// equal ones end it as well.
template <class Count, class Narrow>
inline SeaLimit select_by_count(const Count& count, const Narrow& range, std::int32_t highest,
                                Index all, Index keep) {
  if (keep >= all) return {-1, 0};        // every number >= 0 lies above
  std::int32_t low = -1, high = highest;  // more than `keep` lie above low, no more above high
  Index above_high = 0;
  for (int step = 1; low + 1 < high; ++step) {
    const std::int32_t middle = low + (high - low) / 2;
    const Index above = count(middle);
    if (above == keep) return {middle, 0};
    if (above > keep) {
      low = middle;
    } else {
      high = middle;
      above_high = above;
    }
    if (step % 6 != 0) continue;
    const BitRange inside = range(low, high);
    if (inside.least >= inside.most) return {inside.most, keep - above_high};
    low = inside.least - 1;
    high = inside.most;
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
  return select_by_count(
      [&](std::int32_t limit) { return count_above(values, wide, limit); },
      [&](std::int32_t low, std::int32_t high) { return range_between(values, wide, low, high); },
      largest_lane(most), all, keep);
}

}  // namespace subquad::engine
