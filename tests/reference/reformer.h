// Attention inside hash buckets (Kitaev et al. 2020, arXiv 2001.04451; the rules are those stated
// at the head of methods/sparse_content/reformer.cpp), one query at a time. The planes come from
// the same stream as the method's.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "harness/core/random.h"
#include "tests/reference/call.h"

namespace subquad::reference {

struct LshOptions {
  Index rounds = 4, bits = 32, chunk = 32;
  bool lse = false, attend_self = false;
};

// planes [rounds * bits, d].
inline MatrixD lsh_planes(const LshOptions& o, Index d, Seed seed) {
  std::vector<float> numbers(static_cast<std::size_t>(o.rounds * o.bits * d));
  fill_normal(derive(seed, "reformer.planes"), numbers.data(), o.rounds * o.bits * d);
  return Eigen::Map<const Matrix>(numbers.data(), o.rounds * o.bits, d).cast<double>();
}

// key_j = q_j / |q_j|
inline MatrixD lsh_keys(const Call& call, Index b, Index h) {
  MatrixD keys = call.q.head(b, h);
  for (Index j = 0; j < keys.rows(); ++j)
    if (keys.row(j).norm() > 0) keys.row(j) /= keys.row(j).norm();
  return keys;
}

// The place of every token's chunk in one round: tokens sorted by (bucket, position), padding last.
inline std::vector<Index> lsh_chunks(const Call& call, const LshOptions& o, const MatrixD& planes,
                                     Index b, Index h, Index round) {
  const MatrixD keys = lsh_keys(call, b, h);
  const Index n = call.problem.n;
  std::vector<std::pair<Index, Index>> sorted;  // (bucket, token)
  for (Index j = 0; j < n; ++j) {
    Index bucket = 0;
    double farthest = -1;
    for (Index p = 0; p < o.bits; ++p) {
      const double side = planes.row(round * o.bits + p).dot(keys.row(j));
      if (std::fabs(side) > farthest) {
        farthest = std::fabs(side);
        bucket = side >= 0 ? p : o.bits + p;
      }
    }
    sorted.emplace_back(call.real(b, j) ? bucket : 2 * o.bits, j);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<Index> chunk(static_cast<std::size_t>(n));
  for (std::size_t at = 0; at < sorted.size(); ++at)
    chunk[static_cast<std::size_t>(sorted[at].second)] =
        static_cast<Index>(at) / std::min(o.chunk, n);
  return chunk;
}

// What happens to query i of head (b, h): keys that it sees (one for each round in which it does)
// with their weights, and where they belong to one softmax (`lse`) or to that of their round.
struct LshEntry {
  Index key = 0, softmax = 0;
  double logit = 0, weight = 0;  // weight: within its softmax
};
struct LshRow {
  std::vector<LshEntry> entries;
  double share = 1;  // of one softmax in the output
  double own = 0;    // of the token's own value, because it was alone
};

inline std::vector<LshRow> lsh_rows(const Call& call, const LshOptions& o, Index b, Index h) {
  const Problem& p = call.problem;
  const MatrixD planes = lsh_planes(o, p.d_k, 0), keys = lsh_keys(call, b, h);
  std::vector<LshRow> rows(static_cast<std::size_t>(p.n));
  std::vector<std::vector<Index>> chunks;
  for (Index round = 0; round < o.rounds; ++round)
    chunks.push_back(lsh_chunks(call, o, planes, b, h, round));
  for (Index i = 0; i < p.n; ++i) {
    LshRow& row = rows[static_cast<std::size_t>(i)];
    Index softmaxes = o.lse ? 1 : o.rounds, empty = 0;
    for (Index round = 0; round < o.rounds; ++round) {
      const auto& chunk = chunks[static_cast<std::size_t>(round)];
      for (Index j = 0; j < p.n; ++j) {
        const Index back = chunk[static_cast<std::size_t>(i)] - chunk[static_cast<std::size_t>(j)];
        if (!allowed(call, b, i, j) || back < 0 || back > 1 || (j == i && !o.attend_self)) continue;
        double dot = 0;
        for (Index c = 0; c < p.d_k; ++c) dot += at(call.q, b, h, i, c) * keys(j, c);
        row.entries.push_back({j, o.lse ? 0 : round, p.logit_scale() * dot, 0});
      }
    }
    for (Index s = 0; s < softmaxes; ++s) {
      double largest = -std::numeric_limits<double>::infinity(), sum = 0;
      for (const LshEntry& e : row.entries)
        if (e.softmax == s) largest = std::fmax(largest, e.logit);
      for (LshEntry& e : row.entries)
        if (e.softmax == s) sum += e.weight = std::exp(e.logit - largest);
      for (LshEntry& e : row.entries)
        if (e.softmax == s) e.weight /= sum;
      if (!(sum > 0)) ++empty;
    }
    row.share = 1.0 / static_cast<double>(softmaxes);
    if (call.real(b, i)) row.own = static_cast<double>(empty) * row.share;
  }
  return rows;
}

inline TensorD lsh_attention(const Call& call, const LshOptions& o) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    const auto rows = lsh_rows(call, o, b, h);
    for (Index i = 0; i < p.n; ++i)
      for (Index c = 0; c < p.d_v; ++c) {
        const LshRow& row = rows[static_cast<std::size_t>(i)];
        at(out, b, h, i, c) = row.own * at(call.v, b, h, i, c);
        for (const LshEntry& e : row.entries)
          at(out, b, h, i, c) += row.share * e.weight * at(call.v, b, h, e.key, c);
      }
  });
  return out;
}

