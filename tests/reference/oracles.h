// The oracles and controls, as dense matrices in double: plain definitions, singular value
// decompositions by Jacobi rotations.
#pragma once

#include <Eigen/SVD>
#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "harness/core/random.h"
#include "tests/reference/softmax_attention.h"

namespace subquad::reference {

// The exact attention matrix, [batch, heads, n, n_kv].
inline TensorD exact_matrix(const Call& call) {
  return softmax_weights(call, sees_everything(call));
}

inline Eigen::MatrixXd head_of(const TensorD& x, Index b, Index h) { return x.head(b, h); }

// Nearest matrix of rank r.
inline Eigen::MatrixXd nearest_of_rank(const Eigen::MatrixXd& a, Index rank) {
  if (rank >= std::min(a.rows(), a.cols())) return a;
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(a, Eigen::ComputeThinU | Eigen::ComputeThinV);
  return svd.matrixU().leftCols(rank) * svd.singularValues().head(rank).asDiagonal() *
         svd.matrixV().leftCols(rank).transpose();
}
// sum_{t > rank} s_t^2
inline double tail_energy(const Eigen::MatrixXd& a, Index rank) {
  if (rank >= std::min(a.rows(), a.cols())) return 0;
  const Eigen::VectorXd s = Eigen::JacobiSVD<Eigen::MatrixXd>(a).singularValues();
  return s.tail(s.size() - rank).squaredNorm();
}

inline TensorD svd_rank_matrix(const Call& call, Index rank) {
  TensorD a = exact_matrix(call);
  for_heads(call.problem,
            [&](Index b, Index h) { a.head(b, h) = nearest_of_rank(head_of(a, b, h), rank); });
  return a;
}

// Rows of the queries at key positions [middle, end), columns [begin, middle), become rank r.
inline void block_rank_cut(Eigen::MatrixXd& a, Index offset, Index begin, Index middle, Index end,
                           Index rank) {
  a.block(middle - offset, begin, end - middle, middle - begin) =
      nearest_of_rank(a.block(middle - offset, begin, end - middle, middle - begin), rank);
  for (const auto& [from, to] : {std::pair{begin, middle}, std::pair{middle, end}})
    if (to - from >= 2 && to > offset)
      block_rank_cut(a, offset, from, std::max((from + to) / 2, offset), to, rank);
}
inline TensorD block_rank_matrix(const Call& call, Index rank) {
  TensorD all = exact_matrix(call);
  const Problem& p = call.problem;
  for_heads(p, [&](Index b, Index h) {
    Eigen::MatrixXd a = head_of(all, b, h);
    double worst = 0;
    Index place = -1;
    for (Index eighth = 0; eighth < 8; ++eighth) {
      const Index t = p.n_kv - p.n + eighth * p.n / 8;
      if (t < 1) continue;
      const Index first = t - (p.n_kv - p.n);
      const double lost = tail_energy(a.block(first, 0, p.n - first, t), rank);
      if (lost > worst) worst = lost, place = t;
    }
    if (place >= 0) block_rank_cut(a, p.n_kv - p.n, 0, place, p.n_kv, rank);
    all.head(b, h) = a;
  });
  return all;
}

// Draws of head number b * heads + h from the stream that the method documents, seed 0.
inline TensorD column_sampling_matrix(const Call& call, Index samples, bool values) {
  const Problem& p = call.problem;
  TensorD a = exact_matrix(call);
  for_heads(p, [&](Index b, Index h) {
    std::vector<double> weight(static_cast<std::size_t>(p.n_kv), 0.0);
    double sum = 0;
    for (Index j = 0; j < p.n_kv; ++j) {
      if (!call.real(b, j)) continue;
      double column = 0, value = 0;
      for (Index i = 0; i < p.n; ++i) column += at(a, b, h, i, j) * at(a, b, h, i, j);
      for (Index c = 0; c < p.d_v; ++c) value += at(call.v, b, h, j, c) * at(call.v, b, h, j, c);
      weight[static_cast<std::size_t>(j)] = std::sqrt(column) * (values ? std::sqrt(value) : 1);
      sum += weight[static_cast<std::size_t>(j)];
    }
    std::vector<double> factor(weight.size(), 0.0);
    Random random(0, "column_sampling", {static_cast<std::uint64_t>(b * p.heads + h)});
    for (Index s = 0; s < samples && sum > 0; ++s) {
      double left = random.uniform() * sum;
      std::size_t j = 0;
      while (j + 1 < weight.size() && left >= weight[j]) left -= weight[j++];
      factor[j] += sum / (static_cast<double>(samples) * weight[j]);
    }
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.n_kv; ++j) at(a, b, h, i, j) *= factor[static_cast<std::size_t>(j)];
  });
  return a;
}

