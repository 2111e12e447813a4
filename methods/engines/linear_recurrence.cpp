#include "methods/engines/linear_recurrence.h"

#include "harness/core/parallel.h"
#include "methods/engines/band.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/vector_math.h"

namespace subquad {
namespace {

using namespace engine;

// state [features, wide] = decay state + a b^T; when `out` is not null, out [wide] = c^T state.
template <bool OUTPUT>
void advance(const float* a, const float* b, float decay, Index features, Index wide, float* state,
             const float* c, float* out) {
  for_column_blocks(wide, [&](Index column, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    Vec add[kVectors], sum[kVectors];
    for (int w = 0; w < kVectors; ++w) add[w] = load(b + column + w * kLanes), sum[w] = Vec{};
    for (Index x = 0; x < features; ++x) {
      float* const row = state + x * wide + column;
      const Vec factor = broadcast(a[x]);
#pragma GCC unroll 4
      for (int w = 0; w < kVectors; ++w) {
        const Vec now = decay * load(row + w * kLanes) + factor * add[w];
        store(row + w * kLanes, now);
        if constexpr (OUTPUT) sum[w] += broadcast(c[x]) * now;
      }
    }
    if constexpr (OUTPUT)
      for (int w = 0; w < kVectors; ++w) store(out + column + w * kLanes, sum[w]);
  });
}

// out [features] = state vector.
void times_vector(const float* state, Index features, Index wide, const float* vector, float* out) {
  for (Index x = 0; x < features; ++x) {
    Vec sum{};
    for (Index c = 0; c < wide; c += kLanes) sum += load(state + x * wide + c) * load(vector + c);
    out[x] = horizontal_sum(sum);
  }
}

float dot(const float* a, const float* b, Index wide) {
  Vec sum{};
  for (Index c = 0; c < wide; c += kLanes) sum += load(a + c) * load(b + c);
  return horizontal_sum(sum);
}

void copy_row(const float* from, Index d, Index wide, float* to) {
  map_rows(from, 1, d, to, wide, [](Vec x) { return x; });
}

Index floats_of(const Problem& p, const FeatureMap& map) {  // of LinearRecurrence::Row
  const Index features = map.features(p.d_k), wide_v = round_up(p.d_v, kLanes);
  return round_up(features * wide_v + 4 * round_up(features, kLanes) + 3 * wide_v +
                      map.scratch_floats(p.d_k, 1),
                  16);
}

float decay_of(const LinearScanOptions& options, Index bh, Index heads) {
  return options.decay.empty()
             ? 1.0f
             : static_cast<float>(options.decay[static_cast<std::size_t>(bh % heads)]);
}

}  // namespace

struct LinearRecurrence::Row {
  float *state, *z, *q, *k, *v, *o, *g, *scratch;
};

void LinearRecurrence::prepare(const Problem& problem, std::shared_ptr<FeatureMap> map,
                               const LinearScanOptions& options) {
  problem_ = problem;
  map_ = std::move(map);
  options_ = options;
  features_ = map_->features(problem.d_k);
  wide_f_ = round_up(features_, kLanes);
  wide_v_ = round_up(problem.d_v, kLanes);
  floats_ = floats_of(problem, *map_);
  work_ = AlignedArray<float>();
  grow();
}

double LinearRecurrence::work_bytes(const Problem& p, const FeatureMap& map) {
  return 4.0 * static_cast<double>(thread_count() * floats_of(p, map));
}

void LinearRecurrence::grow() {
  if (work_.size() < thread_count() * floats_)
    work_ = AlignedArray<float>(thread_count() * floats_);
}

LinearRecurrence::Row LinearRecurrence::row(int thread) {
  Row h;
  h.state = work_.data() + thread * floats_;
  h.z = h.state + features_ * wide_v_;
  h.q = h.z + wide_f_;
  h.k = h.q + wide_f_;
  h.g = h.k + wide_f_;
  h.v = h.g + wide_f_;
  h.o = h.v + wide_v_;
  h.scratch = h.o + 2 * wide_v_;
  return h;
}

void LinearRecurrence::forward(const Inputs& in, TensorView out, float* inverse_norm) {
  grow();
  map_->begin(problem_, in);
  const Problem& p = problem_;
  parallel_for(p.batch * p.heads, [&](Index bh, int thread) {
    const Row h = row(thread);
    const auto real = keys_of_batch(in, bh / p.heads);
    const float decay = decay_of(options_, bh, p.heads);
    std::fill_n(h.state, features_ * wide_v_ + wide_f_, 0.0f);
    for (Index i = -p.causal_offset(); i < p.n; ++i) {
      const Index j = i + p.causal_offset();
      if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) {
        std::fill_n(h.k, wide_f_, 0.0f);
        std::fill_n(h.v, wide_v_, 0.0f);
      } else {
        map_->apply(FeatureMap::Side::key, bh, in.k.data() + (bh * p.n_kv + j) * p.d_k, 1, p.d_k,
                    h.k, wide_f_, h.scratch);
        copy_row(in.v.data() + (bh * p.n_kv + j) * p.d_v, p.d_v, wide_v_, h.v);
      }
      for (Index x = 0; x < wide_f_; x += kLanes) store(h.z + x, load(h.z + x) + load(h.k + x));
      if (i < 0) {
        advance<false>(h.k, h.v, decay, features_, wide_v_, h.state, nullptr, nullptr);
        continue;
      }
      map_->apply(FeatureMap::Side::query, bh, in.q.data() + (bh * p.n + i) * p.d_k, 1, p.d_k, h.q,
                  wide_f_, h.scratch);
      advance<true>(h.k, h.v, decay, features_, wide_v_, h.state, h.q, h.o);
      float scale = 1;
      if (options_.normalize) {
        const float norm = dot(h.q, h.z, wide_f_) + static_cast<float>(options_.eps);
        scale = norm == 0.0f ? 0.0f : 1.0f / norm;
        if (inverse_norm != nullptr) inverse_norm[bh * p.n + i] = scale;
      }
      float* const to = out.data() + (bh * p.n + i) * p.d_v;
      for (Index c = 0; c < p.d_v; ++c) to[c] = h.o[c] * scale;
    }
  });
}