// The softmax gradient of every softmax that a query takes part in; dk is zero. A key's gradient g
// reaches q_j through k_j = q_j / |q_j|: (g - (g . k_j) k_j) / |q_j|.
inline Gradient lsh_attention_gradient(const Call& call, const LshOptions& o, const TensorD& dout) {
  const Problem& p = call.problem;
  Gradient g{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  for_heads(p, [&](Index b, Index h) {
    const auto rows = lsh_rows(call, o, b, h);
    const MatrixD keys = lsh_keys(call, b, h);
    MatrixD dkeys = MatrixD::Zero(p.n, p.d_k);
    for (Index i = 0; i < p.n; ++i) {
      const LshRow& row = rows[static_cast<std::size_t>(i)];
      const auto along = [&](Index j) {  // dout_i . v_j
        double dot = 0;
        for (Index c = 0; c < p.d_v; ++c) dot += at(dout, b, h, i, c) * at(call.v, b, h, j, c);
        return row.share * dot;
      };
      for (Index c = 0; c < p.d_v; ++c) at(g.dv, b, h, i, c) += row.own * at(dout, b, h, i, c);
      std::vector<double> mean(static_cast<std::size_t>(o.lse ? 1 : o.rounds), 0.0);
      for (const LshEntry& e : row.entries)
        mean[static_cast<std::size_t>(e.softmax)] += e.weight * along(e.key);
      for (const LshEntry& e : row.entries) {
        const double ds =
            p.logit_scale() * e.weight * (along(e.key) - mean[static_cast<std::size_t>(e.softmax)]);
        for (Index c = 0; c < p.d_k; ++c) {
          at(g.dq, b, h, i, c) += ds * keys(e.key, c);
          dkeys(e.key, c) += ds * at(call.q, b, h, i, c);
        }
        for (Index c = 0; c < p.d_v; ++c)
          at(g.dv, b, h, e.key, c) += row.share * e.weight * at(dout, b, h, i, c);
      }
    }
    for (Index j = 0; j < p.n; ++j) {
      double length = 0;
      for (Index c = 0; c < p.d_k; ++c) length += std::pow(at(call.q, b, h, j, c), 2);
      length = std::sqrt(length);
      const double along = dkeys.row(j).dot(keys.row(j));
      for (Index c = 0; c < p.d_k && length > 0; ++c)
        at(g.dq, b, h, j, c) += (dkeys(j, c) - along * keys(j, c)) / length;
    }
  });
  return g;
}

}  // namespace subquad::reference
