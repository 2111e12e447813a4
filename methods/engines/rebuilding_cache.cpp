#include "methods/engines/rebuilding_cache.h"

#include <algorithm>

namespace subquad {

RebuildingCache::RebuildingCache(const StreamConfig& config, const RebuildOptions& options,
                                 std::unique_ptr<TokenScorer> scorer)
    : PolicyStream(config),
      options_(options),
      scorer_(std::move(scorer)),
      cache_(config.heads, slots(config, options), config.d_k, config.d_v),
      slot_of_(config.capacity),
      position_(cache_.slots()),
      seen_(cache_.slots()),
      scores_(options.r > 0 || options.prompt ? config.capacity : 0),
      slot_score_(cache_.slots()),
      mean_(cache_.slots()),
      order_(cache_.slots()) {
  if (options.project && (config.w_k == nullptr || config.w_v == nullptr || config.d_e == 0))
    throw Unsupported("rebuild: project needs the layer's projections and inputs");
  if (options.r > 0 && options.project) {
    cold_x_ = AlignedArray<float>(config.capacity * config.d_e);
  } else if (options.r > 0) {
    cold_k_ = AlignedArray<float>(config.heads * config.capacity * config.d_k);
    cold_v_ = AlignedArray<float>(config.heads * config.capacity * config.d_v);
  }
  released_.reserve(static_cast<std::size_t>(std::min(options.r, config.capacity)));
  reset();
}

void RebuildingCache::reset() {
  PolicyStream::reset();
  scorer_->reset();
  std::fill_n(slot_of_.data(), slot_of_.size(), -1);
  count_ = seen_count_ = 0;
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
  position_[slot] = static_cast<std::int32_t>(position);
  slot_of_[position] = static_cast<std::int32_t>(slot);
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

// The r best of what was released -> released_, by position. O(n) where scores do not rise with
// age: a token has to beat the worst of the best r so far.
void RebuildingCache::choose_released(Index n) {
  released_.clear();
  scored_ = false;
  const Index wanted = std::min(options_.r, n - count_);
  if (wanted <= 0) return;
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.position > b.position);
  };
  scorer_->score_past(n, scores_.data());
  scored_ = true;
  // Later tokens first, so that of equals the later one stays.
  for (Index i = n - 1; i >= 0; --i) {
    const bool full = static_cast<Index>(released_.size()) == wanted;
    if (full && !(scores_[i] > released_.front().score)) continue;
    if (slot_of_[i] >= 0) continue;
    if (full) {
      std::pop_heap(released_.begin(), released_.end(), better);
      released_.pop_back();
    }
    released_.push_back({scores_[i], static_cast<std::int32_t>(i)});
    std::push_heap(released_.begin(), released_.end(), better);
  }
  if (options_.rebuild_gate && count_ > 0) {
    float lowest = scores_[position_[0]];
    for (Index s = 1; s < count_; ++s) lowest = std::min(lowest, scores_[position_[s]]);
    std::erase_if(released_, [&](const Candidate& c) { return !(c.score > lowest); });
  }
  std::sort(released_.begin(), released_.end(),
            [](const Candidate& a, const Candidate& b) { return a.position < b.position; });
}

void RebuildingCache::step(const StreamTokens& token, float* out, Index out_stride) {
  check_room(1);
  const Index n = length_++;
  scorer_->append(token, n);
  store_cold(token, n);
  choose_released(n);
  Index total = count_;
  for (const Candidate& c : released_) fetch(c.position, total++);
  position_[total] = static_cast<std::int32_t>(n);
  slot_of_[n] = static_cast<std::int32_t>(total);
  for (Index h = 0; h < config_.heads; ++h)
    cache_.write(h, total, token.k + h * token.k_stride, token.v + h * token.v_stride);
  ++total;
  for (Index h = 0; h < config_.heads; ++h)
    cache_.attend(h, token.q + h * token.q_stride, config_.scale, total, out + h * out_stride);
  seen_count_ = total;
  std::copy_n(position_.data(), total, seen_.data());
  keep_best(n, total);
  if (!scorer_->watches()) return;
  for (Index s = 0; s < seen_count_; ++s) {
    mean_[s] = 0;
    for (Index h = 0; h < config_.heads; ++h) mean_[s] += cache_.weights(h)[s];
    mean_[s] /= static_cast<float>(config_.heads);
  }
  scorer_->observe(seen_.data(), mean_.data(), seen_count_);
}

