// The machinery of ADORE (arXiv 2407.02328): a cache whose heads share one set of tokens, which
// releases the tokens of lowest importance and fetches released ones back.
//
// Step n, with C the tokens in the cache:
//   B = the r highest-scored tokens among those that were released, by position
//   attend to C, B and n with every head
//   keep n and the m - 1 highest-scored tokens of C and B; of equals the later ones
// The score of a token for the current one comes from a TokenScorer.
#pragma once

#include <memory>

#include "methods/engines/cache_policy.h"

namespace subquad {

// How important a past token is for the current one; larger is better.
class TokenScorer {
 public:
  virtual ~TokenScorer() = default;
  virtual void reset() {}
  // Token n has arrived: rows 0 of `token`.
  virtual void append(const StreamTokens& token, Index n) = 0;
  // s[i] = importance of token i < n for token n, which is the last one appended.
  virtual void score_past(Index n, float* s) = 0;
  // The same for the tokens at `positions` alone: s[e] is that of positions[e].
  virtual void score_some(Index n, const std::int32_t* positions, Index count, float* s) = 0;
  // Whether observe() is to be called after attention, with the head mean of the weights.
  virtual bool watches() const { return false; }
  virtual void observe(const std::int32_t* /*positions*/, const float* /*weights*/,
                       Index /*count*/) {}
  virtual double aux_bytes(Index n) const = 0;  // that grow with the history or are state
};

struct RebuildOptions {
  Index m = 128;  // tokens kept between steps
  Index r = 4;    // released tokens that a step fetches
  bool keep_rebuilt = true;
  bool rebuild_gate = false;  // only those scored above the lowest of the cache
  Index protect_recent = 0;   // the last tokens stay whatever their score ...
  Index protect_sinks = 0;    // ... and the first ones
  bool prompt = false;        // a prefill keeps the m best at its end
  bool project = false;       // keys and values come from x by StreamConfig::w_k, w_v; else copied
};

class RebuildingCache final : public PolicyStream {
 public:
  RebuildingCache(const StreamConfig& config, const RebuildOptions& options,
                  std::unique_ptr<TokenScorer> scorer);

  void reset() override;
  // Time O((m + r) H (d_k + d_v)), and with r > 0 scoring and looking through all n tokens.
  void step(const StreamTokens& token, float* out, Index out_stride) override;
  void prefill(const StreamTokens& tokens) override;
  CacheBytes bytes() const override;
  std::vector<VisibleKey> visible(Index head) const override;

  // What the constructor allocates, without the scorer.
  static double allocated(const StreamConfig& config, const RebuildOptions& options);

 private:
  struct Candidate {
    float score;
    std::int32_t position;
  };

  static Index slots(const StreamConfig& c, const RebuildOptions& o) {
    return std::min(o.m + o.r + 1, c.capacity);
  }
  void store_cold(const StreamTokens& token, Index n);
  void fetch(Index position, Index slot);
  void choose_released(Index n);
  void keep_best(Index n, Index total);
  bool is_protected(Index position, Index n) const {
    return position < options_.protect_sinks || n - position < options_.protect_recent;
  }

  RebuildOptions options_;
  std::unique_ptr<TokenScorer> scorer_;
  CacheSlots cache_;
  AlignedArray<float> cold_k_, cold_v_;  // [heads, capacity, d], copied
  AlignedArray<float> cold_x_;           // [capacity, d_e], projected
  AlignedArray<std::int32_t> slot_of_;   // [capacity] -1: released
  AlignedArray<std::int32_t> position_;  // [slots]
  AlignedArray<std::int32_t> seen_;      // [slots] positions of the last step
  AlignedArray<float> scores_;           // [capacity] of the past tokens, where r > 0
  AlignedArray<float> slot_score_;       // [slots]
  AlignedArray<float> mean_;             // [slots] head mean of the weights
  AlignedArray<std::int32_t> order_;     // [slots]
  std::vector<Candidate> released_;      // [r] of this step
  Index count_ = 0, seen_count_ = 0;
  bool scored_ = false;  // scores_ are those of this step
};

}  // namespace subquad
