// A trained model token by token, with any method's cache or state in every layer.
//
// The prompt is read by the model's own parallel forward, as it was trained; what its layers saw
// fills the caches, and each later token sees only what the method kept. A method whose layers
// share their tokens and that rebuilds released ones through all of them (ADORE, rebuild: model)
// has a TokenPlan instead of decoders: the tokens to rebuild then go through the layers together
// with the new one, and each of them sees what lies before it. Without a cache every token is the
// parallel forward of all tokens up to it (uncached_steps.h), of any method that has one.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "harness/model/token_rows.h"
#include "harness/model/trained_model.h"

namespace subquad {

class UncachedSteps;

struct DecodingSetup {
  std::string method;
  Settings settings;  // resolved
  std::string weights =
      "";           // of the method's parameters, see method_weights.h; "" = see learned_from()
  Index batch = 1;  // sequences side by side
  bool cache = true;
  Seed seed = 0;  // of random methods
  // Called once the methods are prepared, before the caches are made.
  std::function<void()> prepared = {};
};

class ModelDecoder {
 public:
  // Unsupported when the model or the method cannot do that. `model` outlives the object.
  ModelDecoder(const TrainedModel& model, const DecodingSetup& setup);
  ~ModelDecoder();

  void reset();
  // The first `length` tokens of each sequence, in an empty history.
  void prefill(std::span<const ModelTrace> sequences, Index length);
  // tokens [batch] -> logits [batch, classes] of what follows. With a cache it allocates nothing
  // once warm. O(layers (d_model^2 + attention)) per token; without one, that of a whole forward.
  void step(std::span<const std::int32_t> tokens, float* logits);

  Index length() const { return length_; }  // tokens seen
  Index batch() const { return batch_; }
  Index classes() const { return model_.sizes().labels.classes; }
  CacheBytes bytes() const;              // of all layers, now
  double keys_per_query(Index n) const;  // the method's budget for n tokens
  // How the method's parameters came: a file, "train" (the model was trained with this method),
  // "initial", or "" where it has none.
  const std::string& learned_from() const { return learned_from_; }
  // Tokens that the last step saw in sequence b, by slot; only with a plan.
  std::span<const std::int32_t> seen(Index b) const;

 private:
  struct Planned;  // the caches of one sequence

  void prepare_methods(const DecodingSetup& setup);
  void make_caches(const DecodingSetup& setup);
  void make_uncached(const DecodingSetup& setup);
  void step_decoders();
  void step_planned(Index b);
  std::span<const std::int32_t> history(Index b, Index length) const {
    return {tokens_.data() + b * capacity_, static_cast<std::size_t>(length)};
  }

  const TrainedModel& model_;
  Index batch_, capacity_, length_ = 0;
  TokenRows rows_;
  std::vector<std::unique_ptr<Method>> methods_;    // of the layers
  std::vector<std::unique_ptr<Decoder>> decoders_;  // of the layers, or none
  std::vector<std::unique_ptr<Planned>> planned_;   // of the sequences, or none
  std::unique_ptr<UncachedSteps> uncached_;         // instead of both
  bool uses_hidden_ = false;
  std::string learned_from_;
  AlignedArray<std::int32_t> tokens_;         // [batch, capacity]
  AlignedArray<float> x_, u_, embedded_;      // [rows, d_model], [rows, d_model], [batch, width]
  AlignedArray<float> q_, k_, v_, attended_;  // [rows, heads, d]
};

}  // namespace subquad
