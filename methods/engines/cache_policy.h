// What the KV-cache policies share: a stream of tokens with a cache, the method and the decoder
// around it.
//
// A policy keeps at most m tokens between steps. A step sees them, the token that is fed, and what
// a rebuilding policy fetches for this step; after it the policy decides what is kept. Forward of a
// whole sequence is the same stream fed token by token (teacher-forced decoding), so that every
// policy is strictly causal and its error against causal dense attention is that of decoding.
#pragma once

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "harness/core/registry.h"
#include "methods/engines/cache_slots.h"

namespace subquad {

// One stream: a head, or all heads of a batch item for policies whose heads share their tokens.
struct StreamConfig {
  Index heads = 1;       // of this stream
  Index first_head = 0;  // batch * heads + head of its first one: number of its random draws
  Index capacity = 0;    // tokens that will come at most
  Index d_k = 0, d_v = 0;
  Index d_e = 0;  // width of a token's embedding, 0 when there is none
  double scale = 1;
  Seed seed = 0;
  const float *w_k = nullptr, *w_v = nullptr;  // [heads, d, d_e] of the stream, or null
};

// `length` tokens of every head of a stream: row t of head h lies at q + h * q_stride + t * d_k.
struct StreamTokens {
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  const float* x = nullptr;  // [length, d_e], or null
  Index q_stride = 0, k_stride = 0, v_stride = 0;
  Index length = 0;
};

class PolicyStream {
 public:
  explicit PolicyStream(const StreamConfig& config)
      : config_(config), unread_(config.heads * config.d_v) {}
  virtual ~PolicyStream() = default;

  virtual void reset() { length_ = 0; }
  // One token: out of head h [d_v] at out + h * out_stride. Allocates nothing.
  virtual void step(const StreamTokens& token, float* out, Index out_stride) = 0;
  // Default: calls of step.
  virtual void prefill(const StreamTokens& tokens);
  virtual CacheBytes bytes() const = 0;
  virtual std::vector<VisibleKey> visible(Index /*head*/) const { return {}; }

  Index length() const { return length_; }  // tokens seen
  // Token t alone.
  StreamTokens token(const StreamTokens& from, Index t) const;

 protected:
  void check_room(Index more) const;

  StreamConfig config_;
  Index length_ = 0;

 private:
  AlignedArray<float> unread_;  // outputs of a prefill
};

// A cache of one head that releases a token when it is over budget.
class EvictingCache : public PolicyStream {
 public:
  EvictingCache(const StreamConfig& config, Index budget);

  void reset() override;
  // Time O(m (d_k + d_v)), and that of observe() and victim().
  void step(const StreamTokens& token, float* out, Index out_stride) final;
  CacheBytes bytes() const override;
  std::vector<VisibleKey> visible(Index head) const override;

  // What the constructor allocates for this budget.
  static double allocated(const StreamConfig& config, Index budget);

 protected:
  // After attention: weights() of the slots, the newest token included.
  virtual void observe() {}
  // The slot whose token is released; all slots are in use.
  virtual Index victim() = 0;
  // Bytes of the policy's own bookkeeping.
  virtual double aux_bytes() const { return 0; }

  // Whatever the cache held: the tokens at `positions` (ascending) of a history are in slots 0, 1,
  // ...; `length` tokens have been seen.
  void fill(const StreamTokens& history, const std::vector<Index>& positions, Index length);

  Index budget() const { return budget_; }
  Index count() const { return count_; }    // slots in use in a step: at most m + 1
  Index newest() const { return newest_; }  // slot of the current token
  Index position(Index slot) const { return position_[slot]; }
  bool recent(Index slot, Index tokens) const { return position(slot) >= length_ - tokens; }
  const std::int32_t* positions() const { return position_.data(); }  // [count]
  const float* weights() const { return cache_.weights(0); }
  const float* key(Index slot) const { return cache_.key(0, slot); }

  // The slot among those that are not the newest and not among the last `tokens` positions with
  // the lowest score; of equals the oldest token. -1 when there is none.
  template <class Score>
  Index lowest(Index tokens, Score&& score) const {
    Index best = -1;
    for (Index s = 0; s < count_; ++s) {
      if (s == newest_ || recent(s, tokens)) continue;
      if (best < 0 || score(s) < score(best) ||
          (score(s) == score(best) && position(s) < position(best)))
        best = s;
    }
    return best;
  }

 private:
  Index budget_;
  CacheSlots cache_;
  AlignedArray<std::int32_t> position_;  // [slots]
  Index count_ = 0, newest_ = -1, hole_ = -1;
};

// A method whose forward is a stream fed token by token.
class PolicyMethod : public Method {
 public:
  void prepare(const Problem& problem, const Env& env) override;
  // Time O(n) steps; streams run in parallel.
  void forward(const Inputs& in, TensorView out, Saved* saved) override;
  // Feeds the whole sequence again. O(n) steps.
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override;
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override;

  Budget budget(const Problem& p) const override;
  double extra_bytes(const Problem& p, Pass pass) const override;
  double flops(const Problem& p, Pass pass) const override;

 protected:
  virtual std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const = 0;
  virtual double stream_bytes(const StreamConfig& config) const = 0;
  virtual Index stored() const = 0;            // tokens kept between steps, at most
  virtual Index fetched() const { return 0; }  // tokens that a step may see besides
  virtual bool heads_share() const { return false; }
  virtual bool shows_weights() const { return true; }

  StreamConfig stream_config(const Problem& p, const Env& env) const;
  Problem problem_;

 private:
  StreamTokens tokens_of(const Inputs& in, Index stream) const;

  std::vector<std::unique_ptr<PolicyStream>> streams_;
};

// Such a method whose streams are one kind of cache with a budget of params.m tokens. Cache is made
// of the parameters or of m, and Cache::allocated tells its bytes from the parameters, from their
// options(), or from m.
template <class Cache, class Params>
class BudgetPolicy final : public PolicyMethod {
 public:
  explicit BudgetPolicy(const Params& params) : params_(params) {}

 protected:
  std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const override {
    if constexpr (std::is_constructible_v<Cache, const StreamConfig&, const Params&>) {
      return std::make_unique<Cache>(config, params_);
    } else {
      return std::make_unique<Cache>(config, params_.m);
    }
  }
  double stream_bytes(const StreamConfig& config) const override {
    if constexpr (requires { Cache::allocated(config, params_); }) {
      return Cache::allocated(config, params_);
    } else if constexpr (requires { Cache::allocated(config, params_.options()); }) {
      return Cache::allocated(config, params_.options());
    } else {
      return Cache::allocated(config, params_.m);
    }
  }
  Index stored() const override { return params_.m; }

 private:
  Params params_;
};

// What every policy declares alike.
MethodInfo policy_info(std::string name, std::string source, std::string summary);

}  // namespace subquad
