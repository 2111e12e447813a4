// What the references work on: one attention call in double precision. The references are plain,
// slow transcriptions of equations, one loop each; they share no code with the methods they judge.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "harness/core/problem.h"
#include "harness/core/tensor.h"

namespace subquad::reference {

struct Call {
  Problem problem;
  TensorD q, k, v;                     // shapes as in harness/core/problem.h
  std::vector<std::uint8_t> key_mask;  // [batch, n_kv], 1 = real; or empty

  bool real(Index b, Index j) const {
    return key_mask.empty() || key_mask[static_cast<std::size_t>(b * problem.n_kv + j)] != 0;
  }
};

struct Gradient {
  TensorD dq, dk, dv;
};

// A scalar entry of a tensor.
inline double& at(TensorD& x, Index b, Index h, Index i, Index c) {
  return x.data()[((b * x.heads() + h) * x.n() + i) * x.d() + c];
}
inline double at(const TensorD& x, Index b, Index h, Index i, Index c) {
  return x.data()[((b * x.heads() + h) * x.n() + i) * x.d() + c];
}

// Calls body(b, h) for every head.
inline void for_heads(const Problem& p, const std::function<void(Index, Index)>& body) {
  for (Index b = 0; b < p.batch; ++b)
    for (Index h = 0; h < p.heads; ++h) body(b, h);
}

// May query i see key j, before any pattern of a method: the decoding convention.
inline bool allowed(const Call& call, Index b, Index i, Index j) {
  const Problem& p = call.problem;
  return call.real(b, j) && (!p.causal || j <= i + p.n_kv - p.n);
}

// scale q_i . k_j
inline double logit(const Call& call, Index b, Index h, Index i, Index j) {
  double dot = 0;
  for (Index c = 0; c < call.problem.d_k; ++c)
    dot += at(call.q, b, h, i, c) * at(call.k, b, h, j, c);
  return call.problem.logit_scale() * dot;
}

// sum_j weights_ij v_j
inline TensorD weighted_values(const Call& call, const TensorD& weights) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.n_kv; ++j)
        for (Index c = 0; c < p.d_v; ++c)
          at(out, b, h, i, c) += at(weights, b, h, i, j) * at(call.v, b, h, j, c);
  });
  return out;
}

}  // namespace subquad::reference
