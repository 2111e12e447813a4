#include "methods/engines/delta_scan.h"

#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/band.h"
#include "methods/engines/chunk_product.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/vector_math.h"

namespace subquad {

using namespace engine;

namespace {

constexpr double kLengthEps = 1e-6;  // inside the square root
// Our choice: the triangular solve grows with the chunk, loading the state shrinks with it.
constexpr Index kChunk = 32;

// 1 over the length of x, or 1.
float inverse_length(const float* x, Index d, bool normalize) {
  if (!normalize) return 1;
  double sum = kLengthEps;
  for (Index c = 0; c < d; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  return static_cast<float>(1 / std::sqrt(sum));
}

// Gradient of y = x inverse (inverse = 1 / length) from dy; in place in dy [d].
void pull_back_length(const float* x, Index d, float inverse, bool normalize, const float* dy,
                      float* dx) {
  double dot = 0;
  for (Index c = 0; c < d && normalize; ++c)
    dot += static_cast<double>(x[c]) * static_cast<double>(dy[c]);
  const auto pull = static_cast<float>(dot) * inverse * inverse * inverse;
  for (Index c = 0; c < d; ++c) dx[c] = dy[c] * inverse - pull * x[c];
}

}  // namespace

struct DeltaScan::Work {
  float* state;   // [wide_k, wide_v]
  float* q;       // [chunk, wide_k]: scaled; rows without a query are zero
  float* k;       // [chunk, wide_k]
  float* v;       // [chunk, wide_v]
  float* e;       // [chunk, wide_v]: v - S^T k
  float* u;       // [chunk, wide_v]
  float* turned;  // [wide_k, chunk]
  float* kk;      // [chunk, chunk]: transposed scores of keys with keys
  float* qk;      // of keys with queries
  float* tile;    // [chunk, wide_v]
  float* beta;    // [chunk]
  // Backward.
  float *g, *du, *dq, *dk, *dstate, *pair;
};

DeltaScan::Sizes DeltaScan::sizes_of(const Problem& p, const DeltaOptions& options,
                                     bool gradients) {
  Sizes s;
  s.wide_k = round_up(p.d_k, kLanes);
  s.wide_v = round_up(p.d_v, kLanes);
  s.chunk = options.chunk != 0 ? options.chunk : kChunk;
  s.chunks = (p.n_kv + s.chunk - 1) / s.chunk;
  s.state = s.wide_k * s.wide_v;
  const Index c = s.chunk;
  s.work = s.state + 3 * c * s.wide_k + 4 * c * s.wide_v + 2 * c * c + round_up(c, kLanes);
  if (gradients) s.work += 2 * c * s.wide_v + 2 * c * s.wide_k + s.state + c * c;
  s.work = round_up(s.work, 16);
  return s;
}

void DeltaScan::prepare(const Problem& problem, const DeltaOptions& options, bool gradients) {
  SUBQUAD_CHECK(problem.causal, "the delta rule is causal");
  problem_ = problem;
  options_ = options;
  gradients_ = gradients;
  sizes_ = sizes_of(problem, options, gradients);
  work_ = AlignedArray<float>();
  grow();
}

void DeltaScan::grow() {
  if (work_.size() < thread_count() * sizes_.work)
    work_ = AlignedArray<float>(thread_count() * sizes_.work);
}

double DeltaScan::work_bytes(const Problem& p, const DeltaOptions& options, bool gradients) {
  const Sizes s = sizes_of(p, options, gradients);
  return 4.0 * static_cast<double>(thread_count() * s.work);
}

Index DeltaScan::saved_floats(const Problem& p, const DeltaOptions& options) {
  const Sizes s = sizes_of(p, options, true);
  return p.batch * p.heads * s.chunks * s.state;
}

// The recurrent form: three products with the state per key and query, eight of them backward.
double DeltaScan::flops(const Problem& p, Pass pass) {
  const double forward = 2.0 * static_cast<double>(p.batch * p.heads * p.d_k * p.d_v) *
                         static_cast<double>(2 * p.n_kv + p.n);
  const double backward = 2.0 * static_cast<double>(p.batch * p.heads * p.d_k * p.d_v) *
                          static_cast<double>(5 * p.n_kv + 2 * p.n);
  return pass == Pass::backward           ? backward
         : pass == Pass::forward_backward ? forward + backward
                                          : forward;
}

// Chunk c of the keys and the queries at their positions. Masked keys get rate 0 and zero rows.
void DeltaScan::load(const Inputs& in, const float* beta, Index bh, Index c, const Work& w) const {
  const Problem& p = problem_;
  const Sizes& s = sizes_;
  const auto real = keys_of_batch(in, bh / p.heads);
  const auto scale = static_cast<float>(p.logit_scale());
  const auto row = [](const float* x, Index d, Index wide, float factor, float* to) {
    map_rows(x, 1, d, to, wide, [factor](Vec y) { return y * factor; });
  };
  for (Index t = 0; t < s.chunk; ++t) {
    const Index j = c * s.chunk + t, i = j - p.causal_offset();
    float* const q = w.q + t * s.wide_k;
    float* const k = w.k + t * s.wide_k;
    float* const v = w.v + t * s.wide_v;
    if (j < p.n_kv && (real.empty() || real[static_cast<std::size_t>(j)] != 0)) {
      const float* const x = in.k.data() + (bh * p.n_kv + j) * p.d_k;
      row(x, p.d_k, s.wide_k, inverse_length(x, p.d_k, options_.normalize), k);
      row(in.v.data() + (bh * p.n_kv + j) * p.d_v, p.d_v, s.wide_v, 1, v);
      w.beta[t] = beta != nullptr ? beta[bh * p.n_kv + j] : static_cast<float>(options_.beta);
    } else {
      std::fill_n(k, s.wide_k, 0.0f);
      std::fill_n(v, s.wide_v, 0.0f);
      w.beta[t] = 0;
    }
    if (i >= 0 && i < p.n) {
      const float* const x = in.q.data() + (bh * p.n + i) * p.d_k;
      row(x, p.d_k, s.wide_k, scale * inverse_length(x, p.d_k, options_.normalize), q);
    } else {
      std::fill_n(q, s.wide_k, 0.0f);
    }
  }
}

// e = v - K S, u from e by forward substitution, a row after the other: row t reads rows before it
// only.
void DeltaScan::solve(const float* state, const Work& w) const {
  const Sizes& s = sizes_;
  transpose(w.k, s.wide_k, s.chunk, s.wide_k, w.turned, s.chunk);
  chunk_scores(w.k, s.wide_k, w.turned, problem_.d_k, s.chunk, w.kk);
  chunk_outputs<Local::none>(Factors{w.k, s.wide_k, 1}, problem_.d_k, state, s.wide_v, nullptr,
                             Factors<>{}, nullptr, 0, s.chunk, nullptr, w.tile, s.wide_v);
  for (Index x = 0; x < s.chunk * s.wide_v; x += kLanes)
    store(w.e + x, engine::load(w.v + x) - engine::load(w.tile + x));
  for (Index t = 0; t < s.chunk; ++t)
    for_column_blocks(s.wide_v, [&](Index c, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      Vec sum[kVectors];
      const float* const e = w.e + t * s.wide_v + c;
      for (int x = 0; x < kVectors; ++x) sum[x] = engine::load(e + x * kLanes);
      for (Index i = 0; i < t; ++i) {
        const Vec factor = broadcast(w.kk[i * s.chunk + t]);
#pragma GCC unroll 4
        for (int x = 0; x < kVectors; ++x)
          sum[x] -= factor * engine::load(w.u + i * s.wide_v + c + x * kLanes);
      }
      for (int x = 0; x < kVectors; ++x)
        store(w.u + t * s.wide_v + c + x * kLanes, sum[x] * broadcast(w.beta[t]));
    });
}

namespace {

template <class W>
W lay_out(float* base, Index wide_k, Index wide_v, Index c, bool gradients) {
  W w{};
  const auto take = [&](float*& to, Index floats) {
    to = base;
    base += floats;
  };
  take(w.state, wide_k * wide_v);
  take(w.q, c * wide_k);
  take(w.k, c * wide_k);
  take(w.turned, c * wide_k);
  take(w.v, c * wide_v);
  take(w.e, c * wide_v);
  take(w.u, c * wide_v);
  take(w.tile, c * wide_v);
  take(w.kk, c * c);
  take(w.qk, c * c);
  take(w.beta, round_up(c, kLanes));
  if (!gradients) return w;
  take(w.g, c * wide_v);
  take(w.du, c * wide_v);
  take(w.dq, c * wide_k);
  take(w.dk, c * wide_k);
  take(w.dstate, wide_k * wide_v);
  take(w.pair, c * c);
  return w;
}

}  // namespace

void DeltaScan::forward(const Inputs& in, const float* beta, TensorView out, float* states) {
  grow();
  const Index kept = sizes_.chunks * sizes_.state;
  parallel_for(problem_.batch * problem_.heads, [&](Index bh, int thread) {
    forward_head(in, beta, bh, thread, out.data() + bh * problem_.n * problem_.d_v,
                 states == nullptr ? nullptr : states + bh * kept);
  });
}

void DeltaScan::forward_head(const Inputs& in, const float* beta, Index bh, int thread, float* out,
                             float* states) {
  const Problem& p = problem_;
  const Sizes& s = sizes_;
  const Work w =
      lay_out<Work>(work_.data() + thread * s.work, s.wide_k, s.wide_v, s.chunk, gradients_);
  std::fill_n(w.state, s.state, 0.0f);
  for (Index c = 0; c < s.chunks; ++c) {
    load(in, beta, bh, c, w);
    if (states != nullptr) std::copy_n(w.state, s.state, states + c * s.state);
    solve(w.state, w);
    const Index first = c * s.chunk - p.causal_offset();  // query of row 0; may be negative
    if (first + s.chunk > 0) {
      transpose(w.q, s.wide_k, s.chunk, s.wide_k, w.turned, s.chunk);
      chunk_scores(w.k, s.wide_k, w.turned, p.d_k, s.chunk, w.qk);
      chunk_outputs<Local::up_to>(Factors{w.turned, NextTo{}, s.chunk}, p.d_k, w.state, s.wide_v,
                                  nullptr, Factors{w.qk, NextTo{}, s.chunk}, w.u, s.wide_v, s.chunk,
                                  nullptr, w.tile, s.wide_v);
      for (Index t = std::max<Index>(0, -first); t < s.chunk && first + t < p.n; ++t)
        std::copy_n(w.tile + t * s.wide_v, p.d_v, out + (first + t) * p.d_v);
    }
    chunk_increment(w.k, s.wide_k, p.d_k, w.u, s.wide_v, s.wide_v, {s.chunk, s.chunk}, Ahead{},
                    [state = w.state](Index, Index offset) {
                      return [to = state + offset](Index at, Vec sum) {
                        store(to + at, engine::load(to + at) + sum);
                      };
                    });
  }
}

void DeltaScan::backward(const Inputs& in, const float* beta, ConstTensorView dout,
                         const float* states, const Gradients& grads, float* dbeta) {
  SUBQUAD_CHECK(gradients_, "backward without prepare for gradients");
  grow();
  parallel_for(problem_.batch * problem_.heads, [&](Index bh, int thread) {
    backward_head(in, beta, dout, states, grads, dbeta, bh, thread);
  });
}

// The chunk's five lines differentiated, from the last chunk to the first; dS is the gradient of
// the state behind a chunk. With P = tril(Q K^T), A = diag(beta) tril(K K^T, -1):
//   dU = P^T G + K dS,  dP = tril(G U^T),  dB = (I + A)^-T dU,  dA = -tril(dB U^T, -1)
//   dE = diag(beta) dB = dV,  dbeta_t = dB_t.e_t + sum_i dA_ti k_t.k_i
//   dQ = G S^T + dP K
//   dK = dP^T Q + U dS^T - dE S^T + (diag(beta) dA + its transpose) K
//   dS_before = dS + Q^T G - K^T dE
void DeltaScan::backward_head(const Inputs& in, const float* beta, ConstTensorView dout,
                              const float* states, const Gradients& grads, float* dbeta, Index bh,
                              int thread) {
  const Problem& p = problem_;
  const Sizes& s = sizes_;
  const Work w = lay_out<Work>(work_.data() + thread * s.work, s.wide_k, s.wide_v, s.chunk, true);
  const auto real = keys_of_batch(in, bh / p.heads);
  const Index n = s.chunk, offset = p.causal_offset();
  MatrixMap q(w.q, n, s.wide_k), k(w.k, n, s.wide_k), e(w.e, n, s.wide_v), u(w.u, n, s.wide_v),
      g(w.g, n, s.wide_v), du(w.du, n, s.wide_v), dq(w.dq, n, s.wide_k), dk(w.dk, n, s.wide_k),
      ds(w.dstate, s.wide_k, s.wide_v), pair(w.pair, n, n), weights(w.qk, n, n), kk(w.kk, n, n);
  ds.setZero();
  for (Index c = s.chunks - 1; c >= 0; --c) {
    const ConstMatrixMap state(states + (bh * s.chunks + c) * s.state, s.wide_k, s.wide_v);
    load(in, beta, bh, c, w);
    solve(state.data(), w);
    for (Index t = 0; t < n; ++t) {
      const Index i = c * n + t - offset;
      if (i >= 0 && i < p.n) {
        map_rows(dout.data() + (bh * p.n + i) * p.d_v, 1, p.d_v, w.g + t * s.wide_v, s.wide_v,
                 [](Vec x) { return x; });
      } else {
        g.row(t).setZero();
      }
    }
    weights.noalias() = q * k.transpose();
    pair.noalias() = g * u.transpose();
    for (Index t = 0; t < n; ++t) {
      weights.row(t).tail(n - 1 - t).setZero();
      pair.row(t).tail(n - 1 - t).setZero();
    }
    dq.noalias() = g * state.transpose();
    dq.noalias() += pair * k;
    dk.noalias() = pair.transpose() * q;
    dk.noalias() += u * ds.transpose();
    du.noalias() = weights.transpose() * g;
    du.noalias() += k * ds;
    // Back substitution: row t of dB is complete once the rows behind it have been taken off.
    for (Index t = n - 1; t >= 0; --t)
      for (Index i = 0; i < t; ++i) du.row(i) -= w.beta[t] * w.kk[i * n + t] * du.row(t);
    pair.noalias() = du * u.transpose();  // -dA below the diagonal
    for (Index t = 0; t < n; ++t) {
      double rate = 0;
      for (Index x = 0; x < s.wide_v; ++x)
        rate += static_cast<double>(du(t, x)) * static_cast<double>(e(t, x));
      for (Index i = 0; i < t; ++i)
        rate -= static_cast<double>(pair(t, i)) * static_cast<double>(w.kk[i * n + t]);
      const Index j = c * n + t;
      if (dbeta != nullptr && j < p.n_kv) dbeta[bh * p.n_kv + j] = static_cast<float>(rate);
      pair.row(t).tail(n - t).setZero();
      pair.row(t) *= -w.beta[t];
      du.row(t) *= w.beta[t];  // now dE
    }
    dk.noalias() += pair * k;
    dk.noalias() += pair.transpose() * k;
    dk.noalias() -= du * state.transpose();
    ds.noalias() += q.transpose() * g;
    ds.noalias() -= k.transpose() * du;

    const auto scale = static_cast<float>(p.logit_scale());
    for (Index t = 0; t < n; ++t) {
      const Index j = c * n + t, i = j - offset;
      if (i >= 0 && i < p.n) {
        const float* const x = in.q.data() + (bh * p.n + i) * p.d_k;
        dq.row(t) *= scale;
        pull_back_length(x, p.d_k, inverse_length(x, p.d_k, options_.normalize), options_.normalize,
                         w.dq + t * s.wide_k, grads.dq.data() + (bh * p.n + i) * p.d_k);
      }
      if (j >= p.n_kv) continue;
      float* const to_k = grads.dk.data() + (bh * p.n_kv + j) * p.d_k;
      float* const to_v = grads.dv.data() + (bh * p.n_kv + j) * p.d_v;
      if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) {
        std::fill_n(to_k, p.d_k, 0.0f);
        std::fill_n(to_v, p.d_v, 0.0f);
        if (dbeta != nullptr) dbeta[bh * p.n_kv + j] = 0;
        continue;
      }
      const float* const x = in.k.data() + (bh * p.n_kv + j) * p.d_k;
      pull_back_length(x, p.d_k, inverse_length(x, p.d_k, options_.normalize), options_.normalize,
                       w.dk + t * s.wide_k, to_k);
      std::copy_n(w.du + t * s.wide_v, p.d_v, to_v);
    }
  }
}

namespace {

class DeltaDecoder final : public Decoder {
 public:
  DeltaDecoder(const DecodeConfig& config, const DeltaOptions& options)
      : config_(config),
        options_(options),
        wide_v_(round_up(config.d_v, kLanes)),
        state_(heads() * config.d_k * wide_v_),
        scratch_(heads() * 2 * wide_v_) {}

