#include "methods/engines/rebuilding_cache.h"

#include <algorithm>

namespace subquad {

RebuildingCache::RebuildingCache(const StreamConfig& config, const RebuildOptions& options,
                                 std::unique_ptr<TokenScorer> scorer)
    : PolicyStream(config),
      options_(options),
      plan_(config.capacity, options, std::move(scorer)),
      cache_(config.heads, plan_.slots(), config.d_k, config.d_v),
      seen_(plan_.slots()),
      mean_(plan_.slots()) {
  if (options.project && (config.w_k == nullptr || config.w_v == nullptr || config.d_e == 0))
    throw Unsupported("rebuild: project needs the layer's projections and inputs");
  if (options.r > 0 && options.project) {
    cold_x_ = AlignedArray<float>(config.capacity * config.d_e);
  } else if (options.r > 0) {
    cold_k_ = AlignedArray<float>(config.heads * config.capacity * config.d_k);
    cold_v_ = AlignedArray<float>(config.heads * config.capacity * config.d_v);
  }
  reset();
}

void RebuildingCache::reset() {
  PolicyStream::reset();
  plan_.reset();
  seen_count_ = 0;
}

void RebuildingCache::store_cold(const StreamTokens& token, Index n) {
  if (cold_x_.size() > 0) std::copy_n(token.x, config_.d_e, cold_x_.data() + n * config_.d_e);
  if (cold_k_.size() == 0) return;
  for (Index h = 0; h < config_.heads; ++h) {
    const Index place = h * config_.capacity + n;
    std::copy_n(token.k + h * token.k_stride, config_.d_k, cold_k_.data() + place * config_.d_k);
    std::copy_n(token.v + h * token.v_stride, config_.d_v, cold_v_.data() + place * config_.d_v);
  }
}

// Keys and values of a released token -> a slot.
void RebuildingCache::fetch(Index position, Index slot) {
  const auto project = [&](const float* w, Index rows, float* to) {
    const float* x = cold_x_.data() + position * config_.d_e;
    for (Index i = 0; i < rows; ++i) {
      to[i] = 0;
      for (Index c = 0; c < config_.d_e; ++c) to[i] += w[i * config_.d_e + c] * x[c];
    }
  };
  for (Index h = 0; h < config_.heads; ++h) {
    const Index place = h * config_.capacity + position;
    if (cold_k_.size() > 0) {
      cache_.write(h, slot, cold_k_.data() + place * config_.d_k,
                   cold_v_.data() + place * config_.d_v);
    } else {
      project(config_.w_k + h * config_.d_k * config_.d_e, config_.d_k, cache_.key(h, slot));
      project(config_.w_v + h * config_.d_v * config_.d_e, config_.d_v, cache_.value(h, slot));
    }
  }
}

void RebuildingCache::step(const StreamTokens& token, float* out, Index out_stride) {
  check_room(1);
  store_cold(token, length_++);
  plan_.begin(token);
  const Index total = plan_.total();
  for (Index s = plan_.count(); s < total - 1; ++s) fetch(plan_.positions()[s], s);
  for (Index h = 0; h < config_.heads; ++h)
    cache_.write(h, total - 1, token.k + h * token.k_stride, token.v + h * token.v_stride);
  for (Index h = 0; h < config_.heads; ++h)
    cache_.attend(h, token.q + h * token.q_stride, config_.scale, total, out + h * out_stride);
  seen_count_ = total;
  std::copy_n(plan_.positions(), total, seen_.data());
  for (const RebuildingPlan::Move& move : plan_.end())
    for (Index h = 0; h < config_.heads; ++h) cache_.move(h, move.from, move.to);
  if (!plan_.scorer().watches()) return;
  for (Index s = 0; s < seen_count_; ++s) {
    mean_[s] = 0;
    for (Index h = 0; h < config_.heads; ++h) mean_[s] += cache_.weights(h)[s];
    mean_[s] /= static_cast<float>(config_.heads);
  }
  plan_.scorer().observe(seen_.data(), mean_.data(), seen_count_);
}

// With `prompt`: all tokens are read, then the last one and the m - 1 best for it stay.
void RebuildingCache::prefill(const StreamTokens& tokens) {
  if (!options_.prompt || length_ > 0 || tokens.length == 0) return PolicyStream::prefill(tokens);
  check_room(tokens.length);
  length_ = tokens.length;
  for (Index t = 0; t < length_; ++t) store_cold(token(tokens, t), t);
  plan_.read_prompt(length_, [&](Index t) { return token(tokens, t); });
  for (Index s = 0; s < plan_.count(); ++s) {
    const Index t = plan_.positions()[s];
    for (Index h = 0; h < config_.heads; ++h)
      cache_.write(h, s, tokens.k + h * tokens.k_stride + t * config_.d_k,
                   tokens.v + h * tokens.v_stride + t * config_.d_v);
  }
}

CacheBytes RebuildingCache::bytes() const {
  const auto n = static_cast<double>(length_);
  const Index heads = config_.heads, d_k = config_.d_k, d_v = config_.d_v;
  return {.kv = CacheSlots::kv_bytes(heads, plan_.count(), d_k, d_v),
          .aux = plan_.aux_bytes(),
          .cold = cold_x_.size() > 0   ? 4.0 * n * static_cast<double>(config_.d_e)
                  : cold_k_.size() > 0 ? CacheSlots::kv_bytes(heads, length_, d_k, d_v)
                                       : 0,
          .scratch = CacheSlots::kv_bytes(
                         heads, cache_.slots() - std::min(options_.m, cache_.slots()), d_k, d_v) +
                     CacheSlots::work_bytes(heads, cache_.slots(), d_k, d_v) +
                     plan_.scratch_bytes()};
}

double RebuildingCache::allocated(const StreamConfig& c, const RebuildOptions& o) {
  const Index count = RebuildingPlan::slots(c.capacity, o);
  double bytes = CacheSlots::kv_bytes(c.heads, count, c.d_k, c.d_v) +
                 CacheSlots::work_bytes(c.heads, count, c.d_k, c.d_v) +
                 RebuildingPlan::allocated(c.capacity, o) + 8.0 * static_cast<double>(count);
  if (o.r > 0)
    bytes += o.project ? 4.0 * static_cast<double>(c.capacity * c.d_e)
                       : CacheSlots::kv_bytes(c.heads, c.capacity, c.d_k, c.d_v);
  return bytes;
}

std::vector<VisibleKey> RebuildingCache::visible(Index head) const {
  std::vector<VisibleKey> keys;
  for (Index s = 0; s < seen_count_; ++s) keys.push_back({seen_[s], cache_.weights(head)[s]});
  return keys;
}

}  // namespace subquad
