#include "methods/engines/cache_policy.h"

#include "harness/core/parallel.h"

namespace subquad {

// ---- streams ----

StreamTokens PolicyStream::token(const StreamTokens& from, Index t) const {
  StreamTokens one = from;
  one.q += t * config_.d_k;
  one.k += t * config_.d_k;
  one.v += t * config_.d_v;
  if (one.x != nullptr) one.x += t * config_.d_e;
  one.length = 1;
  return one;
}

void PolicyStream::prefill(const StreamTokens& tokens) {
  for (Index t = 0; t < tokens.length; ++t) step(token(tokens, t), unread_.data(), config_.d_v);
}

void PolicyStream::check_room(Index more) const {
  SUBQUAD_CHECK(length_ + more <= config_.capacity, "{} tokens are cached, {} more exceed {}",
                length_, more, config_.capacity);
}

EvictingCache::EvictingCache(const StreamConfig& config, Index budget)
    : PolicyStream(config),
      budget_(budget),
      cache_(1, std::min(budget + 1, config.capacity), config.d_k, config.d_v),
      position_(cache_.slots()) {
  SUBQUAD_CHECK(config.heads == 1, "{} heads in a stream of one", config.heads);
}

void EvictingCache::reset() {
  PolicyStream::reset();
  count_ = 0;
  newest_ = hole_ = -1;
}

void EvictingCache::step(const StreamTokens& token, float* out, Index) {
  check_room(1);
  newest_ = hole_ >= 0 ? hole_ : count_++;
  hole_ = -1;
  cache_.write(0, newest_, token.k, token.v);
  position_[newest_] = static_cast<std::int32_t>(length_++);
  cache_.attend(0, token.q, config_.scale, count_, out);
  observe();
  if (count_ > budget_) hole_ = victim();
}

void EvictingCache::fill(const StreamTokens& history, const std::vector<Index>& positions,
                         Index length) {
  count_ = static_cast<Index>(positions.size());
  hole_ = newest_ = -1;
  for (Index s = 0; s < count_; ++s) {
    const Index t = positions[static_cast<std::size_t>(s)];
    cache_.write(0, s, history.k + t * config_.d_k, history.v + t * config_.d_v);
    position_[s] = static_cast<std::int32_t>(t);
  }
  length_ = length;
}

CacheBytes EvictingCache::bytes() const {
  const Index stored = std::min(count_, budget_);
  return {.kv = CacheSlots::kv_bytes(1, stored, config_.d_k, config_.d_v),
          .aux = 4.0 * static_cast<double>(stored) + aux_bytes(),
          .scratch = CacheSlots::kv_bytes(1, 1, config_.d_k, config_.d_v) +
                     CacheSlots::work_bytes(1, cache_.slots(), config_.d_k, config_.d_v)};
}

double EvictingCache::allocated(const StreamConfig& c, Index budget) {
  const Index slots = std::min(budget + 1, c.capacity);
  return CacheSlots::kv_bytes(1, slots, c.d_k, c.d_v) + 4.0 * static_cast<double>(slots) +
         CacheSlots::work_bytes(1, slots, c.d_k, c.d_v) + 4.0 * static_cast<double>(c.d_v);
}

std::vector<VisibleKey> EvictingCache::visible(Index) const {
  std::vector<VisibleKey> keys;
  for (Index s = 0; s < count_; ++s) keys.push_back({position(s), weights()[s]});
  return keys;
}

// ---- the decoder: streams side by side ----

namespace {

class PolicyDecoder final : public Decoder {
 public:
  PolicyDecoder(const DecodeConfig& config, Index heads,
                std::vector<std::unique_ptr<PolicyStream>> streams, Index floats)
      : config_(config), heads_(heads), streams_(std::move(streams)), floats_(floats) {
    reset();
  }

  void reset() override {
    for (const auto& stream : streams_) stream->reset();
  }