  void reset() override { std::fill_n(state_.data(), state_.size(), 0.0f); }

  void step(const DecodeStep& in, float* out) override {
    const auto scale = static_cast<float>(config_.logit_scale());
    parallel_for(heads(), [&](Index h, int) {
      const Index d = config_.d_k;
      const float* const k = in.k + h * d;
      const float* const q = in.q + h * d;
      const float key = inverse_length(k, d, options_.normalize);
      const float query = scale * inverse_length(q, d, options_.normalize);
      float* const state = state_.data() + h * d * wide_v_;
      float* const u = scratch_.data() + h * 2 * wide_v_;
      float* const o = u + wide_v_;
      const auto beta = static_cast<float>(options_.beta);
      map_rows(in.v + h * config_.d_v, 1, config_.d_v, u, wide_v_, [](Vec x) { return x; });
      for (Index c = 0; c < wide_v_; c += kLanes) {  // a column of vectors at a time
        Vec even{}, odd{}, sum{}, other{};
        Index x = 0;
        for (; x + 2 <= d; x += 2) {
          even += k[x] * engine::load(state + x * wide_v_ + c);
          odd += k[x + 1] * engine::load(state + (x + 1) * wide_v_ + c);
        }
        if (x < d) even += k[x] * engine::load(state + x * wide_v_ + c);
        const Vec step = (engine::load(u + c) - (even + odd) * key) * (beta * key);
        for (x = 0; x < d; ++x) {
          float* const row = state + x * wide_v_ + c;
          const Vec now = engine::load(row) + k[x] * step;
          store(row, now);
          if (x % 2 == 0) {
            sum += q[x] * now;
          } else {
            other += q[x] * now;
          }
        }
        store(o + c, (sum + other) * query);
      }
      std::copy_n(o, config_.d_v, out + h * config_.d_v);
    });
  }

  CacheBytes bytes() const override {
    return {.kv = 4.0 * static_cast<double>(state_.size()),
            .scratch = 4.0 * static_cast<double>(scratch_.size())};
  }

 private:
  Index heads() const { return config_.batch * config_.heads; }

  DecodeConfig config_;
  DeltaOptions options_;
  Index wide_v_;
  AlignedArray<float> state_;    // [batch * heads, d_k, wide_v]
  AlignedArray<float> scratch_;  // [batch * heads, 2, wide_v]
};

}  // namespace

std::unique_ptr<Decoder> make_delta_decoder(const DecodeConfig& config,
                                            const DeltaOptions& options) {
  return std::make_unique<DeltaDecoder>(config, options);
}

double delta_decoder_bytes(const Problem& p) {
  return 4.0 * static_cast<double>(p.batch * p.heads * (p.d_k + 2) * round_up(p.d_v, kLanes));
}

}  // namespace subquad
