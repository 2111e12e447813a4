// The machinery of ADORE (arXiv 2407.02328): which tokens a cache holds that releases those of
// lowest importance and fetches released ones back. Keys and values are elsewhere
// (rebuilding_cache.h for one layer; a whole model's decoder for all layers).
//
// Step n, with C the tokens in the cache:
//   B = the r highest-scored tokens among those that were released, by position
//   attend to C, B and n
//   keep n and the m - 1 highest-scored tokens of C and B; of equals the later ones
// The score of a token for the current one comes from a TokenScorer.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "harness/core/token_plan.h"
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

class RebuildingPlan {
 public:
  using Move = TokenPlan::Move;

  RebuildingPlan(Index capacity, const RebuildOptions& options,
                 std::unique_ptr<TokenScorer> scorer);

  void reset();
  // Token n = length() comes. Then slots [0, count()) hold what the cache kept, those up to
  // total() - 2 the tokens to fetch, and total() - 1 the new one. With r > 0 O(n).
  void begin(const StreamTokens& token);
  // The step is over: slots whose contents move, in this order; then count() are in use. O(m + r).
  std::span<const Move> end();
  // A prompt in an empty cache: the last token and the m - 1 best for it take slots [0, count()).
  // Token t of it is `one(t)`.
  template <class One>
  void read_prompt(Index length, const One& one) {
    for (Index t = 0; t < length; ++t) scorer_->append(one(t), t);
    keep_of_prompt(length);
  }

  Index length() const { return length_; }  // tokens seen
  Index count() const { return count_; }    // kept
  Index total() const { return total_; }    // seen in this step
  Index slots() const { return position_.size(); }
  const std::int32_t* positions() const { return position_.data(); }  // by slot
  TokenScorer& scorer() { return *scorer_; }
  double aux_bytes() const;      // bookkeeping and the scorer's
  double scratch_bytes() const;  // scores of one step

  static Index slots(Index capacity, const RebuildOptions& o) {
    return std::min(o.m + o.r + 1, capacity);
  }
  // What the constructor allocates, without the scorer.
  static double allocated(Index capacity, const RebuildOptions& options);

 private:
  struct Candidate {
    float score;
    std::int32_t position;
  };

  void choose_released(Index n);
  void keep_of_prompt(Index length);
  bool is_protected(Index position, Index n) const {
    return position < options_.protect_sinks || n - position < options_.protect_recent;
  }

  RebuildOptions options_;
  std::unique_ptr<TokenScorer> scorer_;
  AlignedArray<std::int32_t> slot_of_;   // [capacity] -1: released
  AlignedArray<std::int32_t> position_;  // [slots]
  AlignedArray<float> scores_;           // [capacity] of the past tokens, where they are needed
  AlignedArray<float> slot_score_;       // [slots]
  AlignedArray<std::int32_t> order_;     // [slots]
  std::vector<Candidate> released_;      // [r] of this step
  std::vector<Move> moves_;              // [slots]
  Index length_ = 0, count_ = 0, total_ = 0;
  bool scored_ = false;  // scores_ are those of this step
};

}  // namespace subquad
