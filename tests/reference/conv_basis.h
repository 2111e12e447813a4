// Conv-Basis attention (arXiv 2405.05219) from explicit matrices: the starts by plain searches over
// the whole logit matrix H, then H~(t, j) = the logit of the run's first column at the same
// distance (last column above the diagonal), softmax of its rows, and both gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <sstream>

#include "tests/reference/softmax_attention.h"

namespace subquad::reference {

using Logits = std::function<double(Index t, Index j)>;

struct ConvBasisRule {
  std::string segmentation = "recover";
  Index k = 16, probe = 16;
  double delta = 0, eps = 0;
  std::vector<Index> starts = {0};
  bool mean = false;
  bool plug_in = false;

  static ConvBasisRule from(const Settings& s) {
    ConvBasisRule rule;
    rule.segmentation = std::get<std::string>(s.at("segmentation"));
    rule.k = std::get<Index>(s.at("k"));
    rule.probe = std::get<Index>(s.at("probe"));
    rule.delta = std::get<double>(s.at("delta"));
    rule.eps = std::get<double>(s.at("eps"));
    rule.mean = std::get<std::string>(s.at("representative")) == "mean";
    rule.plug_in = std::get<std::string>(s.at("gradient")) == "plug_in";
    rule.starts.clear();
    std::istringstream text(std::get<std::string>(s.at("starts")));
    for (std::string part; std::getline(text, part, ',');) rule.starts.push_back(std::stol(part));
    return rule;
  }
};

// l1 distance of the first T entries of columns i and j below the diagonal.
inline double column_distance(const Logits& h, Index i, Index j, Index probe) {
  double sum = 0;
  for (Index l = 0; l < probe; ++l) sum += std::fabs(h(i + l, i) - h(j + l, j));
  return sum;
}

// Bottom-up merging by Ward's criterion, every pair looked at in every round.
inline std::vector<Index> merged_starts(const Logits& h, Index n, Index k) {
  const std::vector<Index> lags{0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
  std::vector<Index> starts;
  for (Index j = 0; j < n; ++j) starts.push_back(j);
  const auto end = [&](std::size_t i) { return i + 1 < starts.size() ? starts[i + 1] : n; };
  while (static_cast<Index>(starts.size()) > k) {
    std::size_t best = 0;
    double least = 0;
    for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
      double cost = 0;
      for (const Index lag : lags) {
        double sum_a = 0, sum_b = 0, a = 0, b = 0;
        for (Index j = starts[i]; j < end(i); ++j)
          if (j + lag < n) sum_a += h(j + lag, j), ++a;
        for (Index j = starts[i + 1]; j < end(i + 1); ++j)
          if (j + lag < n) sum_b += h(j + lag, j), ++b;
        if (a > 0 && b > 0) cost += a * b / (a + b) * std::pow(sum_a / a - sum_b / b, 2);
      }
      if (i == 0 || cost < least) best = i, least = cost;
    }
    starts.erase(starts.begin() + static_cast<Index>(best) + 1);
  }
  return starts;
}

inline std::vector<Index> conv_starts(const ConvBasisRule& rule, const Logits& h, Index n) {
  const Index k = std::min(rule.k, n), probe = std::min(rule.probe, n);
  std::vector<Index> starts{0};
  if (rule.segmentation == "fixed") {
    starts.clear();
    for (const Index s : rule.starts)
      if (s < n) starts.push_back(s);
  } else if (rule.segmentation == "first_k") {
    for (Index i = 1; i < k; ++i) starts.push_back(i);
  } else if (rule.segmentation == "uniform") {
    for (Index i = 1; i < k; ++i) starts.push_back(i * n / k);
  } else if (rule.segmentation == "scan_causal") {
    const double threshold = (rule.delta > 0 ? rule.delta : 1) - 2 * rule.eps;
    for (Index j = 1; j < n && static_cast<Index>(starts.size()) < k; ++j)
      if (std::fabs(h(j, j) - h(starts.back(), starts.back())) >= threshold) starts.push_back(j);
  } else if (rule.segmentation == "band_merge") {
    starts = merged_starts(h, n, k);
  } else {  // recover
    double delta = rule.delta;
    if (delta == 0) {  // twice the 0.9-quantile of neighbours' distances at up to 256 places
      const Index places = std::min<Index>(256, n - probe);
      std::vector<double> distances;
      for (Index s = 0; s < places; ++s) {
        const Index j = 1 + s * (n - probe) / places;
        distances.push_back(column_distance(h, j, j - 1, probe));
      }
      std::sort(distances.begin(), distances.end());
      if (places > 0)
        delta = 2 * distances[static_cast<std::size_t>(0.9 * static_cast<double>(places - 1))];
    }
    const double threshold = delta - 2 * static_cast<double>(probe) * rule.eps;
    while (static_cast<Index>(starts.size()) < k) {
      Index low = starts.back() + 1, high = n - probe;
      if (low > high) break;
      while (low < high) {
        const Index middle = (low + high) / 2;
        if (column_distance(h, middle, starts.back(), probe) >= threshold) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      if (column_distance(h, low, starts.back(), probe) < threshold) break;
      starts.push_back(low);
    }
  }
  return starts;
}

// For every (t, j): the run of column j and the column that stands for it, flattened [n, n]; and
// H~.
struct ConvLogits {
  std::vector<Index> starts;
  std::vector<Index> column;  // [n, n]
  MatrixD logits;             // [n, n]
};

inline ConvLogits conv_logits(const ConvBasisRule& rule, const Logits& h, Index n, bool causal) {
  ConvLogits out{conv_starts(rule, h, n), std::vector<Index>(static_cast<std::size_t>(n * n)),
                 MatrixD::Constant(n, n, -std::numeric_limits<double>::infinity())};
  for (std::size_t i = 0; i < out.starts.size(); ++i) {
    const Index begin = out.starts[i], end = i + 1 < out.starts.size() ? out.starts[i + 1] : n;
    for (Index j = begin; j < end; ++j)
      for (Index t = causal ? j : 0; t < n; ++t) {
        const Index column = t >= j ? begin : end - 1;
        out.column[static_cast<std::size_t>(t * n + j)] = column;
        out.logits(t, j) = h(t - j + column, column);
        if (!rule.mean) continue;
        double sum = 0, count = 0;
        for (Index other = begin; other < end; ++other)
          if (other + t - j >= 0 && other + t - j < n) sum += h(other + t - j, other), ++count;
        out.logits(t, j) = sum / count;
      }
  }
  return out;
}

inline MatrixD conv_weights(const MatrixD& logits) {
  MatrixD p = logits;
  for (Index t = 0; t < p.rows(); ++t) {
    p.row(t) = (p.row(t).array() - p.row(t).maxCoeff()).exp();
    p.row(t) /= p.row(t).sum();
  }
  return p;
}

inline ConvLogits conv_logits(const ConvBasisRule& rule, const Call& call, Index b, Index h) {
  return conv_logits(
      rule, [&](Index t, Index j) { return logit(call, b, h, t, j); }, call.problem.n,
      call.problem.causal);
}

inline TensorD conv_basis(const ConvBasisRule& rule, const Call& call) {
  const Problem& p = call.problem;
  TensorD weights(p.batch, p.heads, p.n, p.n);
  for_heads(p, [&](Index b, Index h) {
    weights.head(b, h) = conv_weights(conv_logits(rule, call, b, h).logits);
  });
  return weighted_values(call, weights);
}

// Starts held fixed. exact: dS(t, j) goes to the logit that H~(t, j) was taken from; plug_in: to
// q_t and k_j, as if P~ had come from their own logit.
inline Gradient conv_basis_gradient(const ConvBasisRule& rule, const Call& call,
                                    const TensorD& dout) {
  const Problem& p = call.problem;
  Gradient g{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  for_heads(p, [&](Index b, Index h) {
    const ConvLogits conv = conv_logits(rule, call, b, h);
    const MatrixD weights = conv_weights(conv.logits);
    for (Index t = 0; t < p.n; ++t) {
      std::vector<double> dp(static_cast<std::size_t>(p.n));
      double mean = 0;
      for (Index j = 0; j < p.visible(t); ++j) {
        double& dot = dp[static_cast<std::size_t>(j)];
        for (Index c = 0; c < p.d_v; ++c) dot += at(dout, b, h, t, c) * at(call.v, b, h, j, c);
        mean += weights(t, j) * dot;
      }
      for (Index j = 0; j < p.visible(t); ++j) {
        const double ds =
            p.logit_scale() * weights(t, j) * (dp[static_cast<std::size_t>(j)] - mean);
        const Index column = rule.plug_in ? j : conv.column[static_cast<std::size_t>(t * p.n + j)];
        for (Index c = 0; c < p.d_k; ++c) {
          at(g.dq, b, h, t - j + column, c) += ds * at(call.k, b, h, column, c);
          at(g.dk, b, h, column, c) += ds * at(call.q, b, h, t - j + column, c);
        }
        for (Index c = 0; c < p.d_v; ++c)
          at(g.dv, b, h, j, c) += weights(t, j) * at(dout, b, h, t, c);
      }
    }
  });
  return g;
}

}  // namespace subquad::reference