void LinearRecurrence::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                                const float* inverse_norm, const Gradients& grads) {
  grow();
  map_->begin(problem_, in);
  const Problem& p = problem_;
  parallel_for(p.batch * p.heads, [&](Index bh, int thread) {
    const Row h = row(thread);
    const auto real = keys_of_batch(in, bh / p.heads);
    const float decay = decay_of(options_, bh, p.heads);
    const auto hidden = [&](Index j) {
      return !real.empty() && real[static_cast<std::size_t>(j)] == 0;
    };
    const auto key = [&](Index j) {
      map_->apply(FeatureMap::Side::key, bh, in.k.data() + (bh * p.n_kv + j) * p.d_k, 1, p.d_k, h.k,
                  wide_f_, h.scratch);
      copy_row(in.v.data() + (bh * p.n_kv + j) * p.d_v, p.d_v, wide_v_, h.v);
    };
    float* const g = h.o;                 // dout over the normaliser
    const auto gradient = [&](Index i) {  // returns the gradient of the denominator
      copy_row(dout.data() + (bh * p.n + i) * p.d_v, p.d_v, wide_v_, g);
      if (!options_.normalize) return 0.0f;
      copy_row(out.data() + (bh * p.n + i) * p.d_v, p.d_v, wide_v_, g + wide_v_);
      const float scale = inverse_norm[bh * p.n + i], sum = dot(g, g + wide_v_, wide_v_);
      for (Index c = 0; c < wide_v_; c += kLanes) store(g + c, load(g + c) * scale);
      return -sum * scale;
    };

    // Forward in time: dphi(q_i) = S g_i + z e_i.
    std::fill_n(h.state, features_ * wide_v_ + wide_f_, 0.0f);
    for (Index i = -p.causal_offset(); i < p.n; ++i) {
      const Index j = i + p.causal_offset();
      if (hidden(j)) {
        std::fill_n(h.k, wide_f_, 0.0f);
        std::fill_n(h.v, wide_v_, 0.0f);
      } else {
        key(j);
      }
      advance<false>(h.k, h.v, decay, features_, wide_v_, h.state, nullptr, nullptr);
      for (Index x = 0; x < wide_f_; x += kLanes) store(h.z + x, load(h.z + x) + load(h.k + x));
      if (i < 0) continue;
      const float e = gradient(i);
      times_vector(h.state, features_, wide_v_, g, h.g);
      for (Index x = 0; x < features_; ++x) h.g[x] += e * h.z[x];
      map_->pull_back(FeatureMap::Side::query, bh, in.q.data() + (bh * p.n + i) * p.d_k, nullptr,
                      h.g, 1, p.d_k, wide_f_, grads.dq.data() + (bh * p.n + i) * p.d_k, h.scratch);
    }

    // Backward in time: R += phi(q) g^T, r += phi(q) e; dphi(k_j) = R v_j + r, dv_j = R^T phi(k_j).
    std::fill_n(h.state, features_ * wide_v_ + wide_f_, 0.0f);
    for (Index j = p.n_kv - 1; j >= 0; --j) {
      const Index i = j - p.causal_offset();
      if (i >= 0) {
        map_->apply(FeatureMap::Side::query, bh, in.q.data() + (bh * p.n + i) * p.d_k, 1, p.d_k,
                    h.q, wide_f_, h.scratch);
        const float e = gradient(i);
        advance<false>(h.q, g, decay, features_, wide_v_, h.state, nullptr, nullptr);
        for (Index x = 0; x < wide_f_; x += kLanes)
          store(h.z + x, load(h.z + x) + e * load(h.q + x));
      } else {
        std::fill_n(h.q, wide_f_, 0.0f);
        std::fill_n(g, wide_v_, 0.0f);
        advance<false>(h.q, g, decay, features_, wide_v_, h.state, nullptr, nullptr);
      }
      float* const dk = grads.dk.data() + (bh * p.n_kv + j) * p.d_k;
      float* const dv = grads.dv.data() + (bh * p.n_kv + j) * p.d_v;
      if (hidden(j)) {
        std::fill_n(dk, p.d_k, 0.0f);
        std::fill_n(dv, p.d_v, 0.0f);
        continue;
      }
      key(j);
      times_vector(h.state, features_, wide_v_, h.v, h.g);
      for (Index x = 0; x < features_; ++x) h.g[x] += h.z[x];
      map_->pull_back(FeatureMap::Side::key, bh, in.k.data() + (bh * p.n_kv + j) * p.d_k, h.k, h.g,
                      1, p.d_k, wide_f_, dk, h.scratch);
      for (Index c = 0; c < p.d_v; ++c) dv[c] = 0;
      for (Index x = 0; x < features_; ++x)
        for (Index c = 0; c < p.d_v; ++c) dv[c] += h.k[x] * h.state[x * wide_v_ + c];
    }
  });
}