// Every row keeps the entries that `kept` names (given its exact row) under a norm of topk_exact.
inline TensorD sparse_matrix(
    const Call& call, const std::string& norm,
    const std::function<std::vector<bool>(const TensorD& a, Index b, Index h, Index i)>& kept) {
  const Problem& p = call.problem;
  const TensorD a = exact_matrix(call);
  TensorD out(a.shape());
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i) {
      const std::vector<bool> keep = kept(a, b, h, i);
      double mass = 0, count = 0;
      for (Index j = 0; j < p.n_kv; ++j)
        if (keep[static_cast<std::size_t>(j)] && allowed(call, b, i, j)) {
          mass += at(a, b, h, i, j);
          ++count;
        }
      for (Index j = 0; j < p.n_kv && mass > 0; ++j) {
        if (!keep[static_cast<std::size_t>(j)] || !allowed(call, b, i, j)) continue;
        const double exact = at(a, b, h, i, j);
        at(out, b, h, i, j) = norm == "tv"          ? exact / mass
                              : norm == "frobenius" ? exact
                                                    : exact + (1 - mass) / count;
      }
    }
  });
  return out;
}

// The `count` best by score, ties to the larger second score, then to the lowest index.
inline std::vector<bool> best(const std::vector<double>& score, Index count,
                              std::vector<double> second = {}) {
  second.resize(score.size(), 0.0);
  std::vector<std::tuple<double, double, std::size_t>> ranked;
  for (std::size_t j = 0; j < score.size(); ++j) ranked.emplace_back(-score[j], -second[j], j);
  std::sort(ranked.begin(), ranked.end());
  std::vector<bool> keep(score.size(), false);
  for (std::size_t r = 0; r < ranked.size() && r < static_cast<std::size_t>(count); ++r)
    keep[std::get<2>(ranked[r])] = true;
  return keep;
}

inline TensorD top_k_matrix(const Call& call, Index top_k, const std::string& norm) {
  const Problem& p = call.problem;
  return sparse_matrix(call, norm, [&](const TensorD&, Index b, Index h, Index i) {
    std::vector<double> score;
    for (Index j = 0; j < p.n_kv; ++j)
      score.push_back(allowed(call, b, i, j) ? logit(call, b, h, i, j)
                                             : -std::numeric_limits<double>::infinity());
    return best(score, top_k);
  });
}

inline TensorD top_k_value_matrix(const Call& call, Index top_k) {
  const Problem& p = call.problem;
  return sparse_matrix(call, "tv", [&](const TensorD& a, Index b, Index h, Index i) {
    std::vector<double> out(static_cast<std::size_t>(p.d_v), 0.0), score, weight;
    for (Index j = 0; j < p.n_kv; ++j)
      for (Index c = 0; c < p.d_v && allowed(call, b, i, j); ++c)
        out[static_cast<std::size_t>(c)] += at(a, b, h, i, j) * at(call.v, b, h, j, c);
    for (Index j = 0; j < p.n_kv; ++j) {
      double distance2 = 0;
      for (Index c = 0; c < p.d_v && allowed(call, b, i, j); ++c)
        distance2 += std::pow(at(call.v, b, h, j, c) - out[static_cast<std::size_t>(c)], 2);
      const double product = at(a, b, h, i, j) * std::sqrt(distance2);
      score.push_back(allowed(call, b, i, j) ? static_cast<double>(static_cast<float>(product))
                                             : -1);
      weight.push_back(at(a, b, h, i, j));
    }
    return best(score, top_k, weight);
  });
}

inline TensorD top_k_block_matrix(const Call& call, Index block, Index blocks,
                                  const std::string& norm) {
  const Problem& p = call.problem;
  return sparse_matrix(call, norm, [&](const TensorD& a, Index b, Index h, Index i) {
    std::vector<double> score(static_cast<std::size_t>((p.n_kv + block - 1) / block), 0.0);
    for (Index r = i / block * block; r < std::min(p.n, (i / block + 1) * block); ++r)
      for (Index j = 0; j < p.n_kv; ++j)
        score[static_cast<std::size_t>(j / block)] +=
            std::pow(at(a, b, h, r, j), norm == "tv" ? 1 : 2);
    const std::vector<bool> chosen = best(score, blocks);
    std::vector<bool> keep;
    for (Index j = 0; j < p.n_kv; ++j) keep.push_back(chosen[static_cast<std::size_t>(j / block)]);
    return keep;
  });
}

// 1 / (number of keys seen) at every key seen; `causal`: of those that the problem lets be seen.
inline TensorD uniform_matrix(const Call& call, bool causal) {
  const Problem& p = call.problem;
  TensorD w(p.batch, p.heads, p.n, p.n_kv);
  for_heads(p, [&](Index b, Index h) {
    for (Index i = 0; i < p.n; ++i) {
      const auto sees = [&](Index j) { return causal ? allowed(call, b, i, j) : call.real(b, j); };
      double count = 0;
      for (Index j = 0; j < p.n_kv; ++j) count += sees(j) ? 1 : 0;
      for (Index j = 0; j < p.n_kv; ++j) at(w, b, h, i, j) = sees(j) ? 1 / count : 0;
    }
  });
  return w;
}

// weights times v; values of padded keys are not read.
inline TensorD matrix_attention(const Call& call, const TensorD& weights) {
  Call clean = call;
  const Problem& p = call.problem;
  for_heads(p, [&](Index b, Index h) {
    for (Index j = 0; j < p.n_kv; ++j)
      for (Index c = 0; c < p.d_v; ++c)
        if (!call.real(b, j)) at(clean.v, b, h, j, c) = 0;
  });
  return weighted_values(clean, weights);
}

}  // namespace subquad::reference
