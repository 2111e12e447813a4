// ADORE (arXiv 2407.02328) with a perfect controller: the score of a token is the true head mean of
// the attention weights that all past tokens get now. What release and rebuilding can do at best.

#include <algorithm>
#include <cmath>

#include "methods/engines/rebuilding_cache.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  Index r = 4;
  bool keep_rebuilt = true;
  bool rebuild_gate = false;

  RebuildOptions options() const {
    return {.m = m, .r = r, .keep_rebuilt = keep_rebuilt, .rebuild_gate = rebuild_gate};
  }
};

// Dense attention of the current token over all past ones and itself, in double.
class TrueWeights final : public TokenScorer {
 public:
  explicit TrueWeights(const StreamConfig& config)
      : config_(config),
        keys_(config.heads * config.capacity * config.d_k),
        logits_(config.capacity),
        mean_(config.capacity) {}

  void append(const StreamTokens& token, Index n) override {
    const Index d_k = config_.d_k;
    std::fill_n(mean_.data(), n + 1, 0.0);
    for (Index h = 0; h < config_.heads; ++h) {
      float* const keys = keys_.data() + h * config_.capacity * d_k;
      std::copy_n(token.k + h * token.k_stride, d_k, keys + n * d_k);
      const float* q = token.q + h * token.q_stride;
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (Index j = 0; j <= n; ++j) {
        double dot = 0;
        for (Index c = 0; c < d_k; ++c)
          dot += static_cast<double>(q[c]) * static_cast<double>(keys[j * d_k + c]);
        logits_[j] = config_.scale * dot;
        max = std::max(max, logits_[j]);
      }
      for (Index j = 0; j <= n; ++j) sum += logits_[j] = std::exp(logits_[j] - max);
      for (Index j = 0; j <= n; ++j)
        mean_[j] += logits_[j] / (sum * static_cast<double>(config_.heads));
    }
  }
  void score_past(Index n, float* s) override {
    for (Index i = 0; i < n; ++i) s[i] = static_cast<float>(mean_[i]);
  }
  void score_some(Index, const std::int32_t* positions, Index count, float* s) override {
    for (Index e = 0; e < count; ++e) s[e] = static_cast<float>(mean_[positions[e]]);
  }
  double aux_bytes(Index) const override { return 0; }

 private:
  StreamConfig config_;
  AlignedArray<float> keys_;  // [heads, capacity, d_k]
  AlignedArray<double> logits_, mean_;
};

class AdoreOracle final : public PolicyMethod {
 public:
  explicit AdoreOracle(const Params& params) : params_(params) {}

 protected:
  std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const override {
    return std::make_unique<RebuildingCache>(config, params_.options(),
                                             std::make_unique<TrueWeights>(config));
  }
  double stream_bytes(const StreamConfig& config) const override {
    return RebuildingCache::allocated(config, params_.options()) +
           4.0 * static_cast<double>(config.heads * config.capacity * config.d_k) +
           16.0 * static_cast<double>(config.capacity);
  }
  Index stored() const override { return params_.m; }
  Index fetched() const override { return params_.r; }
  bool heads_share() const override { return true; }

 private:
  Params params_;
};

MethodInfo info() {
  MethodInfo i = policy_info("adore_oracle", "ADORE with a perfect controller, arXiv 2407.02328",
                             "oracle: ADORE scoring tokens by the true attention weights");
  i.oracle = true;
  i.time_exponent = 2;
  i.memory_exponent = 1;
  i.notes = {
      "m tokens are kept between steps; a step sees r fetched ones and the current one besides",
      "heads share their tokens, so with several heads it is no bound for policies that choose "
      "for each head",
      "forward is the stream fed token by token, as in decoding"};
  return i;
}

const RegisterMethod<AdoreOracle, Params> kRegistration{
    info(),
    {param("m", &Params::m, {1, 1 << 24}, "tokens kept between steps"),
     param("r", &Params::r, {0, 1 << 24}, "released tokens that a step fetches"),
     param("keep_rebuilt", &Params::keep_rebuilt, "fetched tokens compete for places in the cache"),
     param("rebuild_gate", &Params::rebuild_gate,
           "fetch only tokens scored above the lowest of the cache")}};

}  // namespace
}  // namespace subquad
