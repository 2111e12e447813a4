// Softmax attention over any set of visible keys (Vaswani et al. 2017), forward and backward.
#pragma once

#include <cmath>
#include <limits>

#include "tests/reference/call.h"

namespace subquad::reference {

// May query i of batch item b see key j.
using Sees = std::function<bool(Index b, Index i, Index j)>;

inline Sees sees_everything(const Call& call) {
  return [&call](Index b, Index i, Index j) { return allowed(call, b, i, j); };
}

// s_ij = scale q_i . k_j of every pair, [batch, heads, n, n_kv].
inline TensorD logits(const Call& call) {
  const Problem& p = call.problem;
  TensorD s(p.batch, p.heads, p.n, p.n_kv);
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.n_kv; ++j) at(s, b, h, i, j) = logit(call, b, h, i, j);
  });
  return s;
}

// lse_i = log sum_j exp(s_ij) over the visible keys, [batch, heads, n, 1]; -infinity if none is.
inline TensorD log_sum_exp(const Call& call, const Sees& sees, const TensorD& s) {
  const Problem& p = call.problem;
  TensorD lse(p.batch, p.heads, p.n, 1);
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i) {
      double max = -std::numeric_limits<double>::infinity();
      for (Index j = 0; j < p.n_kv; ++j)
        if (sees(b, i, j)) max = std::fmax(max, at(s, b, h, i, j));
      double sum = 0;
      for (Index j = 0; j < p.n_kv; ++j)
        if (sees(b, i, j)) sum += std::exp(at(s, b, h, i, j) - max);
      at(lse, b, h, i, 0) = sum > 0 ? max + std::log(sum) : max;
    }
  });
  return lse;
}

// P_ij = exp(s_ij - lse_i), zero where j is not seen; [batch, heads, n, n_kv].
inline TensorD softmax_weights(const Call& call, const Sees& sees) {
  const Problem& p = call.problem;
  const TensorD s = logits(call), lse = log_sum_exp(call, sees, s);
  TensorD weights(p.batch, p.heads, p.n, p.n_kv);
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.n_kv; ++j)
        if (sees(b, i, j))
          at(weights, b, h, i, j) = std::exp(at(s, b, h, i, j) - at(lse, b, h, i, 0));
  });
  return weights;
}

inline TensorD softmax_attention(const Call& call, const Sees& sees) {
  return weighted_values(call, softmax_weights(call, sees));
}

// dP_ij = dout_i . v_j,  dS_ij = P_ij (dP_ij - sum_l P_il dP_il),
// dq_i = scale sum_j dS_ij k_j,  dk_j = scale sum_i dS_ij q_i,  dv_j = sum_i P_ij dout_i.
inline Gradient softmax_attention_gradient(const Call& call, const Sees& sees,
                                           const TensorD& dout) {
  const Problem& p = call.problem;
  const TensorD weights = softmax_weights(call, sees);
  Gradient g{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  const double scale = p.logit_scale();
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i) {
      std::vector<double> dp(static_cast<std::size_t>(p.n_kv));
      double mean = 0;
      for (Index j = 0; j < p.n_kv; ++j) {
        double& dot = dp[static_cast<std::size_t>(j)];
        for (Index c = 0; c < p.d_v; ++c) dot += at(dout, b, h, i, c) * at(call.v, b, h, j, c);
        mean += at(weights, b, h, i, j) * dot;
      }
      for (Index j = 0; j < p.n_kv; ++j) {
        const double weight = at(weights, b, h, i, j);
        const double ds = weight * (dp[static_cast<std::size_t>(j)] - mean);
        for (Index c = 0; c < p.d_k; ++c) {
          at(g.dq, b, h, i, c) += scale * ds * at(call.k, b, h, j, c);
          at(g.dk, b, h, j, c) += scale * ds * at(call.q, b, h, i, c);
        }
        for (Index c = 0; c < p.d_v; ++c) at(g.dv, b, h, j, c) += weight * at(dout, b, h, i, c);
      }
    }
  });
  return g;
}

}  // namespace subquad::reference