  void prefill(ConstTensorView q, ConstTensorView k, ConstTensorView v,
               ConstTensorView x) override {
    const Index length = k.n();
    parallel_for(count(), [&](Index s, int) {
      StreamTokens tokens = at(q.data(), k.data(), v.data(), s, length);
      if (!x.empty()) tokens.x = x.data() + item(s) * length * x.d();
      streams_[static_cast<std::size_t>(s)]->prefill(tokens);
    });
  }

  void step(const DecodeStep& in, float* out) override {
    const auto feed = [&](Index s, int) {
      StreamTokens token = at(in.q, in.k, in.v, s, 1);
      if (in.x != nullptr) token.x = in.x + item(s) * config_.d_e;
      streams_[static_cast<std::size_t>(s)]->step(token, out + s * heads_ * config_.d_v,
                                                  config_.d_v);
    };
    constexpr Index kWorthThreads = 1 << 15;  // floats; below it starting threads costs more
    if (floats_ < kWorthThreads) {
      for (Index s = 0; s < count(); ++s) feed(s, 0);
    } else {
      parallel_for(count(), feed);
    }
  }

  CacheBytes bytes() const override {
    CacheBytes all;
    for (const auto& stream : streams_) all += stream->bytes();
    return all;
  }

  std::vector<VisibleKey> visible(Index b, Index h) const override {
    const Index head = b * config_.heads + h;
    return streams_[static_cast<std::size_t>(head / heads_)]->visible(head % heads_);
  }

 private:
  Index count() const { return static_cast<Index>(streams_.size()); }
  Index item(Index stream) const { return stream * heads_ / config_.heads; }
  StreamTokens at(const float* q, const float* k, const float* v, Index s, Index length) const {
    StreamTokens tokens;
    tokens.length = length;
    tokens.q_stride = tokens.k_stride = length * config_.d_k;
    tokens.v_stride = length * config_.d_v;
    tokens.q = q + s * heads_ * tokens.q_stride;
    tokens.k = k + s * heads_ * tokens.k_stride;
    tokens.v = v + s * heads_ * tokens.v_stride;
    return tokens;
  }

  DecodeConfig config_;
  Index heads_;  // of a stream
  std::vector<std::unique_ptr<PolicyStream>> streams_;
  Index floats_;  // that a step reads
};

}  // namespace

// ---- the method ----

StreamConfig PolicyMethod::stream_config(const Problem& p, const Env& env) const {
  return {.heads = heads_share() ? p.heads : 1,
          .capacity = p.n_kv,
          .d_k = p.d_k,
          .d_v = p.d_v,
          .d_e = env.d_model,
          .scale = p.logit_scale(),
          .seed = env.seed};
}

void PolicyMethod::prepare(const Problem& problem, const Env& env) {
  problem_ = problem;
  StreamConfig config = stream_config(problem, env);
  streams_.clear();
  for (Index bh = 0; bh < problem.batch * problem.heads; bh += config.heads) {
    config.first_head = bh;
    streams_.push_back(make_stream(config));
  }
}

StreamTokens PolicyMethod::tokens_of(const Inputs& in, Index stream) const {
  const Index heads = heads_share() ? problem_.heads : 1, bh = stream * heads;
  StreamTokens tokens;
  tokens.length = problem_.n;
  tokens.q_stride = problem_.n * problem_.d_k;
  tokens.k_stride = problem_.n_kv * problem_.d_k;
  tokens.v_stride = problem_.n_kv * problem_.d_v;
  tokens.q = in.q.data() + bh * tokens.q_stride;
  tokens.k = in.k.data() + bh * tokens.k_stride;
  tokens.v = in.v.data() + bh * tokens.v_stride;
  if (!in.x.empty()) tokens.x = in.x.head_data(bh / problem_.heads, 0);
  return tokens;
}

void PolicyMethod::forward(const Inputs& in, TensorView out, Saved*) {
  const Index heads = heads_share() ? problem_.heads : 1, stride = problem_.n * problem_.d_v;
  parallel_for(static_cast<Index>(streams_.size()), [&](Index s, int) {
    PolicyStream& stream = *streams_[static_cast<std::size_t>(s)];
    const StreamTokens tokens = tokens_of(in, s);
    stream.reset();
    for (Index t = 0; t < problem_.n; ++t)
      stream.step(stream.token(tokens, t), out.data() + s * heads * stride + t * problem_.d_v,
                  stride);
  });
}

bool PolicyMethod::attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                                  Eigen::Ref<Matrix> weights) {
  if (!shows_weights()) return false;
  const Index heads = heads_share() ? problem_.heads : 1, bh = b * problem_.heads + h;
  PolicyStream& stream = *streams_[static_cast<std::size_t>(bh / heads)];
  const StreamTokens tokens = tokens_of(in, bh / heads);
  std::vector<float> out(static_cast<std::size_t>(heads * problem_.d_v));
  weights.setZero();
  stream.reset();
  for (Index t = 0; t < problem_.n; ++t) {
    stream.step(stream.token(tokens, t), out.data(), problem_.d_v);
    for (std::size_t r = 0; r < rows.size(); ++r)
      if (rows[r] == t)
        for (const VisibleKey& key : stream.visible(bh % heads))
          weights(static_cast<Index>(r), key.position) = key.weight;
  }
  return true;
}

