// Hrrformer attention (arXiv 2305.19534) in the time domain: circular convolutions as double sums.
//   beta[x] = sum_i sum_m k_i[m] v_i[x - m],  vhat_t[x] = sum_m q_t[m] beta[x + m],
//   a_t = cos(v_t, vhat_t),  w = softmax over tokens,  out_t = w_t v_t.
// Causal: sums over i <= t and s <= t. Padded tokens take no part and have zero outputs.
#pragma once

#include <cmath>

#include "tests/reference/call.h"

namespace subquad::reference {

struct HrrRule {
  bool mask_in_sum = true, rescale = false;
  double temperature = 1;

  static HrrRule from(const Settings& s) {
    return {std::get<bool>(s.at("mask_in_sum")), std::get<bool>(s.at("rescale")),
            std::get<double>(s.at("temperature"))};
  }
};

struct HrrForward {
  std::vector<std::vector<double>> beta, vhat;  // [n][d]
  std::vector<double> a, e, sum;                // [n]; w_t = e_t / sum_t
};

inline HrrForward hrr_forward(const HrrRule& rule, const Call& call, Index b, Index h) {
  const Problem& p = call.problem;
  const Index d = p.d_k;
  HrrForward f;
  std::vector<double> beta(static_cast<std::size_t>(d));
  const auto add_pair = [&](Index i) {
    if (rule.mask_in_sum && !call.real(b, i)) return;
    for (Index x = 0; x < d; ++x)
      for (Index m = 0; m < d; ++m)
        beta[static_cast<std::size_t>(x)] +=
            at(call.k, b, h, i, m) * at(call.v, b, h, i, (x - m + d) % d);
  };
  for (Index i = 0; i < p.n && !p.causal; ++i) add_pair(i);
  double total = 0;
  for (Index t = 0; t < p.n; ++t) {
    if (p.causal) add_pair(t);
    std::vector<double> vhat(static_cast<std::size_t>(d));
    double dot = 0, v = 0, m = 0;
    for (Index x = 0; x < d; ++x) {
      double& value = vhat[static_cast<std::size_t>(x)];
      for (Index y = 0; y < d; ++y)
        value += at(call.q, b, h, t, y) * beta[static_cast<std::size_t>((x + y) % d)];
      dot += value * at(call.v, b, h, t, x);
      v += at(call.v, b, h, t, x) * at(call.v, b, h, t, x);
      m += value * value;
    }
    f.beta.push_back(beta);
    f.vhat.push_back(vhat);
    f.a.push_back(dot / ((std::sqrt(v) + 1e-12) * (std::sqrt(m) + 1e-12)));
    f.e.push_back(call.real(b, t) ? std::exp(rule.temperature * f.a.back()) : 0);
    total += f.e.back();
    f.sum.push_back(total);
  }
  if (!p.causal) f.sum.assign(f.sum.size(), total);
  return f;
}

inline double hrr_scale(const HrrRule& rule, const Call& call, Index b) {
  if (!rule.rescale) return 1;
  double count = 0;
  for (Index t = 0; t < call.problem.n; ++t) count += call.real(b, t) ? 1 : 0;
  return count;
}

inline TensorD hrrformer(const HrrRule& rule, const Call& call) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    const HrrForward f = hrr_forward(rule, call, b, h);
    for (Index t = 0; t < p.n; ++t)
      for (Index c = 0; c < p.d_v; ++c) {
        const auto row = static_cast<std::size_t>(t);
        if (f.e[row] != 0)
          at(out, b, h, t, c) =
              hrr_scale(rule, call, b) * f.e[row] / f.sum[row] * at(call.v, b, h, t, c);
      }
  });
  return out;
}

// Step by step backwards: out -> w -> a -> vhat, v -> q, beta -> k, v.
inline Gradient hrrformer_gradient(const HrrRule& rule, const Call& call, const TensorD& dout) {
  const Problem& p = call.problem;
  const Index n = p.n, d = p.d_k;
  Gradient g{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  for_heads(p, [&](Index b, Index h) {
    const HrrForward f = hrr_forward(rule, call, b, h);
    const double scale = hrr_scale(rule, call, b);
    std::vector<double> dw(static_cast<std::size_t>(n)), da(static_cast<std::size_t>(n));
    for (Index t = 0; t < n; ++t) {
      const auto row = static_cast<std::size_t>(t);
      for (Index c = 0; c < d && f.e[row] != 0; ++c) {
        dw[row] += scale * at(dout, b, h, t, c) * at(call.v, b, h, t, c);
        at(g.dv, b, h, t, c) += scale * f.e[row] / f.sum[row] * at(dout, b, h, t, c);
      }
    }
    for (Index s = 0; s < n; ++s)  // dw_t / de_s = [t = s] / S_t - e_t / S_t^2 where t's sum has s
      for (Index t = p.causal ? s : 0; t < n; ++t) {
        const auto i = static_cast<std::size_t>(s), o = static_cast<std::size_t>(t);
        if (f.e[i] == 0 || f.e[o] == 0) continue;
        da[i] += rule.temperature * f.e[i] * dw[o] *
                 ((s == t ? 1 / f.sum[o] : 0) - f.e[o] / (f.sum[o] * f.sum[o]));
      }
    std::vector<double> dbeta(static_cast<std::size_t>(d));
    const auto give_pair = [&](Index i) {
      if (rule.mask_in_sum && !call.real(b, i)) return;
      for (Index x = 0; x < d; ++x)
        for (Index m = 0; m < d; ++m) {
          const double change = dbeta[static_cast<std::size_t>(x)];
          at(g.dk, b, h, i, m) += change * at(call.v, b, h, i, (x - m + d) % d);
          at(g.dv, b, h, i, (x - m + d) % d) += change * at(call.k, b, h, i, m);
        }
    };
    for (Index t = n - 1; t >= 0; --t) {
      const auto row = static_cast<std::size_t>(t);
      double v = 0, m = 0;
      for (Index x = 0; x < d; ++x) {
        v += at(call.v, b, h, t, x) * at(call.v, b, h, t, x);
        m += f.vhat[row][static_cast<std::size_t>(x)] * f.vhat[row][static_cast<std::size_t>(x)];
      }
      for (Index x = 0; x < d && da[row] != 0; ++x) {
        const double vhat = f.vhat[row][static_cast<std::size_t>(x)];
        const double value = at(call.v, b, h, t, x), norm = std::sqrt(v * m);
        at(g.dv, b, h, t, x) += da[row] * (vhat / norm - f.a[row] * value / v);
        const double dvhat = da[row] * (value / norm - f.a[row] * vhat / m);
        for (Index y = 0; y < d; ++y) {
          at(g.dq, b, h, t, y) += dvhat * f.beta[row][static_cast<std::size_t>((x + y) % d)];
          dbeta[static_cast<std::size_t>((x + y) % d)] += dvhat * at(call.q, b, h, t, y);
        }
      }
      if (p.causal) give_pair(t);
    }
    for (Index i = 0; i < n && !p.causal; ++i) give_pair(i);
  });
  return g;
}

}  // namespace subquad::reference
