// The current token and the m - 1 past ones of the largest logits, found anew at every step among
// all of them: what ADORE (arXiv 2407.02328) and every policy of m visible tokens try to reach.
// Unlike topk_exact it always shows the current token, as a decoder does. Per head. Logits are in
// double, so that equal keys tie; of equals the later ones are taken.

#include <algorithm>
#include <cmath>

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
};

class TopKStream final : public PolicyStream {
 public:
  TopKStream(const StreamConfig& config, Index m)
      : PolicyStream(config),
        m_(m),
        keys_(config.capacity * config.d_k),
        values_(config.capacity * config.d_v),
        logits_(config.capacity),
        order_(config.capacity),
        weights_(m_) {}

  void reset() override {
    PolicyStream::reset();
    seen_ = 0;
  }

  // O(n d_k + m d_v).
  void step(const StreamTokens& token, float* out, Index) override {
    check_room(1);
    const Index d_k = config_.d_k, d_v = config_.d_v, now = length_++;
    std::copy_n(token.k, d_k, keys_.data() + now * d_k);
    std::copy_n(token.v, d_v, values_.data() + now * d_v);
    for (Index j = 0; j <= now; ++j) {
      double dot = 0;
      for (Index c = 0; c < d_k; ++c)
        dot += static_cast<double>(token.q[c]) * static_cast<double>(keys_[j * d_k + c]);
      logits_[j] = config_.scale * dot;
      order_[j] = static_cast<std::int32_t>(j);
    }
    seen_ = std::min(m_, length_);
    if (seen_ < length_) {
      std::swap(order_[0], order_[now]);
      std::nth_element(order_.data() + 1, order_.data() + seen_, order_.data() + length_,
                       [&](std::int32_t a, std::int32_t b) {
                         return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a > b);
                       });
    }
    double max = logits_[order_[0]], sum = 0;
    for (Index e = 1; e < seen_; ++e) max = std::max(max, logits_[order_[e]]);
    for (Index e = 0; e < seen_; ++e) sum += weights_[e] = std::exp(logits_[order_[e]] - max);
    std::fill_n(out, d_v, 0.0f);
    for (Index e = 0; e < seen_; ++e) {
      weights_[e] /= sum;
      const auto w = static_cast<float>(weights_[e]);
      for (Index c = 0; c < d_v; ++c) out[c] += w * values_[order_[e] * d_v + c];
    }
  }

  CacheBytes bytes() const override {
    return {.kv = CacheSlots::kv_bytes(1, std::min(m_, length_), config_.d_k, config_.d_v),
            .cold = CacheSlots::kv_bytes(1, length_, config_.d_k, config_.d_v),
            .scratch = 12.0 * static_cast<double>(length_)};
  }
  std::vector<VisibleKey> visible(Index) const override {
    std::vector<VisibleKey> keys;
    for (Index e = 0; e < seen_; ++e) keys.push_back({order_[e], static_cast<float>(weights_[e])});
    return keys;
  }

 private:
  Index m_, seen_ = 0;
  AlignedArray<float> keys_, values_;  // [capacity, d]
  AlignedArray<double> logits_;        // [capacity]
  AlignedArray<std::int32_t> order_;   // [capacity], the visible ones first
  AlignedArray<double> weights_;       // [m]
};

class TopKOracle final : public PolicyMethod {
 public:
  explicit TopKOracle(const Params& params) : params_(params) {}

  Budget budget(const Problem& p) const override {
    const Index keys = std::min(params_.m, p.n_kv);
    return {.keys_per_query = static_cast<double>(keys),
            .state_bytes = CacheSlots::kv_bytes(p.batch * p.heads, keys, p.d_k, p.d_v)};
  }

 protected:
  std::unique_ptr<PolicyStream> make_stream(const StreamConfig& config) const override {
    return std::make_unique<TopKStream>(config, std::min(params_.m, config.capacity));
  }
  double stream_bytes(const StreamConfig& c) const override {
    return CacheSlots::kv_bytes(1, c.capacity, c.d_k, c.d_v) +
           12.0 * static_cast<double>(c.capacity) + 8.0 * static_cast<double>(params_.m);
  }
  Index stored() const override { return params_.m; }

 private:
  Params params_;
};

MethodInfo info() {
  MethodInfo i = policy_info("topk_oracle", "ideal of ADORE, arXiv 2407.02328",
                             "oracle: the current token and the m - 1 past ones of largest logits");
  i.oracle = true;
  i.time_exponent = 2;
  i.memory_exponent = 1;
  i.notes = {"sees m tokens in all, the current one always among them",
             "forward is the stream fed token by token, as in decoding"};
  return i;
}

const RegisterMethod<TopKOracle, Params> kRegistration{
    info(), {param("m", &Params::m, {1, 1 << 24}, "tokens that a query sees")}};

}  // namespace
}  // namespace subquad