std::unique_ptr<Decoder> PolicyMethod::make_decoder(const DecodeConfig& config) const {
  const Index heads = heads_share() ? config.heads : 1;
  StreamConfig stream{.heads = heads,
                      .capacity = config.capacity,
                      .d_k = config.d_k,
                      .d_v = config.d_v,
                      .d_e = config.d_e,
                      .scale = config.logit_scale(),
                      .seed = config.seed};
  std::vector<std::unique_ptr<PolicyStream>> streams;
  for (Index bh = 0; bh < config.batch * config.heads; bh += heads) {
    stream.first_head = bh;
    const Index head = bh % config.heads;
    if (config.w_k != nullptr) stream.w_k = config.w_k + head * config.d_k * config.d_e;
    if (config.w_v != nullptr) stream.w_v = config.w_v + head * config.d_v * config.d_e;
    streams.push_back(make_stream(stream));
  }
  const Index seen = std::min(stored() + fetched() + 1, config.capacity);
  return std::make_unique<PolicyDecoder>(
      config, heads, std::move(streams),
      config.batch * config.heads * seen * (config.d_k + config.d_v));
}

Budget PolicyMethod::budget(const Problem& p) const {
  return {.keys_per_query = static_cast<double>(std::min(stored() + fetched() + 1, p.n_kv)),
          .state_bytes =
              CacheSlots::kv_bytes(p.batch * p.heads, std::min(stored(), p.n_kv), p.d_k, p.d_v)};
}

double PolicyMethod::extra_bytes(const Problem& p, Pass) const {
  const StreamConfig config = stream_config(p, {});
  return static_cast<double>(p.batch * p.heads / config.heads) * stream_bytes(config);
}

double PolicyMethod::flops(const Problem& p, Pass pass) const {
  const double per_key = 2.0 * static_cast<double>(p.batch * p.heads * (p.d_k + p.d_v));
  const Index most = stored() + fetched() + 1;
  if (pass == Pass::decode) return per_key * static_cast<double>(std::min(most, p.n_kv));
  double keys = 0;
  for (Index i = 0; i < p.n; ++i) keys += static_cast<double>(std::min(most, i + 1));
  return per_key * keys;
}

MethodInfo policy_info(std::string name, std::string source, std::string summary) {
  MethodInfo info;
  info.name = std::move(name);
  info.family = "cache_policy";
  info.source = std::move(source);
  info.summary = std::move(summary);
  info.causality = Causality::strict;
  info.bidirectional = false;
  info.passes = {Pass::forward, Pass::decode};
  info.bounded_by = {"topk_exact"};
  info.exact_limit = [](const Problem& p) { return Settings{{"m", p.n_kv}}; };
  info.time_exponent = 1;
  info.notes = {"m tokens are kept between steps; a step sees the current one besides",
                "forward is the stream fed token by token, as in decoding"};
  return info;
}

}  // namespace subquad
