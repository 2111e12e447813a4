// SEA (Lee et al. 2024, arXiv 2310.01777): a plain transcription of its equations in double, query
// by query, with the authors' code for what the paper leaves open. Learned tensors are drawn from
// the same streams as the method's.
#pragma once

#include "tests/reference/sea_estimate.h"

namespace subquad::reference {

// The number that the random mask draws for a cell.
inline double sea_hashed(Seed seed, Index place) {
  std::uint64_t x = seed + 0x9e3779b97f4a7c15ull * static_cast<std::uint64_t>(place + 1);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  x ^= x >> 31;
  return (static_cast<double>(x >> 40) + 0.5) * 0x1p-24;
}

// Which cells are kept: [heads, n, cells], 1 or 0. p are the probabilities of cells.
inline SeaArray sea_kept(const SeaRule& r, const SeaArray& p) {
  const Index heads = p.shape[0], n = p.shape[1], cells = r.cells;
  SeaArray kept(p.shape);
  const auto budget = [&](Index copies, double keys, Index length, Index all) {
    // round half to even of copies * keys * cells / length
    const double exact = static_cast<double>(copies) * keys * static_cast<double>(cells) /
                         static_cast<double>(length);
    return std::clamp<Index>(static_cast<Index>(std::nearbyint(exact)), 1, all);
  };
  const auto choose = [&](const std::vector<std::size_t>& places, Index count) {
    std::vector<std::size_t> order = places;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return p.x[a] > p.x[b]; });
    for (Index i = 0; i < count; ++i) kept.x[order[static_cast<std::size_t>(i)]] = 1;
  };
  const auto place = [&](Index h, Index t, Index c) {
    return static_cast<std::size_t>((h * n + t) * cells + c);
  };
  const auto keys = static_cast<double>(r.top_k);
  if (r.group == "causal_per_batch" || r.group == "per_query") {
    for (Index t = 0; t < n; ++t) {
      std::vector<std::size_t> row;
      for (Index h = 0; h < heads; ++h) {
        for (Index c = 0; c < cells; ++c) row.push_back(place(h, t, c));
        if (r.group == "per_query") {
          choose(row, budget(1, keys, r.length(t, n), cells));
          row.clear();
        }
      }
      if (r.group == "causal_per_batch")
        choose(row, budget(heads, keys, r.length(t, n), heads * cells));
    }
    return kept;
  }
  std::vector<std::size_t> all;
  for (Index h = 0; h < heads; ++h) {
    for (Index t = 0; t < n; ++t)
      for (Index c = 0; c < cells; ++c) all.push_back(place(h, t, c));
    if (r.group == "per_head") {
      choose(all, budget(n, keys, r.length(0, n), n * cells));
      all.clear();
    }
  }
  if (r.group == "per_batch")
    choose(all, budget(heads * n, keys, r.length(0, n), heads * n * cells));
  return kept;
}