namespace {

class LinearDecoder final : public Decoder {
 public:
  LinearDecoder(const DecodeConfig& config, std::shared_ptr<FeatureMap> map,
                const LinearScanOptions& options)
      : config_(config),
        map_(std::move(map)),
        options_(options),
        features_(map_->features(config.d_k)),
        wide_f_(round_up(features_, kLanes)),
        wide_v_(round_up(config.d_v, kLanes)),
        state_floats_(state_floats(features_, config.d_v)),
        scratch_floats_(scratch_floats(features_, config.d_v, map_->scratch_floats(config.d_k, 1))),
        state_(heads() * state_floats_),
        scratch_(heads() * scratch_floats_) {}

  void reset() override { std::fill_n(state_.data(), state_.size(), 0.0f); }

  void prefill(ConstTensorView, ConstTensorView k, ConstTensorView v, ConstTensorView) override {
    parallel_for(heads(), [&](Index h, int) {
      for (Index t = 0; t < k.n(); ++t)
        feed(h, k.data() + (h * k.n() + t) * config_.d_k, v.data() + (h * k.n() + t) * config_.d_v,
             nullptr, nullptr);
    });
  }

  void step(const DecodeStep& in, float* out) override {
    parallel_for(heads(), [&](Index h, int) {
      feed(h, in.k + h * config_.d_k, in.v + h * config_.d_v, in.q + h * config_.d_k,
           out + h * config_.d_v);
    });
  }

