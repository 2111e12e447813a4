// Helpers of the method tests: seeded inputs, one call of a method, distances.
#pragma once

#include <omp.h>

#include <cmath>
#include <limits>

#include "harness/core/random.h"
#include "harness/core/registry.h"
#include "harness/core/task.h"
#include "tests/reference/registry.h"

namespace subquad::testing {

// Standard normal q, k, v; q times `spread`.
inline QKV random_inputs(const Problem& p, Seed seed, float spread = 1) {
  QKV in(p);
  fill_normal(derive(seed, "q"), in.q.data(), in.q.size());
  fill_normal(derive(seed, "k"), in.k.data(), in.k.size());
  fill_normal(derive(seed, "v"), in.v.data(), in.v.size());
  for (Index e = 0; e < in.q.size(); ++e) in.q.data()[e] *= spread;
  return in;
}

// About `share` of the keys of every batch item become padding; the last item sees none of its
// first two keys, so that causal rows without any key occur.
inline void pad_keys(const Problem& p, Seed seed, double share, QKV* in) {
  Random random(seed, "padding");
  in->key_mask.assign(static_cast<std::size_t>(p.batch * p.n_kv), 1);
  for (auto& real : in->key_mask) real = random.uniform() < share ? 0 : 1;
  for (Index j = 0; j < std::min<Index>(2, p.n_kv); ++j)
    in->key_mask[static_cast<std::size_t>((p.batch - 1) * p.n_kv + j)] = 0;
}

inline reference::Call double_call(const Problem& p, const QKV& in) {
  return {p, cast<double>(in.q), cast<double>(in.k), cast<double>(in.v), in.key_mask};
}

// Runs what follows with `count` threads; restores the number.
class Threads {
 public:
  explicit Threads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

struct Outcome {
  Tensor out, dq, dk, dv;
};

// Forward, and backward when dout is given; every result buffer is NaN before the call.
inline Outcome run_method(const std::string& name, const Settings& settings, const Problem& p,
                          const QKV& in, const Tensor* dout = nullptr) {
  const auto method = make_method(name, settings);
  Env env;
  env.gradients = dout != nullptr;
  method->prepare(p, env);
  Outcome got{Tensor(p.batch, p.heads, p.n, p.d_v), Tensor(in.q.shape()), Tensor(in.k.shape()),
              Tensor(in.v.shape())};
  for (Tensor* t : {&got.out, &got.dq, &got.dk, &got.dv})
    t->fill(std::numeric_limits<float>::quiet_NaN());
  const auto saved = dout != nullptr ? method->make_saved() : nullptr;
  method->forward(in.inputs(), got.out, saved.get());
  if (dout != nullptr)
    method->backward(in.inputs(), got.out, *dout, *saved, {got.dq, got.dk, got.dv, {}});
  return got;
}

inline Settings resolved(const std::string& name, const Settings& settings) {
  return resolve(name, Registry::instance().method(name).params, settings);
}

inline double norm(const TensorD& x) {
  double sum = 0;
  for (Index e = 0; e < x.size(); ++e) sum += x.data()[e] * x.data()[e];
  return std::sqrt(sum);
}

// ||got - want||_F / ||want||_F; of the difference alone when `want` is zero; NaN stays NaN.
template <class Got>
double relative_error(const Got& got, const TensorD& want) {
  double difference = 0, norm = 0;
  for (Index e = 0; e < want.size(); ++e) {
    const double d = static_cast<double>(got.data()[e]) - want.data()[e];
    difference += d * d;
    norm += want.data()[e] * want.data()[e];
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

}  // namespace subquad::testing
