// Kernelised attention with relative positional encoding (arXiv 2106.12566): the weight matrix
//   weights(t, j) ~ exp(b_{j-t}) phi(q_t) . phi(k_j), rows normalised, entry by entry.
// Directions and initial bias are drawn as the method documents it, for seed 0.
#pragma once

#include <cmath>

#include "harness/core/random.h"
#include "tests/reference/call.h"

namespace subquad::reference {

struct NprfRule {
  Index features = 32, bias_range = 0;
  std::string map = "prf";
  bool normalize = true, rpe = true;
  double bias_std = 0;

  static NprfRule from(const Settings& s) {
    return {std::get<Index>(s.at("features")),
            std::get<Index>(s.at("bias_range")),
            std::get<std::string>(s.at("feature_map")),
            std::get<bool>(s.at("normalize")),
            std::get<bool>(s.at("rpe")),
            std::get<double>(s.at("bias_std"))};
  }
};

inline std::vector<float> nprf_draw(const char* purpose, Index count) {
  std::vector<float> drawn(static_cast<std::size_t>(count));
  fill_normal(derive(0, purpose), drawn.data(), count);
  return drawn;
}

// exp(b_r) of a head for r = j - t in [-(n-1), n-1], clipped to the range.
inline std::vector<double> nprf_kernel(const NprfRule& rule, const Problem& p, Index head) {
  const Index n = p.n, reach = rule.bias_range > 0 ? std::min(rule.bias_range, n - 1) : n - 1;
  const auto drawn = nprf_draw("nprf.bias", p.heads * (2 * reach + 1));
  std::vector<double> c;
  for (Index r = -(n - 1); r < n; ++r) {
    const Index at = head * (2 * reach + 1) + reach + std::clamp(r, -reach, reach);
    const float b = drawn[static_cast<std::size_t>(at)] * static_cast<float>(rule.bias_std);
    c.push_back(rule.rpe ? std::exp(static_cast<double>(b)) : 1);
  }
  return c;
}

inline std::vector<double> nprf_features(const NprfRule& rule, const Problem& p,
                                         const std::vector<float>& w, Index head,
                                         const double* raw) {
  std::vector<double> x(raw, raw + p.d_k), phi;
  double square = 0;
  for (const double value : x) square += value * value;
  for (double& value : x)
    value *= rule.normalize ? 1 / std::sqrt(square) : std::sqrt(p.logit_scale());
  if (rule.map == "elu") {
    for (const double value : x) phi.push_back(value > 0 ? value + 1 : std::exp(value));
    return phi;
  }
  square = 0;
  for (const double value : x) square += value * value;
  std::vector<double> dots;
  for (Index a = 0; a < rule.features; ++a) {
    double dot = 0;
    for (Index c = 0; c < p.d_k; ++c)
      dot +=
          x[static_cast<std::size_t>(c)] *
          static_cast<double>(w[static_cast<std::size_t>((head * rule.features + a) * p.d_k + c)]);
    dots.push_back(dot);
  }
  const double norm = 1 / std::sqrt(static_cast<double>(rule.features));
  if (rule.map == "prf") {
    for (const double dot : dots) phi.push_back(norm * std::exp(dot - square / 2));
  } else {
    for (const double dot : dots) phi.push_back(norm * std::exp(square / 2) * std::sin(dot));
    for (const double dot : dots) phi.push_back(norm * std::exp(square / 2) * std::cos(dot));
  }
  return phi;
}

inline TensorD nprf(const NprfRule& rule, const Call& call) {
  const Problem& p = call.problem;
  TensorD weights(p.batch, p.heads, p.n, p.n_kv);
  const auto w = nprf_draw("nprf.w", p.heads * rule.features * p.d_k);
  for_heads(p, [&](Index b, Index h) {
    std::vector<std::vector<double>> phi_k;
    for (Index j = 0; j < p.n_kv; ++j)
      phi_k.push_back(
          nprf_features(rule, p, w, h, &call.k.data()[((b * p.heads + h) * p.n_kv + j) * p.d_k]));
    const std::vector<double> c = nprf_kernel(rule, p, h);
    for (Index t = 0; t < p.n; ++t) {
      const auto phi_q =
          nprf_features(rule, p, w, h, &call.q.data()[((b * p.heads + h) * p.n + t) * p.d_k]);
      double sum = 0;
      for (Index j = 0; j < p.n_kv; ++j) {
        if (!allowed(call, b, t, j)) continue;
        double dot = 0;
        for (std::size_t a = 0; a < phi_q.size(); ++a)
          dot += phi_q[a] * phi_k[static_cast<std::size_t>(j)][a];
        sum += at(weights, b, h, t, j) = c[static_cast<std::size_t>(j - t + p.n - 1)] * dot;
      }
      for (Index j = 0; j < p.n_kv && sum != 0; ++j) at(weights, b, h, t, j) /= sum;
    }
  });
  return weighted_values(call, weights);
}

}  // namespace subquad::reference
