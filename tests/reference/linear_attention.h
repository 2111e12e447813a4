// Linear attention with any feature map (Katharopoulos et al. 2020, equations 5 and 7; with a decay
// Lightning Attention-2, arXiv 2401.04658): the quadratic form, weights
//   w_ij = decay^(i - j) phi(q_i).phi(k_j), divided by (sum_l w_il + eps) where normalised.
// No scaling. Gradients by the chain rule, entry by entry.
#pragma once

#include <cmath>
#include <functional>
#include <string>

#include "tests/reference/call.h"

namespace subquad::reference {

// A feature map and the pull-back of a gradient: x -> phi(x), and (x, dphi) -> dx.
struct Features {
  using Row = std::vector<double>;
  std::function<Row(const Row& x)> value;
  std::function<Row(const Row& x, const Row& dphi)> pull_back;
};

// An element-wise map from its value and its slope.
inline Features elementwise(std::function<double(double)> value,
                            std::function<double(double)> slope) {
  return {[value](const Features::Row& x) {
            Features::Row y;
            for (const double e : x) y.push_back(value(e));
            return y;
          },
          [slope](const Features::Row& x, const Features::Row& dphi) {
            Features::Row dx;
            for (std::size_t c = 0; c < x.size(); ++c) dx.push_back(slope(x[c]) * dphi[c]);
            return dx;
          }};
}

inline Features features_named(const std::string& name, double shift) {
  if (name == "elu1")
    return elementwise([](double x) { return x > 0 ? x + 1 : std::exp(x); },
                       [](double x) { return x > 0 ? 1 : std::exp(x); });
  if (name == "relu")
    return elementwise([shift](double x) { return (x > 0 ? x : 0) + shift; },
                       [](double x) { return x > 0 ? 1 : 0; });
  if (name == "exp")
    return elementwise([](double x) { return std::exp(x); }, [](double x) { return std::exp(x); });
  return elementwise([](double x) { return x; }, [](double) { return 1; });
}

struct LinearOptions {
  Features query, key;
  bool normalize = true;
  double eps = 1e-6;
  std::vector<double> decay;  // per head; empty: none
};

inline Features::Row row_of(const TensorD& x, Index b, Index h, Index i) {
  const double* from = x.data() + ((b * x.heads() + h) * x.n() + i) * x.d();
  return {from, from + x.d()};
}

inline double dot_of(const Features::Row& a, const Features::Row& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
  return sum;
}

// One head's weights, features and normalisers.
struct LinearHead {
  std::vector<Features::Row> q, k;
  MatrixD weights;            // [n, n_kv], divided by the normaliser
  MatrixD decay;              // [n, n_kv], 0 where hidden
  std::vector<double> scale;  // one over the normaliser; 0 where that is 0
};

inline LinearHead linear_head(const Call& call, const LinearOptions& o, Index b, Index h) {
  const Problem& p = call.problem;
  LinearHead head;
  for (Index i = 0; i < p.n; ++i) head.q.push_back(o.query.value(row_of(call.q, b, h, i)));
  for (Index j = 0; j < p.n_kv; ++j)
    head.k.push_back(call.real(b, j) ? o.key.value(row_of(call.k, b, h, j)) : head.q[0]);
  head.weights = head.decay = MatrixD::Zero(p.n, p.n_kv);
  for (Index i = 0; i < p.n; ++i) {
    double sum = o.eps;
    for (Index j = 0; j < p.n_kv; ++j) {
      if (!allowed(call, b, i, j)) continue;
      const double base = o.decay.empty() ? 1 : o.decay[static_cast<std::size_t>(h)];
      head.decay(i, j) = std::pow(base, static_cast<double>(i + p.n_kv - p.n - j));
      head.weights(i, j) = head.decay(i, j) * dot_of(head.q[static_cast<std::size_t>(i)],
                                                     head.k[static_cast<std::size_t>(j)]);
      sum += head.weights(i, j);
    }
    head.scale.push_back(!o.normalize ? 1 : sum == 0 ? 0 : 1 / sum);
    head.weights.row(i) *= head.scale.back();
  }
  return head;
}

inline TensorD linear_attention(const Call& call, const LinearOptions& o) {
  const Problem& p = call.problem;
  TensorD weights(p.batch, p.heads, p.n, p.n_kv);
  for_heads(p, [&](Index b, Index h) {
    const LinearHead head = linear_head(call, o, b, h);
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.n_kv; ++j) at(weights, b, h, i, j) = head.weights(i, j);
  });
  return weighted_values(call, weights);
}

// With s_i one over the normaliser: dw_ij = s_i dout_i.(v_j - out_i) (without normaliser:
// dout_i.v_j and s_i = 1), dphi(q_i) = sum_j decay^(i-j) dw_ij phi(k_j), and likewise for the keys.
inline Gradient linear_attention_gradient(const Call& call, const LinearOptions& o,
                                          const TensorD& dout) {
  const Problem& p = call.problem;
  const TensorD out = linear_attention(call, o);
  Gradient g{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  for_heads(p, [&](Index b, Index h) {
    const LinearHead head = linear_head(call, o, b, h);
    const std::size_t features = head.q[0].size();
    std::vector<Features::Row> dq(head.q.size(), Features::Row(features, 0.0)),
        dk(head.k.size(), Features::Row(features, 0.0));
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.n_kv; ++j) {
        if (!allowed(call, b, i, j)) continue;
        const auto iu = static_cast<std::size_t>(i), ju = static_cast<std::size_t>(j);
        double dw = 0;
        for (Index c = 0; c < p.d_v; ++c) {
          const double mean = o.normalize ? at(out, b, h, i, c) : 0;
          dw += at(dout, b, h, i, c) * (at(call.v, b, h, j, c) - mean);
          at(g.dv, b, h, j, c) += head.weights(i, j) * at(dout, b, h, i, c);
        }
        dw *= head.scale[iu] * head.decay(i, j);
        for (std::size_t x = 0; x < features; ++x) {
          dq[iu][x] += dw * head.k[ju][x];
          dk[ju][x] += dw * head.q[iu][x];
        }
      }
    for (Index i = 0; i < p.n; ++i) {
      const auto dx = o.query.pull_back(row_of(call.q, b, h, i), dq[static_cast<std::size_t>(i)]);
      for (Index c = 0; c < p.d_k; ++c) at(g.dq, b, h, i, c) = dx[static_cast<std::size_t>(c)];
    }
    for (Index j = 0; j < p.n_kv; ++j) {
      if (!call.real(b, j)) continue;
      const auto dx = o.key.pull_back(row_of(call.k, b, h, j), dk[static_cast<std::size_t>(j)]);
      for (Index c = 0; c < p.d_k; ++c) at(g.dk, b, h, j, c) = dx[static_cast<std::size_t>(c)];
    }
  });
  return g;
}

}  // namespace subquad::reference