// Weights of the values of batch item b -> [heads, n, n]; the output is their product with v.
inline SeaArray sea_matrix(const SeaRule& r, const Call& call, Index b, Seed seed,
                           const SeaTensors& tensors) {
  const Problem& problem = call.problem;
  const Index n = problem.n, heads = problem.heads, cells = r.cells;
  std::vector<std::vector<Index>> cell_of(static_cast<std::size_t>(n));  // [query][key]
  for (Index t = 0; t < n; ++t)
    for (Index j = 0; j < r.visible(t, n); ++j)
      cell_of[static_cast<std::size_t>(t)].push_back(r.cell(j, t, n));
  const auto cell = [&](Index j, Index t) {
    return cell_of[static_cast<std::size_t>(t)][static_cast<std::size_t>(j)];
  };
  SeaEstimate estimate;
  SeaArray kernel;
  std::vector<double> position_mean;
  if (r.mask == "learned" || r.mask == "identity")
    kernel = sea_kernel(r, call, tensors, b, seed, &position_mean);
  if (r.mask == "learned") estimate = sea_estimate(r, call, tensors, kernel, b);
  SeaArray p({heads, n, cells});
  for (Index h = 0; h < heads; ++h)
    for (Index t = 0; t < n; ++t) {
      std::vector<Index> keys(static_cast<std::size_t>(cells));  // of every cell
      for (Index j = 0; j < r.visible(t, n); ++j) ++keys[static_cast<std::size_t>(cell(j, t))];
      std::vector<double> exact(static_cast<std::size_t>(n));
      if (r.mask == "oracle") {
        double sum = 0, most = -std::numeric_limits<double>::infinity();
        for (Index j = 0; j < r.visible(t, n); ++j) most = std::max(most, logit(call, b, h, t, j));
        for (Index j = 0; j < r.visible(t, n); ++j)
          sum += exact[static_cast<std::size_t>(j)] = std::exp(logit(call, b, h, t, j) - most);
        for (double& e : exact) e /= sum;
      }
      double sum = 0, most = -std::numeric_limits<double>::infinity();
      for (Index c = 0; c < cells; ++c) {
        const bool empty = keys[static_cast<std::size_t>(c)] == 0;
        double& score = p(h, t, c);
        if (r.mask == "learned") {
          score = estimate.scores(h, t, c);
          if (empty && r.mask_empty) score = -std::numeric_limits<double>::infinity();
          most = std::max(most, score);
        } else if (empty) {
          score = 0;
        } else if (r.mask == "oracle") {
          for (Index j = 0; j < r.visible(t, n); ++j)
            if (cell(j, t) == c) score += exact[static_cast<std::size_t>(j)];
        } else if (r.mask == "random") {
          score = sea_hashed(seed, ((b * heads + h) * n + t) * cells + c);
        } else if (r.mask == "local") {
          score = 1 / (1 + std::fabs(static_cast<double>(c - cell(t, t))));
        } else {
          score = kernel(h, t, c) / position_mean[static_cast<std::size_t>(c)];
        }
      }
      for (Index c = 0; c < cells && r.mask == "learned"; ++c)
        sum += p(h, t, c) = std::exp(p(h, t, c) - most);
      for (Index c = 0; c < cells && r.mask == "learned"; ++c) p(h, t, c) /= sum;
    }
  const SeaArray kept = sea_kept(r, p);
  SeaArray weights({heads, n, n});
  for (Index h = 0; h < heads; ++h) {
    std::vector<double> pool(static_cast<std::size_t>(n));  // bidirectional: weights of all values
    double pool_sum = 0;
    for (Index j = 0; j < n && r.gates && !r.causal; ++j) {
      for (Index t = 0; t < n; ++t)
        pool[static_cast<std::size_t>(j)] += p(h, t, cell(j, t)) / static_cast<double>(n);
      pool_sum += pool[static_cast<std::size_t>(j)];
    }
    for (Index t = 0; t < n; ++t) {
      const double s_prob = r.gates ? estimate.gates(h, t, 0) : 1,
                   s_mix = r.gates ? estimate.gates(h, t, 1) : 1;
      std::vector<Index> chosen;
      for (Index c = 0; c < cells; ++c) {
        if (kept(h, t, c) == 0) continue;
        std::vector<Index> own;
        for (Index j = 0; j < r.visible(t, n); ++j)
          if (cell(j, t) == c) own.push_back(j);
        const auto width = static_cast<Index>(own.size());
        if (width <= r.top_k) {
          chosen.insert(chosen.end(), own.begin(), own.end());
        } else {
          for (Index i = 0; i < r.top_k; ++i) chosen.push_back(own.back() - i * width / r.top_k);
        }
      }
      double most = -std::numeric_limits<double>::infinity(), sum = 0;
      for (const Index j : chosen) most = std::max(most, logit(call, b, h, t, j));
      for (const Index j : chosen) sum += std::exp(logit(call, b, h, t, j) - most);
      for (const Index j : chosen)
        weights(h, t, j) += s_mix * s_prob * std::exp(logit(call, b, h, t, j) - most) / sum;
      if (!r.gates) continue;
      for (Index j = 0; j < r.visible(t, n); ++j)
        weights(h, t, j) +=
            (1 - s_mix) * (r.causal      ? 1 / static_cast<double>(t + 1)
                           : r.normalize ? pool[static_cast<std::size_t>(j)] / pool_sum
                                         : pool[static_cast<std::size_t>(j)]);
    }
  }
  return weights;
}

inline TensorD sea_attention(const Settings& s, const Call& call, const SeaTensors& tensors,
                             Seed seed) {
  const Problem& p = call.problem;
  const SeaRule r = SeaRule::from(s, call);
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for (Index b = 0; b < p.batch; ++b) {
    const SeaArray weights = sea_matrix(r, call, b, seed, tensors);
    for (Index h = 0; h < p.heads; ++h)
      for (Index t = 0; t < p.n; ++t)
        for (Index j = 0; j < p.n; ++j)
          for (Index c = 0; c < p.d_v; ++c)
            at(out, b, h, t, c) += weights(h, t, j) * at(call.v, b, h, j, c);
  }
  return out;
}
// With the initial tensors of seed 0.
inline TensorD sea_attention(const Settings& s, const Call& call) {
  return sea_attention(s, call, sea_tensors(SeaRule::from(s, call), call.problem, 0), 0);
}

}  // namespace subquad::reference