  static Index scratch_floats(Index features, Index d_v, Index map_scratch) {
    return 2 * round_up(features, kLanes) + 2 * round_up(d_v, kLanes) +
           round_up(map_scratch, kLanes);
  }
  static Index state_floats(Index features, Index d_v) {
    return features * round_up(d_v, kLanes) + round_up(features, kLanes);
  }

  CacheBytes bytes() const override {
    const auto bytes = [](Index floats) { return 4.0 * static_cast<double>(floats); };
    return {.kv = bytes(state_.size()), .scratch = bytes(scratch_.size())};
  }

 private:
  Index heads() const { return config_.batch * config_.heads; }

  void feed(Index bh, const float* k, const float* v, const float* q, float* out) {
    float* const state = state_.data() + bh * state_floats_;
    float* const z = state + features_ * wide_v_;
    float* const phi_k = scratch_.data() + bh * scratch_floats_;
    float* const phi_q = phi_k + wide_f_;
    float* const value = phi_q + wide_f_;
    float* const o = value + wide_v_;
    float* const scratch = o + wide_v_;
    const float decay = decay_of(options_, bh, config_.heads);
    map_->apply(FeatureMap::Side::key, bh, k, 1, config_.d_k, phi_k, wide_f_, scratch);
    copy_row(v, config_.d_v, wide_v_, value);
    for (Index x = 0; x < wide_f_; x += kLanes) store(z + x, load(z + x) + load(phi_k + x));
    if (q == nullptr)
      return advance<false>(phi_k, value, decay, features_, wide_v_, state, nullptr, nullptr);
    map_->apply(FeatureMap::Side::query, bh, q, 1, config_.d_k, phi_q, wide_f_, scratch);
    advance<true>(phi_k, value, decay, features_, wide_v_, state, phi_q, o);
    float scale = 1;
    if (options_.normalize) {
      const float norm = dot(phi_q, z, wide_f_) + static_cast<float>(options_.eps);
      scale = norm == 0.0f ? 0.0f : 1.0f / norm;
    }
    for (Index c = 0; c < config_.d_v; ++c) out[c] = o[c] * scale;
  }

  DecodeConfig config_;
  std::shared_ptr<FeatureMap> map_;
  LinearScanOptions options_;
  Index features_, wide_f_, wide_v_, state_floats_, scratch_floats_;
  AlignedArray<float> state_;    // [batch * heads, state_floats]: S, z
  AlignedArray<float> scratch_;  // [batch * heads, scratch_floats]
};

}  // namespace

std::unique_ptr<Decoder> make_linear_decoder(const DecodeConfig& config,
                                             std::shared_ptr<FeatureMap> map,
                                             const LinearScanOptions& options) {
  return std::make_unique<LinearDecoder>(config, std::move(map), options);
}

double linear_decoder_bytes(const Problem& p, const FeatureMap& map) {
  const Index features = map.features(p.d_k);
  return 4.0 * static_cast<double>(
                   p.batch * p.heads *
                   (LinearDecoder::state_floats(features, p.d_v) +
                    LinearDecoder::scratch_floats(features, p.d_v, map.scratch_floats(p.d_k, 1))));
}

}  // namespace subquad
