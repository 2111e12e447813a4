// Attention of clustered queries (Vyas et al. 2020, arXiv 2007.04825; the rules are those stated at
// the heads of methods/sparse_content/clustered.cpp and improved_clustered.cpp), one query at a
// time. Random numbers come from the same streams as the method's.
#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <cmath>
#include <numeric>
#include <utility>

#include "harness/core/random.h"
#include "tests/reference/softmax_attention.h"

namespace subquad::reference {

struct ClusteredOptions {
  Index clusters = 100, bits = 63, iterations = 10;
  bool bias = true;
  Index top_k = 0;  // 0: no correction
};

using Bits = std::bitset<64>;

// cluster [n] of every query of head (b, h).
inline std::vector<Index> query_clusters(const Call& call, const ClusteredOptions& o, Index b,
                                         Index h) {
  const Problem& p = call.problem;
  const Index clusters = std::min(o.clusters, p.n);
  std::vector<Index> cluster(static_cast<std::size_t>(p.n));
  std::iota(cluster.begin(), cluster.end(), Index{0});
  if (clusters == p.n) return cluster;
  const Seed seed = derive(0, "clustered");
  const auto head = static_cast<std::uint64_t>(b * p.heads + h);
  const Index drawn = p.d_k + (o.bias ? 1 : 0);
  std::vector<float> planes(static_cast<std::size_t>(o.bits * drawn));
  fill_normal(derive(seed, "clusters.planes"), planes.data(), o.bits * drawn);
  std::vector<Bits> hash;
  for (Index i = 0; i < p.n; ++i) {
    Bits bits;
    for (Index t = 0; t < o.bits; ++t) {
      const float* plane = planes.data() + t * drawn;
      double side = 0;
      for (Index c = 0; c < p.d_k; ++c)
        side += at(call.q, b, h, i, c) * static_cast<double>(plane[c]);
      bits[static_cast<std::size_t>(t)] = side > (o.bias ? static_cast<double>(plane[p.d_k]) : 0.0);
    }
    hash.push_back(bits);
  }
  std::vector<Bits> centre;
  for (const Index i :
       Random(seed, "clusters.first", {head}).sample_without_replacement(p.n, clusters))
    centre.push_back(hash[static_cast<std::size_t>(i)]);
  for (Index iteration = 0; iteration < o.iterations; ++iteration) {
    if (iteration > 0) {
      std::vector<Index> members(static_cast<std::size_t>(clusters), 0);
      std::vector<std::array<Index, 64>> ones(static_cast<std::size_t>(clusters));
      for (std::size_t i = 0; i < cluster.size(); ++i) {
        ++members[static_cast<std::size_t>(cluster[i])];
        for (std::size_t t = 0; t < 64; ++t)
          ones[static_cast<std::size_t>(cluster[i])][t] += hash[i][t] ? 1 : 0;
      }
      for (std::size_t c = 0; c < centre.size(); ++c) {
        centre[c] = Random(seed, "clusters.empty",
                           {head, static_cast<std::uint64_t>(iteration), std::uint64_t{c}})
                        .bits64() >>
                    (64 - o.bits);
        for (std::size_t t = 0; t < 64 && members[c] > 0; ++t)
          centre[c][t] = 2 * ones[c][t] > members[c];
      }
    }
    for (Index i = 0; i < p.n; ++i) {
      Index nearest = 0;
      std::size_t least = 65;
      for (Index c = 0; c < clusters; ++c) {
        const std::size_t distance =
            (hash[static_cast<std::size_t>(i)] ^ centre[static_cast<std::size_t>(c)]).count();
        if (distance < least) least = distance, nearest = c;
      }
      cluster[static_cast<std::size_t>(i)] = nearest;
    }
  }
  return cluster;
}

// What one cluster does.
struct Cluster {
  std::vector<Index> members, top;  // top: T_c
  VectorD centroid, weight;         // q_c [d_k], A_c [n_kv] (empty when causal)
};

inline std::vector<Cluster> clusters_of(const Call& call, const ClusteredOptions& o, Index b,
                                        Index h) {
  const Problem& p = call.problem;
  std::vector<Cluster> all(static_cast<std::size_t>(std::min(o.clusters, p.n)));
  const auto cluster = query_clusters(call, o, b, h);
  for (Index i = 0; i < p.n; ++i)
    all[static_cast<std::size_t>(cluster[static_cast<std::size_t>(i)])].members.push_back(i);
  for (Cluster& c : all) {
    if (c.members.empty()) continue;
    c.centroid = VectorD::Zero(p.d_k);
    for (const Index i : c.members)
      c.centroid += call.q.head(b, h).row(i).transpose() / static_cast<double>(c.members.size());
    std::vector<std::pair<double, Index>> ranked;  // (-logit, key)
    for (Index j = 0; j < p.n_kv; ++j)
      if (call.real(b, j))
        ranked.emplace_back(-p.logit_scale() * call.k.head(b, h).row(j).dot(c.centroid), j);
    std::sort(ranked.begin(), ranked.end());
    for (std::size_t x = 0; x < ranked.size() && static_cast<Index>(x) < o.top_k; ++x)
      c.top.push_back(ranked[x].second);
    c.weight = VectorD::Zero(p.n_kv);
    double sum = 0;
    for (const auto& [minus, j] : ranked) sum += std::exp(-minus + ranked[0].first);
    for (const auto& [minus, j] : ranked) c.weight[j] = std::exp(-minus + ranked[0].first) / sum;
  }
  return all;
}

// P_ij over the keys of T_c that query i may see.
inline std::vector<std::pair<Index, double>> top_weights(const Call& call, const Cluster& c,
                                                         Index b, Index h, Index i) {
  std::vector<std::pair<Index, double>> weights;
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const Index j : c.top)
    if (allowed(call, b, i, j)) {
      weights.emplace_back(j, logit(call, b, h, i, j));
      largest = std::fmax(largest, weights.back().second);
    }
  for (auto& [j, w] : weights) sum += w = std::exp(w - largest);
  for (auto& [j, w] : weights) w /= sum;
  return weights;
}

