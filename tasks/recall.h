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

// Q, K, V of sequences [n_kv, 2] of (key, value), value 0 being none: q_t = r C[key_t],
// k_t = r C[key_t], v_t = U[value_t] or 0, r^2 scale = sharpness. With `keys_at_queries` false k_t
// is 0 where there is no value.
[[maybe_unused]] void fill_two_token_rows(const Problem& p, Seed seed, const char* owner,
                                          const std::vector<Tokens>& sequences, double sharpness,
                                          bool keys_at_queries, QKV* out) {
  const double scale = p.logit_scale(), r = std::sqrt(sharpness / std::fabs(scale));
  const float sign = scale < 0 ? -1.0f : 1.0f;
  const Index offset = p.causal_offset();
  for_rows(p.batch, p.heads, p.n_kv, [&](Index b, Index h, Index begin, Index end) {
    const Tokens& x = sequences[static_cast<std::size_t>(b)];
    float* q = out->q.view().head_data(b, h);
    for (Index t = begin; t < end; ++t) {
      const std::int32_t key = x[static_cast<std::size_t>(2 * t)];
      const std::int32_t value = x[static_cast<std::size_t>(2 * t + 1)];
      float* const k = out->k.view().head_data(b, h) + t * p.d_k;
      float* const v = out->v.view().head_data(b, h) + t * p.d_v;
      token_code(seed, owner, h, key, r, p.d_k, k);
      if (t >= offset)
        for (Index c = 0; c < p.d_k; ++c) q[(t - offset) * p.d_k + c] = sign * k[c];
      if (value != 0) {
        token_value(seed, owner, h, value, p.d_v, v);
      } else {
        std::fill_n(v, p.d_v, 0.0f);
        if (!keys_at_queries) std::fill_n(k, p.d_k, 0.0f);
      }
    }
  });
}

[[maybe_unused]] double random_value_floor(Index vocabulary) {
  return 1.0 / static_cast<double>(vocabulary - vocabulary / 2);
}

}  // namespace
}  // namespace subquad
