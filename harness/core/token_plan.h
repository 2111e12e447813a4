// Which tokens all layers of a model keep, for policies that rebuild released tokens through all
// layers. Keys and values are with the model, in numbered slots of every layer: between steps slots
// [0, count()) are in use; in a step the tokens to rebuild take the slots behind them, in the order
// of their positions, and the new token the one behind those.
#pragma once

#include <memory>
#include <span>

#include "harness/core/method.h"

namespace subquad {

class TokenPlan {
 public:
  struct Move {
    Index from, to;
  };
  virtual ~TokenPlan() = default;
  virtual void reset() = 0;
  // Reads the first `length` tokens, x [length, d_e]. Positions by slot of those that stay.
  virtual std::span<const std::int32_t> prefill(const float* x, Index length) = 0;
  // The next token, x [d_e], comes. Positions by slot of all tokens that this step sees.
  virtual std::span<const std::int32_t> begin(const float* x) = 0;
  // The step is over: slots to be moved, in this order; then count() are in use.
  virtual std::span<const Move> end() = 0;
  virtual Index count() const = 0;
  virtual Index slots() const = 0;       // that a step needs at most
  virtual double aux_bytes() const = 0;  // now
};

// A method whose layers can share their tokens implements this beside Method.
class PlansTokens {
 public:
  virtual ~PlansTokens() = default;
  // The plan of one sequence, which takes the place of decoders in all layers; null where its
  // settings want decoders.
  virtual std::unique_ptr<TokenPlan> make_token_plan(const DecodeConfig& config) const = 0;
};

}  // namespace subquad
