// What the tasks of associative recall share: where queries stand.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <numeric>

#include "tasks/sequences.h"

namespace subquad {
namespace {

// 1 / p_s up to a factor for slots s = 0 .. count - 1, p_s proportional to (s+1)^(power_a-1).
[[maybe_unused]] std::vector<double> mean_waits(Index count, double power_a) {
  std::vector<double> waits;
  for (Index s = 0; s < count; ++s)
    waits.push_back(portable_exp((1 - power_a) * portable_log(static_cast<double>(s + 1))));
  return waits;
}

// k distinct slots drawn one after another with weights 1 / waits, in the order drawn: the k
// smallest of T_s = E_s waits_s with E_s exponential, which is the same law.
[[maybe_unused]] std::vector<Index> draw_slots(Random& random, const std::vector<double>& waits,
                                               Index k) {
  std::vector<std::pair<double, Index>> slots;  // waiting time, slot
  for (std::size_t s = 0; s < waits.size(); ++s)
    slots.emplace_back(random.exponential() * waits[s], static_cast<Index>(s));
  std::partial_sort(slots.begin(), slots.begin() + k, slots.end());
  std::vector<Index> drawn;
  for (Index j = 0; j < k; ++j) drawn.push_back(slots[static_cast<std::size_t>(j)].second);
  return drawn;
}

// Ids of `pairs` distinct keys of [1, vocabulary / 2) and values of [vocabulary / 2, vocabulary).
struct Pairs {
  Tokens keys, values;
};
[[maybe_unused]] Pairs draw_pairs(Seed seed, Index vocabulary, Index pairs) {
  const Index half = vocabulary / 2;
  Pairs out;
  for (const Index key : Random(seed, "keys").sample_without_replacement(half - 1, pairs))
    out.keys.push_back(static_cast<std::int32_t>(key + 1));
  for (const Index value :
       Random(seed, "values").sample_without_replacement(vocabulary - half, pairs))
    out.values.push_back(static_cast<std::int32_t>(value + half));
  return out;
}

// `count` tokens of filler from position `begin` on: uniform over the vocabulary, or 0.
[[maybe_unused]] void fill_rest(Seed seed, Index vocabulary, bool random_filler, Index begin,
                                Tokens* tokens) {
  if (!random_filler) return;
  Random random(seed, "filler");
  for (std::size_t t = static_cast<std::size_t>(begin); t < tokens->size(); ++t)
    (*tokens)[t] = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocabulary)));
}

[[maybe_unused]] double random_value_floor(Index vocabulary) {
  return 1.0 / static_cast<double>(vocabulary - vocabulary / 2);
}

}  // namespace
}  // namespace subquad