// Of the slots [0, total), the last of which holds token n, those that stay, moved together.
void RebuildingCache::keep_best(Index n, Index total) {
  const Index fetched = static_cast<Index>(released_.size()), newest = total - 1;
  const Index candidates = options_.keep_rebuilt ? newest : newest - fetched;
  if (candidates + 1 <= options_.m && candidates == newest) {
    count_ = total;
    return;
  }
  for (Index s = 0; s < candidates; ++s) order_[s] = static_cast<std::int32_t>(s);
  const Index kept = std::min(options_.m - 1, candidates);
  if (kept < candidates) {
    if (scored_) {
      for (Index s = 0; s < candidates; ++s) slot_score_[s] = scores_[position_[s]];
    } else {
      scorer_->score_some(n, position_.data(), candidates, slot_score_.data());
    }
    const auto better = [&](std::int32_t a, std::int32_t b) {
      const bool guard_a = is_protected(position_[a], n), guard_b = is_protected(position_[b], n);
      if (guard_a != guard_b) return guard_a;
      if (!guard_a && slot_score_[a] != slot_score_[b]) return slot_score_[a] > slot_score_[b];
      return position_[a] > position_[b];
    };
    std::nth_element(order_.data(), order_.data() + kept, order_.data() + candidates, better);
  }
  // Survivors beyond the new count move into the places of those that go.
  for (Index e = kept; e < candidates; ++e) slot_of_[position_[order_[e]]] = -1;
  for (Index s = candidates; s < newest; ++s) slot_of_[position_[s]] = -1;
  count_ = kept + 1;
  Index hole = 0;
  for (Index s = count_; s < total; ++s) {
    if (slot_of_[position_[s]] < 0) continue;
    while (slot_of_[position_[hole]] >= 0) ++hole;
    for (Index h = 0; h < config_.heads; ++h) cache_.move(h, s, hole);
    position_[hole] = position_[s];
    slot_of_[position_[hole]] = static_cast<std::int32_t>(hole);
  }
}

// With `prompt`: all tokens are read, then the last one and the m - 1 best for it stay.
void RebuildingCache::prefill(const StreamTokens& tokens) {
  if (!options_.prompt || length_ > 0 || tokens.length == 0) return PolicyStream::prefill(tokens);
  check_room(tokens.length);
  for (Index t = 0; t < tokens.length; ++t) {
    const StreamTokens one = token(tokens, t);
    scorer_->append(one, t);
    store_cold(one, t);
  }
  length_ = tokens.length;
  const Index last = length_ - 1, kept = std::min(options_.m - 1, last);
  std::vector<std::int32_t> order(static_cast<std::size_t>(last));
  for (Index i = 0; i < last; ++i) order[static_cast<std::size_t>(i)] = static_cast<int>(i);
  if (kept < last) {
    scorer_->score_past(last, scores_.data());
    std::nth_element(order.begin(), order.begin() + kept, order.end(),
                     [&](std::int32_t a, std::int32_t b) {
                       const bool guard_a = is_protected(a, last), guard_b = is_protected(b, last);
                       if (guard_a != guard_b) return guard_a;
                       if (!guard_a && scores_[a] != scores_[b]) return scores_[a] > scores_[b];
                       return a > b;
                     });
    order.resize(static_cast<std::size_t>(kept));
    std::sort(order.begin(), order.end());
  }
  order.push_back(static_cast<std::int32_t>(last));
  for (const std::int32_t t : order) {
    position_[count_] = t;
    slot_of_[t] = static_cast<std::int32_t>(count_);
    for (Index h = 0; h < config_.heads; ++h)
      cache_.write(h, count_, tokens.k + h * tokens.k_stride + t * config_.d_k,
                   tokens.v + h * tokens.v_stride + t * config_.d_v);
    ++count_;
  }
}

CacheBytes RebuildingCache::bytes() const {
  const auto n = static_cast<double>(length_);
  const Index heads = config_.heads, d_k = config_.d_k, d_v = config_.d_v;
  return {.kv = CacheSlots::kv_bytes(heads, count_, d_k, d_v),
          .aux = 4.0 * n + 4.0 * static_cast<double>(count_) + scorer_->aux_bytes(length_),
          .cold = cold_x_.size() > 0   ? 4.0 * n * static_cast<double>(config_.d_e)
                  : cold_k_.size() > 0 ? CacheSlots::kv_bytes(heads, length_, d_k, d_v)
                                       : 0,
          .scratch = CacheSlots::kv_bytes(
                         heads, cache_.slots() - std::min(options_.m, cache_.slots()), d_k, d_v) +
                     CacheSlots::work_bytes(heads, cache_.slots(), d_k, d_v) +
                     (scores_.size() > 0 ? 4.0 * n : 0)};
}

double RebuildingCache::allocated(const StreamConfig& c, const RebuildOptions& o) {
  const Index count = slots(c, o);
  double bytes = CacheSlots::kv_bytes(c.heads, count, c.d_k, c.d_v) +
                 CacheSlots::work_bytes(c.heads, count, c.d_k, c.d_v) +
                 20.0 * static_cast<double>(count) + 4.0 * static_cast<double>(c.capacity);
  if (o.r > 0 || o.prompt) bytes += 4.0 * static_cast<double>(c.capacity);
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
