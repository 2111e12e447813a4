// What the tests of tasks measure: logits and attention weights in double, plain loops.
#pragma once

#include <cmath>

#include "harness/core/registry.h"

namespace subquad {

// The data of a task with these settings.
inline QKV fill(const std::string& task, const Settings& settings, const Problem& problem,
                Seed seed = 1, Index set = 0) {
  QKV data(problem);
  make_task(task, settings)->fill(problem, seed, set, &data);
  return data;
}

// scale q_i . k_j of one head, all pairs: [n, n_kv].
inline MatrixD logits_of(const QKV& data, const Problem& problem, Index b = 0, Index h = 0) {
  const MatrixD q = data.q.head(b, h).cast<double>(), k = data.k.head(b, h).cast<double>();
  return problem.logit_scale() * (q * k.transpose());
}

// Softmax over the keys that each query sees; the others have weight 0.
inline MatrixD weights_of(const QKV& data, const Problem& problem, Index b = 0, Index h = 0) {
  MatrixD weights = logits_of(data, problem, b, h);
  for (Index i = 0; i < problem.n; ++i) {
    const Index visible = problem.visible(i);
    double top = -1e300, sum = 0;
    for (Index j = 0; j < visible; ++j) top = std::max(top, weights(i, j));
    for (Index j = 0; j < visible; ++j) sum += weights(i, j) = std::exp(weights(i, j) - top);
    for (Index j = 0; j < problem.n_kv; ++j) weights(i, j) = j < visible ? weights(i, j) / sum : 0;
  }
  return weights;
}

inline double mean_of(const MatrixD& x) { return x.mean(); }
inline double deviation_of(const MatrixD& x) {
  return std::sqrt((x.array() - x.mean()).square().mean());
}

}  // namespace subquad
