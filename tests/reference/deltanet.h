// The delta rule (Yang et al. 2024, arXiv 2406.06484), token by token in double:
//   e_t = v_t - S_{t-1}^T k_t,  u_t = beta_t e_t,  S_t = S_{t-1} + k_t u_t^T,  o_t = S_t^T scale
//   q_t
// and its gradient by the reverse recurrence, with all states kept:
//   dS += scale q_t g_t^T,  dq_t = scale S_t g_t,  du = dS^T k_t
//   dk_t = dS u_t - beta_t S_{t-1} du,  dv_t = beta_t du,  dbeta_t = du.e_t,  dS -= beta_t k_t du^T
#pragma once

#include <cmath>

#include "tests/reference/call.h"

namespace subquad::reference {

struct DeltaOptions {
  std::vector<double> beta;  // [batch, heads, n_kv]; one value: the same everywhere
  bool normalize = true;

  double rate(const Problem& p, Index b, Index h, Index j) const {
    if (beta.size() == 1) return beta[0];
    return beta[static_cast<std::size_t>((b * p.heads + h) * p.n_kv + j)];
  }
};

// x / sqrt(|x|^2 + 1e-6) row by row, and the pull-back of dy through it.
inline VectorD unit_row(const TensorD& x, Index b, Index h, Index i, bool normalize) {
  VectorD row(x.d());
  for (Index c = 0; c < x.d(); ++c) row[c] = at(x, b, h, i, c);
  if (normalize) row /= std::sqrt(row.squaredNorm() + 1e-6);
  return row;
}
inline void unit_pull_back(const TensorD& x, Index b, Index h, Index i, bool normalize,
                           const VectorD& dy, TensorD* dx) {
  const VectorD row = unit_row(x, b, h, i, false);
  VectorD gradient = dy;
  if (normalize) {
    const double length = std::sqrt(row.squaredNorm() + 1e-6);
    gradient = dy / length - row * (row.dot(dy) / (length * length * length));
  }
  for (Index c = 0; c < x.d(); ++c) at(*dx, b, h, i, c) = gradient[c];
}

struct DeltaGradient {
  Gradient qkv;
  std::vector<double> dbeta;  // [batch, heads, n_kv]
};

// out, and the gradients when dout is given.
inline TensorD delta_rule(const Call& call, const DeltaOptions& o, const TensorD* dout = nullptr,
                          DeltaGradient* gradient = nullptr) {
  const Problem& p = call.problem;
  const double scale = p.logit_scale();
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  if (dout != nullptr)
    *gradient = {{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())},
                 std::vector<double>(static_cast<std::size_t>(p.batch * p.heads * p.n_kv), 0.0)};
  for_heads(p, [&](Index b, Index h) {
    std::vector<MatrixD> states{MatrixD::Zero(p.d_k, p.d_v)};  // before token j
    std::vector<VectorD> errors;
    const auto vector_of = [&](const TensorD& x, Index i) { return unit_row(x, b, h, i, false); };
    for (Index j = 0; j < p.n_kv; ++j) {
      MatrixD state = states.back();
      VectorD error = VectorD::Zero(p.d_v);
      if (call.real(b, j)) {
        const VectorD k = unit_row(call.k, b, h, j, o.normalize);
        error = vector_of(call.v, j) - state.transpose() * k;
        state += k * (o.rate(p, b, h, j) * error).transpose();
      }
      errors.push_back(error);
      states.push_back(state);
      const Index i = j - p.causal_offset();
      if (i < 0) continue;
      const VectorD result = state.transpose() * (scale * unit_row(call.q, b, h, i, o.normalize));
      for (Index c = 0; c < p.d_v; ++c) at(out, b, h, i, c) = result[c];
    }
    if (dout == nullptr) return;
    MatrixD ds = MatrixD::Zero(p.d_k, p.d_v);
    for (Index j = p.n_kv - 1; j >= 0; --j) {
      const auto before = static_cast<std::size_t>(j);
      const Index i = j - p.causal_offset();
      if (i >= 0) {
        const VectorD g = vector_of(*dout, i);
        ds += scale * unit_row(call.q, b, h, i, o.normalize) * g.transpose();
        unit_pull_back(call.q, b, h, i, o.normalize, scale * states[before + 1] * g,
                       &gradient->qkv.dq);
      }
      if (!call.real(b, j)) continue;
      const VectorD k = unit_row(call.k, b, h, j, o.normalize), du = ds.transpose() * k;
      const double beta = o.rate(p, b, h, j);
      const VectorD dk = ds * (beta * errors[before]) - beta * (states[before] * du);
      unit_pull_back(call.k, b, h, j, o.normalize, dk, &gradient->qkv.dk);
      for (Index c = 0; c < p.d_v; ++c) at(gradient->qkv.dv, b, h, j, c) = beta * du[c];
      gradient->dbeta[static_cast<std::size_t>((b * p.heads + h) * p.n_kv + j)] =
          du.dot(errors[before]);
      ds -= beta * k * du.transpose();
    }
  });
  return out;
}

}  // namespace subquad::reference
