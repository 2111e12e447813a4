// Linear attention with phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, equations 5 and 7): the
// quadratic form, weights phi(q_i).phi(k_j) / (sum_l phi(q_i).phi(k_l) + eps), no scaling.
#pragma once

#include <cmath>

#include "tests/reference/call.h"

namespace subquad::reference {

inline TensorD linear_weights(const Call& call, double eps) {
  const Problem& p = call.problem;
  const auto phi = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  TensorD weights(p.batch, p.heads, p.n, p.n_kv);
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i) {
      double sum = eps;
      for (Index j = 0; j < p.n_kv; ++j) {
        if (!allowed(call, b, i, j)) continue;
        for (Index c = 0; c < p.d_k; ++c)
          at(weights, b, h, i, j) += phi(at(call.q, b, h, i, c)) * phi(at(call.k, b, h, j, c));
        sum += at(weights, b, h, i, j);
      }
      for (Index j = 0; j < p.n_kv && sum > 0; ++j) at(weights, b, h, i, j) /= sum;
    }
  });
  return weights;
}

inline TensorD linear_attention(const Call& call, double eps) {
  return weighted_values(call, linear_weights(call, eps));
}

}  // namespace subquad::reference