inline double mass_of(const Cluster& c) {
  double mass = 0;
  for (const Index j : c.top) mass += c.weight[j];
  return mass;
}

inline TensorD clustered_attention(const Call& call, const ClusteredOptions& o) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    for (const Cluster& c : clusters_of(call, o, b, h))
      for (const Index i : c.members) {
        VectorD row = p.causal ? VectorD::Zero(p.n_kv) : c.weight;
        for (const Index j : c.top) row[j] = 0;
        const double mass = p.causal ? 1 : mass_of(c);
        for (const auto& [j, w] : top_weights(call, c, b, h, i)) row[j] += mass * w;
        for (Index j = 0; j < p.n_kv; ++j)
          for (Index x = 0; x < p.d_v; ++x) at(out, b, h, i, x) += row[j] * at(call.v, b, h, j, x);
      }
  });
  return out;
}

// out_i = sum_j W_ij v_j, W_ij = A_cj outside T_c and m_c P_ij in it: with a_ij = dout_i . v_j,
//   dA_cj = sum_i a_ij outside, sum_i sum_l P_il a_il in T_c;  dP_ij = m_c a_ij
// and both softmaxes as usual; q_c hands its gradient to its members in equal parts.
inline Gradient clustered_attention_gradient(const Call& call, const ClusteredOptions& o,
                                             const TensorD& dout) {
  const Problem& p = call.problem;
  Gradient g{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  const double scale = p.logit_scale();
  for_heads(p, [&](Index b, Index h) {
    for (const Cluster& c : clusters_of(call, o, b, h)) {
      if (c.members.empty()) continue;
      const double mass = p.causal ? 1 : mass_of(c);
      std::vector<bool> top(static_cast<std::size_t>(p.n_kv), false);
      for (const Index j : c.top) top[static_cast<std::size_t>(j)] = true;
      VectorD dweight = VectorD::Zero(p.n_kv), dcentroid = VectorD::Zero(p.d_k);
      const auto add_value = [&](Index i, Index j, double w) {
        for (Index x = 0; x < p.d_v; ++x) at(g.dv, b, h, j, x) += w * at(dout, b, h, i, x);
      };
      for (const Index i : c.members) {
        const auto along = [&](Index j) {
          double dot = 0;
          for (Index x = 0; x < p.d_v; ++x) dot += at(dout, b, h, i, x) * at(call.v, b, h, j, x);
          return dot;
        };
        double inside = 0;
        const auto weights = top_weights(call, c, b, h, i);
        for (const auto& [j, w] : weights) inside += w * along(j);
        for (const auto& [j, w] : weights) {
          const double ds = scale * mass * w * (along(j) - inside);
          for (Index x = 0; x < p.d_k; ++x) {
            at(g.dq, b, h, i, x) += ds * at(call.k, b, h, j, x);
            at(g.dk, b, h, j, x) += ds * at(call.q, b, h, i, x);
          }
          add_value(i, j, mass * w);
        }
        if (p.causal) continue;
        for (Index j = 0; j < p.n_kv; ++j) {
          if (!call.real(b, j)) continue;
          const bool in_top = top[static_cast<std::size_t>(j)];
          dweight[j] += in_top ? inside : along(j);
          if (!in_top) add_value(i, j, c.weight[j]);
        }
      }
      if (p.causal) continue;
      const double mean = dweight.dot(c.weight);
      for (Index j = 0; j < p.n_kv; ++j) {
        const double ds = scale * c.weight[j] * (dweight[j] - mean);
        for (Index x = 0; x < p.d_k; ++x) {
          dcentroid[x] += ds * at(call.k, b, h, j, x);
          at(g.dk, b, h, j, x) += ds * c.centroid[x];
        }
      }
      for (const Index i : c.members)
        for (Index x = 0; x < p.d_k; ++x)
          at(g.dq, b, h, i, x) += dcentroid[x] / static_cast<double>(c.members.size());
    }
  });
  return g;
}

}  // namespace subquad::reference
