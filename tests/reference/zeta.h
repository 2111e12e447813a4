// ZETA (Zeng et al. 2025, arXiv 2501.14577) in double, by brute force: the pool of every query
// under the chunk rule, its sorted codes, the window, the nearest keys, the averaged token, the
// kernel and its gradient. Also its references, which choose from other keys or do not choose.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "harness/core/params.h"
#include "harness/core/random.h"
#include "tests/reference/call.h"

namespace subquad::reference {

struct ZetaRule {
  std::string method;  // zeta, zeta_topk, cauchy_topk, cauchy_dense
  Index d_key = 3, top_k = 32, window_factor = 2, chunk = 0, chunks = 16, bits = 0;
  bool history = true, local = false, clamp = false;
  double gain = 1, gamma = 0.5;
  std::string similarity = "cauchy";

  static ZetaRule from(const std::string& method, const Settings& s) {
    ZetaRule r;
    r.method = method;
    const auto integer = [&s](const char* key, Index otherwise) {
      return s.contains(key) ? std::get<Index>(s.at(key)) : otherwise;
    };
    r.d_key = integer("d_key", 3), r.top_k = integer("top_k", 32);
    r.window_factor = integer("window_factor", 2), r.bits = integer("bits", 0);
    r.chunk = integer("chunk", 0), r.chunks = integer("chunks", 16);
    r.history = std::get<bool>(s.at("history"));
    r.local = s.contains("local") && std::get<bool>(s.at("local"));
    r.clamp = std::get<std::string>(s.at("bound")) == "clamp";
    r.gain = std::get<double>(s.at("gain")), r.gamma = std::get<double>(s.at("gamma"));
    r.similarity = std::get<std::string>(s.at("similarity"));
    return r;
  }
  Index code_bits() const { return bits > 0 ? bits : std::min<Index>(10, 63 / d_key); }
  Index chunk_size(Index n_kv) const {
    const Index size = chunk > 0 ? chunk : std::max(top_k, (n_kv + chunks - 1) / chunks);
    return std::min(size, n_kv);
  }
};

// Points of every query or key: bound(gain W x).
inline TensorD zeta_points(const ZetaRule& rule, const TensorD& x, Seed seed) {
  const Index d = x.d();
  TensorD t(x.batch(), x.heads(), x.n(), rule.d_key);
  Random random(seed, "zeta.projection");
  std::vector<double> matrix;  // [d, d_key]
  for (Index e = 0; e < d * rule.d_key && d != rule.d_key; ++e) matrix.push_back(random.normal());
  for (Index b = 0; b < x.batch(); ++b)
    for (Index h = 0; h < x.heads(); ++h)
      for (Index i = 0; i < x.n(); ++i)
        for (Index c = 0; c < rule.d_key; ++c) {
          double sum = 0;
          if (d == rule.d_key) sum = at(x, b, h, i, c);
          for (Index a = 0; a < d && d != rule.d_key; ++a)
            sum += matrix[static_cast<std::size_t>(a * rule.d_key + c)] * at(x, b, h, i, a) /
                   std::sqrt(static_cast<double>(d));
          sum *= rule.gain;
          at(t, b, h, i, c) = rule.clamp ? std::clamp(sum, -1.0, 1.0) : std::tanh(sum);
        }
  return t;
}

// dx from dt: the derivative of the bound, then W.
inline TensorD zeta_points_gradient(const ZetaRule& rule, const TensorD& x, const TensorD& t,
                                    const TensorD& dt, Seed seed) {
  const Index d = x.d();
  TensorD dx(x.shape());
  Random random(seed, "zeta.projection");
  std::vector<double> matrix;
  for (Index e = 0; e < d * rule.d_key && d != rule.d_key; ++e) matrix.push_back(random.normal());
  for (Index b = 0; b < x.batch(); ++b)
    for (Index h = 0; h < x.heads(); ++h)
      for (Index i = 0; i < x.n(); ++i)
        for (Index c = 0; c < rule.d_key; ++c) {
          const double v = at(t, b, h, i, c);
          const double slope = rule.clamp ? (std::fabs(v) < 1 ? 1 : 0) : 1 - v * v;
          const double g = at(dt, b, h, i, c) * slope * rule.gain;
          if (d == rule.d_key) at(dx, b, h, i, c) += g;
          for (Index a = 0; a < d && d != rule.d_key; ++a)
            at(dx, b, h, i, a) += matrix[static_cast<std::size_t>(a * rule.d_key + c)] * g /
                                  std::sqrt(static_cast<double>(d));
        }
  return dx;
}

inline std::uint64_t zeta_code(const ZetaRule& rule, const TensorD& t, Index b, Index h, Index i) {
  std::uint64_t code = 0;
  const Index bits = rule.code_bits();
  for (Index level = bits - 1; level >= 0; --level)
    for (Index c = 0; c < rule.d_key; ++c) {
      const double cells = std::pow(2.0, static_cast<double>(bits));
      const double u = std::floor((at(t, b, h, i, c) + 1) / 2 * cells);
      const auto cell = static_cast<std::uint64_t>(std::clamp(u, 0.0, cells - 1));
      code = 2 * code + (cell >> level & 1);
    }
  return code;
}

inline double zeta_distance(const TensorD& q, Index i, const TensorD& k, Index j, Index b,
                            Index h) {
  double sum = 0;
  for (Index c = 0; c < q.d(); ++c) sum += std::pow(at(q, b, h, i, c) - at(k, b, h, j, c), 2);
  return sum;
}

// The keys that query i chooses, ascending.
inline std::vector<Index> zeta_chosen(const ZetaRule& rule, const Call& call, const TensorD& q,
                                      const TensorD& k, Index b, Index h, Index i) {
  const Problem& p = call.problem;
  if (rule.method == "cauchy_dense") return {};
  const Index place = i + (p.causal ? p.n_kv - p.n : 0), size = rule.chunk_size(p.n_kv);
  Index limit = p.causal ? place / size * size : p.n_kv;
  if (rule.method == "cauchy_topk" && p.causal) limit = place + 1;
  std::vector<std::pair<std::uint64_t, Index>> pool;  // (code, position)
  for (Index j = 0; j < limit; ++j)
    if (call.real(b, j))
      pool.emplace_back(rule.method == "zeta" ? zeta_code(rule, k, b, h, j) : 0, j);
  std::sort(pool.begin(), pool.end());
  const auto count = static_cast<Index>(pool.size());
  Index first = 0, last = count;
  if (rule.method == "zeta") {
    const Index wanted = rule.top_k * rule.window_factor;
    const std::pair<std::uint64_t, Index> code{zeta_code(rule, q, b, h, i), -1};
    const Index p0 = std::lower_bound(pool.begin(), pool.end(), code) - pool.begin();
    first = std::clamp<Index>(p0 - wanted / 2, 0, std::max<Index>(0, count - wanted));
    last = std::min(count, first + wanted);
  }
  std::vector<std::pair<double, Index>> ranked;
  for (Index e = first; e < last; ++e) {
    const Index j = pool[static_cast<std::size_t>(e)].second;
    ranked.emplace_back(zeta_distance(q, i, k, j, b, h), j);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<Index> chosen;
  for (Index e = 0; e < std::min(rule.top_k, last - first); ++e)
    chosen.push_back(ranked[static_cast<std::size_t>(e)].second);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// Log of the kernel, and its derivatives by D, by q.k and by gamma^2.
struct ZetaLog {
  double value = 0, by_distance = 0, by_product = 0, by_width = 0;
};
inline ZetaLog zeta_log(const ZetaRule& rule, double distance, double product) {
  const double w = std::max(rule.gamma * rule.gamma, 1e-6);
  if (rule.similarity == "cauchy")
    return {-std::log(distance + w), -1 / (distance + w), 0, -1 / (distance + w)};
  if (rule.similarity == "inverse_euclid")
    return {-std::log(distance + w) / 2, -0.5 / (distance + w), 0, -0.5 / (distance + w)};
  if (rule.similarity == "neg_euclid") return {-distance / w, -1 / w, 0, distance / (w * w)};
  return {product / w, 0, 1 / w, -product / (w * w)};
}

struct ZetaGradient {
  Gradient qkv;
  double dtheta = 0;  // of gamma = sigmoid(theta)
};

// The output, and with dout and gradient given the gradients of sum(out * dout). With `chosen`
// given the chosen keys of [batch, heads, n] are written there.
inline TensorD zeta_attention(const ZetaRule& rule, const Call& call, const TensorD* dout = nullptr,
                              ZetaGradient* gradient = nullptr,
                              std::vector<std::vector<Index>>* chosen = nullptr, Seed seed = 0) {
  const Problem& p = call.problem;
  const TensorD q = zeta_points(rule, call.q, seed), k = zeta_points(rule, call.k, seed);
  TensorD out(p.batch, p.heads, p.n, p.d_v), dq(q.shape()), dk(k.shape()), dv(call.v.shape());
  double dgamma2 = 0;
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i) {
      const Index place = i + (p.causal ? p.n_kv - p.n : 0);
      std::vector<Index> keys = zeta_chosen(rule, call, q, k, b, h, i);
      if (chosen != nullptr) chosen->push_back(keys);
      const Index start = rule.method == "cauchy_dense" ? 0
                          : rule.local && p.causal
                              ? place / rule.chunk_size(p.n_kv) * rule.chunk_size(p.n_kv)
                              : p.n_kv;
      for (Index j = start; j < p.visible(i); ++j)
        if (call.real(b, j)) keys.push_back(j);
      std::vector<Index> past;  // of the averaged token
      for (Index j = 0; j < p.visible(i) && rule.history; ++j)
        if (call.real(b, j)) past.push_back(j);
      const auto share = 1 / static_cast<double>(past.size());
      std::vector<double> mean_k(static_cast<std::size_t>(rule.d_key), 0.0);
      std::vector<double> mean_v(static_cast<std::size_t>(p.d_v), 0.0);
      for (const Index j : past) {
        for (Index c = 0; c < rule.d_key; ++c)
          mean_k[static_cast<std::size_t>(c)] += share * at(k, b, h, j, c);
        for (Index c = 0; c < p.d_v; ++c)
          mean_v[static_cast<std::size_t>(c)] += share * at(call.v, b, h, j, c);
      }
      const std::size_t own = keys.size(), all = own + (past.empty() ? 0 : 1);
      if (all == 0) continue;
      const auto key = [&](std::size_t e, Index c) {
        return e < own ? at(k, b, h, keys[e], c) : mean_k[static_cast<std::size_t>(c)];
      };
      const auto value = [&](std::size_t e, Index c) {
        return e < own ? at(call.v, b, h, keys[e], c) : mean_v[static_cast<std::size_t>(c)];
      };
      std::vector<ZetaLog> logs;
      double max = -std::numeric_limits<double>::infinity();
      for (std::size_t e = 0; e < all; ++e) {
        double distance = 0, product = 0;
        for (Index c = 0; c < rule.d_key; ++c) {
          distance += std::pow(at(q, b, h, i, c) - key(e, c), 2);
          product += at(q, b, h, i, c) * key(e, c);
        }
        logs.push_back(zeta_log(rule, distance, product));
        max = std::max(max, logs.back().value);
      }
      std::vector<double> weight;
      double sum = 0;
      for (const ZetaLog& log : logs) sum += weight.emplace_back(std::exp(log.value - max));
      for (double& w : weight) w /= sum;
      for (std::size_t e = 0; e < all; ++e)
        for (Index c = 0; c < p.d_v; ++c) at(out, b, h, i, c) += weight[e] * value(e, c);
      if (gradient == nullptr) continue;
      std::vector<double> dot(all, 0.0);  // dout_i . v
      double mean_dot = 0;
      for (std::size_t e = 0; e < all; ++e) {
        for (Index c = 0; c < p.d_v; ++c) dot[e] += at(*dout, b, h, i, c) * value(e, c);
        mean_dot += weight[e] * dot[e];
      }
      for (std::size_t e = 0; e < all; ++e) {
        const double ds = weight[e] * (dot[e] - mean_dot);
        dgamma2 += ds * logs[e].by_width;
        const auto give = [&](Index j, double part) {
          for (Index c = 0; c < p.d_v; ++c)
            at(dv, b, h, j, c) += part * weight[e] * at(*dout, b, h, i, c);
          for (Index c = 0; c < rule.d_key; ++c)
            at(dk, b, h, j, c) += part * ds *
                                  (2 * logs[e].by_distance * (key(e, c) - at(q, b, h, i, c)) +
                                   logs[e].by_product * at(q, b, h, i, c));
        };
        if (e < own) {
          give(keys[e], 1);
        } else {
          for (const Index j : past) give(j, share);
        }
        for (Index c = 0; c < rule.d_key; ++c)
          at(dq, b, h, i, c) += ds * (2 * logs[e].by_distance * (at(q, b, h, i, c) - key(e, c)) +
                                      logs[e].by_product * key(e, c));
      }
    }
  });
  if (gradient != nullptr) {
    gradient->qkv = {zeta_points_gradient(rule, call.q, q, dq, seed),
                     zeta_points_gradient(rule, call.k, k, dk, seed), std::move(dv)};
    gradient->dtheta = rule.gamma * rule.gamma > 1e-6
                           ? dgamma2 * 2 * rule.gamma * rule.gamma * (1 - rule.gamma)
                           : 0;
  }
  return out;
}

}  // namespace subquad::reference
