// Importance of tokens without a learned controller: heuristics for the cache of ADORE.
#pragma once

#include "methods/engines/rebuilding_plan.h"

namespace subquad {

// Later tokens first: with r = 0 a window, or with protected sinks StreamingLLM.
class RecencyScorer final : public TokenScorer {
 public:
  void append(const StreamTokens&, Index) override {}
  void score_past(Index n, float* s) override {
    for (Index i = 0; i < n; ++i) s[i] = static_cast<float>(i);
  }
  void score_some(Index, const std::int32_t* positions, Index count, float* s) override {
    for (Index e = 0; e < count; ++e) s[e] = static_cast<float>(positions[e]);
  }
  double aux_bytes(Index) const override { return 0; }
};

// A new draw for every pair of tokens.
class RandomScorer final : public TokenScorer {
 public:
  explicit RandomScorer(const StreamConfig& config) {
    const Seed seed =
        derive(config.seed, "adore.random", {static_cast<std::uint64_t>(config.first_head)});
    key_ = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  }
  void append(const StreamTokens&, Index) override {}
  void score_past(Index n, float* s) override {
    for (Index i = 0; i < n; ++i) s[i] = draw(n, i);
  }
  void score_some(Index n, const std::int32_t* positions, Index count, float* s) override {
    for (Index e = 0; e < count; ++e) s[e] = draw(n, positions[e]);
  }
  double aux_bytes(Index) const override { return 0; }

 private:
  float draw(Index n, Index i) const {
    const auto block =
        philox4x32({static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(i), 0, 0}, key_);
    return static_cast<float>(block[0] >> 8) / 16777216.0f;
  }
  std::array<std::uint32_t, 2> key_{};
};

// Attention collected so far while in the cache, mean over heads (as H2O, but shared by the heads
// and kept for released tokens).
class CollectedScorer final : public TokenScorer {
 public:
  explicit CollectedScorer(Index capacity) : sum_(capacity) {}
  void append(const StreamTokens&, Index n) override { sum_[n] = 0; }
  void score_past(Index n, float* s) override {
    for (Index i = 0; i < n; ++i) s[i] = static_cast<float>(sum_[i]);
  }
  void score_some(Index, const std::int32_t* positions, Index count, float* s) override {
    for (Index e = 0; e < count; ++e) s[e] = static_cast<float>(sum_[positions[e]]);
  }
  bool watches() const override { return true; }
  void observe(const std::int32_t* positions, const float* weights, Index count) override {
    for (Index e = 0; e < count; ++e) sum_[positions[e]] += static_cast<double>(weights[e]);
  }
  double aux_bytes(Index n) const override { return 8.0 * static_cast<double>(n); }

 private:
  AlignedArray<double> sum_;  // [capacity]
};

}  // namespace subquad
