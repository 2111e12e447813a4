// A cache that releases the token of the lowest accumulated score among those that are not recent:
// what H2O and Keyformer have in common.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "methods/engines/cache_policy.h"

namespace subquad {

struct ScoredCacheOptions {
  Index m = 128;
  Index recent = 64;              // of them: the last tokens, which stay whatever they score
  bool prompt = false;            // a prefill is a prompt: dense attention, one choice at its end
  bool normalise_by_age = false;  // score / steps lived
};

class ScoredCache : public EvictingCache {
 public:
  ScoredCache(const StreamConfig& config, const ScoredCacheOptions& options)
      : EvictingCache(config, options.m),
        options_(options),
        score_(std::min(options.m + 1, config.capacity)),
        added_(options.prompt ? config.capacity : score_.size()),
        column_(options.prompt ? config.capacity : 0),
        row_(options.prompt ? engine::round_up(config.capacity, engine::kLanes) : 0),
        query_(options.prompt ? config.d_k + engine::kLanes : 0),
        identity_(column_.size()) {
    std::iota(identity_.data(), identity_.data() + identity_.size(), 0);
  }

  void reset() override {
    EvictingCache::reset();
    prompt_ = 0;
  }

  // With `prompt`: scores are column sums over all queries of the prompt, then the last `recent`
  // tokens and the m - recent of the largest score stay. O(length^2 d_k).
  void prefill(const StreamTokens& tokens) override {
    if (!options_.prompt || length_ > 0 || tokens.length == 0) return PolicyStream::prefill(tokens);
    check_room(tokens.length);
    std::fill_n(column_.data(), tokens.length, 0.0);
    prompt_ = tokens.length;
    for (Index t = 0; t < tokens.length; ++t) {
      dense_row(tokens, t);
      contributions(t, row_.data(), identity_.data(), t + 1, added_.data());
      for (Index j = 0; j <= t; ++j) column_[j] += added_[j];
    }
    std::vector<Index> kept(static_cast<std::size_t>(tokens.length));
    std::iota(kept.begin(), kept.end(), Index{0});
    const Index older = tokens.length - options_.recent, heavy = options_.m - options_.recent;
    if (tokens.length > options_.m) {
      const auto age_score = [&](Index j) { return ranked(column_[j], tokens.length - j); };
      std::partial_sort(kept.begin(), kept.begin() + heavy, kept.begin() + older,
                        [&](Index a, Index b) {  // of equals the later one
                          return age_score(a) > age_score(b) ||
                                 (age_score(a) == age_score(b) && a > b);
                        });
      kept.erase(kept.begin() + heavy, kept.begin() + older);
      std::sort(kept.begin(), kept.end());
    }
    fill(tokens, kept, tokens.length);
    for (std::size_t s = 0; s < kept.size(); ++s) score_[static_cast<Index>(s)] = column_[kept[s]];
  }

  double score(Index slot) const { return score_[slot]; }

  static double allocated(const StreamConfig& c, const ScoredCacheOptions& o) {
    const Index slots = std::min(o.m + 1, c.capacity);
    return EvictingCache::allocated(c, o.m) + 16.0 * static_cast<double>(slots) +
           (o.prompt ? 24.0 * static_cast<double>(c.capacity) : 0.0);
  }

 protected:
  // added[j] = what query t adds to the score of the token at positions[j], given its softmax
  // weights.
  virtual void contributions(Index t, const float* weights, const std::int32_t* positions,
                             Index count, double* added) = 0;

  void observe() override {
    score_[newest()] = 0;
    contributions(length_ - 1, weights(), positions(), count(), added_.data());
    for (Index s = 0; s < count(); ++s) score_[s] += added_[s];
  }
  Index victim() override {
    return lowest(options_.recent,
                  [&](Index s) { return ranked(score_[s], length_ - position(s)); });
  }
  double aux_bytes() const override {
    return 8.0 * static_cast<double>(std::min(count(), budget()));
  }
  Index prompt_length() const { return prompt_; }
  const ScoredCacheOptions& options() const { return options_; }

 private:
  double ranked(double score, Index age) const {
    return options_.normalise_by_age ? score / static_cast<double>(age) : score;
  }

  // Dense softmax weights of query t over tokens 0 .. t -> row_.
  void dense_row(const StreamTokens& tokens, Index t) {
    using namespace engine;
    const float factor = static_cast<float>(config_.scale) * kLog2e;
    const float* q = tokens.q + t * config_.d_k;
    for (Index c = 0; c < config_.d_k; ++c) query_[c] = factor * q[c];
    RowQuery(query_.data(), config_.d_k, query_.data() + config_.d_k)
        .score(ContiguousRows{tokens.k, config_.d_k}, t + 1, row_.data());
    const Bounds whole = mask_row(row_.data(), {0, t + 1}, nullptr, -kInfinity);
    const float max = whole_shift(horizontal_max(row_max(row_.data(), whole)));
    const float sum = horizontal_sum(exponentiate(row_.data(), whole, max));
    for (Index j = 0; j <= t; ++j) row_[j] /= sum;
  }

  ScoredCacheOptions options_;
  AlignedArray<double> score_;           // [slots]
  AlignedArray<double> added_, column_;  // of one query; of a prompt
  AlignedArray<float> row_, query_;      // of a prompt
  AlignedArray<std::int32_t> identity_;  // 0, 1, ...
  Index prompt_ = 0;                     // tokens of the prompt
};

inline constexpr const char* kScoredPrefillNote =
    "prefill: stream feeds a history token by token, as forward does; prompt scores it by dense "
    "attention and chooses once, as its code does";

}  // namespace subquad
