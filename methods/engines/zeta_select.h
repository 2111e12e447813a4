// The nearest of a run of points: distances to points stored by coordinate, and the choice of the
// smallest ones without sorting. A vector of points at a time; every distance is added up in the
// same order wherever its point lies, so equal points have equal distances.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "methods/engines/simd.h"

namespace subquad::engine {

inline Index whole_vectors(Index count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Points by coordinate: coordinate c of point j is coordinate[c * stride + j]. Whole vectors are
// read: kLanes floats behind the last point must exist.
struct Points {
  const float* coordinate = nullptr;
  Index stride = 0;
};

// distances[j] = |q - point(first + j)|^2 for j < count; whole vectors are written, the rest of the
// last one is infinite. O(count dims).
template <int DIMS>
[[gnu::always_inline]] inline void squared_distances_of(const float* q, Index dims,
                                                        const Points& points, Index first,
                                                        Index count, float* distances) {
  if (DIMS > 0) dims = DIMS;
  for (Index j = 0; j < count; j += kLanes) {
    Vec sum{};
    for (Index c = 0; c < dims; ++c) {
      const Vec away = q[c] - load(points.coordinate + c * points.stride + first + j);
      sum += away * away;
    }
    store(distances + j, sum);
  }
  for (Index j = count; j < whole_vectors(count); ++j)
    distances[j] = std::numeric_limits<float>::infinity();
}
inline void squared_distances(const float* q, Index dims, const Points& points, Index first,
                              Index count, float* distances) {
  if (dims == 3) return squared_distances_of<3>(q, dims, points, first, count, distances);
  squared_distances_of<0>(q, dims, points, first, count, distances);
}

namespace lanes_detail {

template <int WIDTH, int... I>
inline IntVec lanes_across(std::integer_sequence<int, I...>) {
  return IntVec{(I ^ WIDTH)...};
}
}  // namespace lanes_detail

// combine() of all lanes, in every lane.
template <class V, class Combine>
[[gnu::always_inline]] inline V across_lanes(V v, Combine combine) {
  constexpr auto kAll = std::make_integer_sequence<int, kLanes>();
  if constexpr (kLanes > 8)
    v = combine(v, __builtin_shuffle(v, lanes_detail::lanes_across<8>(kAll)));
  if constexpr (kLanes > 4)
    v = combine(v, __builtin_shuffle(v, lanes_detail::lanes_across<4>(kAll)));
  v = combine(v, __builtin_shuffle(v, lanes_detail::lanes_across<2>(kAll)));
  return combine(v, __builtin_shuffle(v, lanes_detail::lanes_across<1>(kAll)));
}

namespace select_detail {

// A limit with exactly `keep` distances within it. Where equal ones straddle the border there is
// none: then `exact` is false and the limit is the distance at the border.
struct Border {
  float limit = 0;
  bool exact = true;
};

// Distances are `vectors` whole vectors, infinite behind the last; keep < their number. `hint` is a
// guess that only speed depends on. Counts what lies within a limit and moves the limit by
// interpolation, in every third step to the middle; about five steps for 32 of 64.
template <int VECTORS>
[[gnu::always_inline]] inline Border border_of(const float* distances, Index vectors, Index keep,
                                               float hint) {
  if (VECTORS > 0) vectors = VECTORS;
  const auto within = [&](float limit) {  // a NaN is not above anything
    IntVec above{};
    for (Index v = 0; v < vectors; ++v) above += load(distances + v * kLanes) > limit - Vec{};
    return vectors * kLanes + across_lanes(above, [](IntVec a, IntVec b) { return a + b; })[0];
  };
  const Vec infinite = broadcast(std::numeric_limits<float>::infinity());
  Vec least = infinite, most{};
  for (Index v = 0; v < vectors; ++v) {
    const Vec d = load(distances + v * kLanes);
    least = d < least ? d : least;
    most = d == infinite ? most : max(d, most);
  }
  float low = across_lanes(least, [](Vec a, Vec b) { return a < b ? a : b; })[0];
  float high = across_lanes(most, [](Vec a, Vec b) { return max(a, b); })[0];
  Index few = within(low), many = within(high);
  if (few >= keep) return {low, few == keep};
  if (many == keep) return {high, true};
  float guess = hint;
  for (int step = 1;; ++step) {
    if (!(guess > low && guess < high)) {  // halve what floats lie between
      guess = std::bit_cast<float>(
          (std::bit_cast<std::uint32_t>(low) + std::bit_cast<std::uint32_t>(high)) / 2);
      if (!(guess > low && guess < high)) return {high, false};
    }
    const Index here = within(guess);
    if (here == keep) return {guess, true};
    const bool short_of = here < keep;
    low = short_of ? guess : low, few = short_of ? here : few;
    high = short_of ? high : guess, many = short_of ? many : here;
    const float share =
        step % 3 == 0 ? 0.5f : static_cast<float>(keep - few) / static_cast<float>(many - few);
    guess = low + share * (high - low);
  }
}

}  // namespace select_detail

// Which of `count` candidates are the `keep` < count nearest: their numbers, ascending, go to
// chosen [count + 1]. Ties: the smaller position first. `distances` as squared_distances leaves
// them; NaN counts as nearest of all, so that it shows in the output. *hint carries a guess from
// call to call. O(count) but for ties.
inline void choose_nearest(const float* distances, const std::int32_t* position, Index count,
                           Index keep, float* hint, std::int32_t* chosen) {
  using select_detail::Border, select_detail::border_of;
  const Index vectors = whole_vectors(count) / kLanes;
  const Border border = vectors == 4   ? border_of<4>(distances, vectors, keep, *hint)
                        : vectors == 2 ? border_of<2>(distances, vectors, keep, *hint)
                                       : border_of<0>(distances, vectors, keep, *hint);
  *hint = border.limit;
  Index found = 0;
  if (border.exact) {
    for (Index v = 0; v < vectors; ++v) {
      const IntVec above = load(distances + v * kLanes) > border.limit - Vec{};
      std::int32_t lanes[kLanes];
      std::memcpy(lanes, &above, sizeof above);
      const Index last = std::min<Index>(kLanes, count - v * kLanes);
      for (Index i = 0; i < last; ++i) {  // without branches
        chosen[found] = static_cast<std::int32_t>(v * kLanes + i);
        found += 1 + lanes[i];
      }
    }
    return;
  }
  for (Index j = 0; j < count; ++j) chosen[j] = static_cast<std::int32_t>(j);
  const auto nearer = [&](std::int32_t a, std::int32_t b) {
    const float x = distances[a] == distances[a] ? distances[a] : -1;
    const float y = distances[b] == distances[b] ? distances[b] : -1;
    return x != y ? x < y : position[a] < position[b];
  };
  std::nth_element(chosen, chosen + keep - 1, chosen + count, nearer);
  std::sort(chosen, chosen + keep);
}

}  // namespace subquad::engine
