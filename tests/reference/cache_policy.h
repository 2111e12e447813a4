// KV-cache policies in double: one head after the other, token after token. A cache is a list of
// positions; the token that comes takes the place of the one that was released. Sources: the head
// comments in methods/cache_policy/.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "harness/core/params.h"
#include "harness/core/random.h"
#include "tests/reference/call.h"

namespace subquad::reference {

// Softmax of query t over the tokens at `seen`, in their order.
inline std::vector<double> weights_over(const Call& call, Index b, Index h, Index t,
                                        const std::vector<Index>& seen) {
  std::vector<double> w;
  double max = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const Index j : seen) {
    w.push_back(logit(call, b, h, t, j));
    max = std::max(max, w.back());
  }
  for (double& x : w) sum += x = std::exp(x - max);
  for (double& x : w) x /= sum;
  return w;
}

inline void add_values(const Call& call, Index b, Index h, Index t, const std::vector<Index>& seen,
                       const std::vector<double>& w, TensorD* out) {
  for (std::size_t s = 0; s < seen.size(); ++s)
    for (Index c = 0; c < call.problem.d_v; ++c)
      at(*out, b, h, t, c) += w[s] * at(call.v, b, h, seen[s], c);
}

struct CacheRule {
  Index m = 128, recent = 0;
  // What query t adds to the score of the tokens that it sees (empty: policies without scores).
  std::function<std::vector<double>(Index bh, Index t, const std::vector<Index>& seen,
                                    const std::vector<double>& weights)>
      gains = {};
  // The place in `seen` of the token that goes.
  std::function<std::size_t(Index bh, Index t, const std::vector<Index>& seen,
                            const std::vector<double>& weights,
                            const std::map<Index, double>& score)>
      goes;
};

inline TensorD cache_attention(const Call& call, const CacheRule& rule) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    const Index bh = b * p.heads + h;
    std::vector<Index> seen;
    std::map<Index, double> score;  // by position
    std::size_t hole = 0;
    for (Index t = 0; t < p.n; ++t) {
      if (static_cast<Index>(seen.size()) <= rule.m) {
        seen.push_back(t);
      } else {
        seen[hole] = t;
      }
      const std::vector<double> w = weights_over(call, b, h, t, seen);
      add_values(call, b, h, t, seen, w, &out);
      if (rule.gains) {
        const std::vector<double> gain = rule.gains(bh, t, seen, w);
        for (std::size_t s = 0; s < seen.size(); ++s) score[seen[s]] += gain[s];
      }
      if (static_cast<Index>(seen.size()) > rule.m) {
        hole = rule.goes(bh, t, seen, w, score);
        score.erase(seen[hole]);
      }
    }
  });
  return out;
}

// The place of the lowest value(position, place) among tokens that are neither the current one nor
// among the last `recent`; of equals the oldest.
template <class Value>
std::size_t lowest_of(const std::vector<Index>& seen, Index t, Index recent, Value value) {
  std::size_t best = seen.size();
  for (std::size_t s = 0; s < seen.size(); ++s) {
    if (seen[s] == t || seen[s] > t - recent) continue;
    const bool less = best == seen.size() || value(s) < value(best) ||
                      (value(s) == value(best) && seen[s] < seen[best]);
    if (less) best = s;
  }
  return best;
}

inline Index recent_of(const Settings& s, Index m, Index otherwise) {
  const Index recent = std::get<Index>(s.at("recent"));
  return std::min(recent < 0 ? otherwise : recent, m);
}

// The rule of a policy by its name.
inline CacheRule cache_rule(const std::string& name, const Settings& s, const Problem& p) {
  using Seen = std::vector<Index>;
  using Weights = std::vector<double>;
  using Scores = std::map<Index, double>;
  CacheRule rule;
  const Index m = rule.m = std::get<Index>(s.at("m"));
  if (name == "window" || name == "streaming_llm") {
    const Index sinks = name == "window" ? 0 : std::min(std::get<Index>(s.at("sinks")), m - 1);
    rule.goes = [sinks](Index, Index t, const Seen& seen, const Weights&, const Scores&) {
      return lowest_of(seen, t, 0, [&](std::size_t i) {
        return seen[i] < sinks ? std::numeric_limits<Index>::max() : seen[i];
      });
    };
  } else if (name == "strided") {
    const Index stride = std::get<Index>(s.at("stride")), recent = recent_of(s, m, m / 2);
    rule.goes = [=](Index, Index t, const Seen& seen, const Weights&, const Scores&) {
      return lowest_of(seen, t, recent, [&](std::size_t i) { return seen[i] % stride == 0; });
    };
  } else if (name == "random_cache") {
    auto random = std::make_shared<std::map<Index, Random>>();
    rule.goes = [=](Index bh, Index t, const Seen& seen, const Weights&, const Scores&) {
      auto& own =
          random
              ->try_emplace(bh, Seed{0}, "random_cache",
                            std::initializer_list<std::uint64_t>{static_cast<std::uint64_t>(bh)})
              .first->second;
      const auto drawn = static_cast<std::size_t>(own.below(static_cast<std::uint64_t>(m)));
      const auto now =
          static_cast<std::size_t>(std::find(seen.begin(), seen.end(), t) - seen.begin());
      return drawn < now ? drawn : drawn + 1;
    };
  } else if (name == "release_oracle") {
    rule.goes = [](Index, Index t, const Seen& seen, const Weights& w, const Scores&) {
      return lowest_of(seen, t, 0, [&](std::size_t i) { return w[i]; });
    };
  } else if (name == "h2o") {
    const Index recent = recent_of(s, m, m / 2);
    const bool by_age = std::get<bool>(s.at("normalise_by_age"));
    rule.gains = [](Index, Index, const Seen&, const Weights& w) { return w; };
    rule.goes = [=](Index, Index t, const Seen& seen, const Weights&, const Scores& score) {
      return lowest_of(seen, t, recent, [&](std::size_t i) {
        return score.at(seen[i]) / (by_age ? static_cast<double>(t + 1 - seen[i]) : 1.0);
      });
    };
  } else {  // keyformer
    const Index recent = recent_of(s, m, 3 * m / 10);
    const double from = std::get<double>(s.at("tau_init")), to = std::get<double>(s.at("tau_end"));
    const bool noise = std::get<bool>(s.at("noise")), mask = std::get<bool>(s.at("reference_mask"));
    const Index n = p.n;
    rule.gains = [=](Index bh, Index t, const Seen& seen, const Weights& w) {
      const Seed seed = derive(0, "keyformer", {static_cast<std::uint64_t>(bh)});
      const double tau = from + static_cast<double>(t) * (to - from) / static_cast<double>(n);
      Weights f;
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      for (std::size_t i = 0; i < seen.size(); ++i) {
        const auto words =
            philox4x32({static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(seen[i]), 0, 0},
                       {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
        const double u = (static_cast<double>(words[0]) + 0.5) / 4294967296.0;
        const double gumbel = noise ? -std::log(-std::log(u)) : 0;
        f.push_back((std::log(w[i]) + gumbel) / tau);
        max = std::max(max, f.back());
      }
      for (double& x : f) sum += x = std::exp(x - max);
      for (double& x : f) x /= sum;
      return f;
    };
    rule.goes = [=](Index, Index t, const Seen& seen, const Weights&, const Scores& score) {
      for (std::size_t i = 0; mask && i < seen.size(); ++i)
        if (seen[i] == t - recent && seen[i] != t) return i;
      return lowest_of(seen, t, recent, [&](std::size_t i) { return score.at(seen[i]); });
    };
  }
  return rule;
}

// The current token and the m - 1 past ones of the largest logits; of equals the later ones.
inline TensorD top_k_stream(const Call& call, Index m) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    for (Index t = 0; t < p.n; ++t) {
      std::vector<Index> seen;
      for (Index j = 0; j < t; ++j) seen.push_back(j);
      std::sort(seen.begin(), seen.end(), [&](Index x, Index y) {
        const double lx = logit(call, b, h, t, x), ly = logit(call, b, h, t, y);
        return lx > ly || (lx == ly && x > y);
      });
      seen.resize(static_cast<std::size_t>(std::min(t, m - 1)));
      seen.push_back(t);
      add_values(call, b, h, t, seen, weights_over(call, b, h, t, seen), &out);
    }
  });
  return out;
}

inline double key_distance(const Call& call, Index b, Index h, Index i, Index j) {
  double sum = 0;
  for (Index c = 0; c < call.problem.d_k; ++c) {
    const double x = at(call.k, b, h, i, c) - at(call.k, b, h, j, c);
    sum += x * x;
  }
  return sum;
}

// The last `recent` tokens and centres: when they are too many, of the two closest the later goes.
inline TensorD centre_stream(const Call& call, Index m, Index recent) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for_heads(p, [&](Index b, Index h) {
    std::vector<Index> centres;
    for (Index t = 0; t < p.n; ++t) {
      if (t - recent >= 0) centres.push_back(t - recent);
      std::vector<Index> seen = centres;
      for (Index j = std::max<Index>(0, t - recent + 1); j <= t; ++j) seen.push_back(j);
      add_values(call, b, h, t, seen, weights_over(call, b, h, t, seen), &out);
      if (static_cast<Index>(seen.size()) <= m) continue;
      std::size_t gone = 0;
      double closest = std::numeric_limits<double>::infinity();
      for (std::size_t x = 0; x < centres.size(); ++x)
        for (std::size_t y = 0; y < x; ++y)
          if (const double d = key_distance(call, b, h, centres[x], centres[y]); d < closest)
            closest = d, gone = x;  // centres ascend: x is the later one
      centres.erase(centres.begin() + static_cast<std::ptrdiff_t>(gone));
    }
  });
  return out;
}

struct SubGenRule {
  Index samples, per_cluster, max_clusters;
  double delta;
};

// Tokens of clusters and slots by position.
inline TensorD subgen(const Call& call, const SubGenRule& rule) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  struct Cluster {
    Index representative, size;
    std::vector<Index> sample;
  };
  for_heads(p, [&](Index b, Index h) {
    Random random(0, "subgen", {static_cast<std::uint64_t>(b * p.heads + h)});
    std::vector<Cluster> clusters;
    std::vector<Index> slots;
    double mu = 0, delta = rule.delta < 0 ? 0 : rule.delta;
    const auto squared = [&](Index j) {
      double sum = 0;
      for (Index c = 0; c < p.d_v; ++c) sum += at(call.v, b, h, j, c) * at(call.v, b, h, j, c);
      return sum;
    };
    for (Index t = 0; t < p.n; ++t) {
      Cluster* best = nullptr;
      for (Cluster& c : clusters)
        if (best == nullptr || key_distance(call, b, h, t, c.representative) <
                                   key_distance(call, b, h, t, best->representative))
          best = &c;
      const bool full = static_cast<Index>(clusters.size()) == rule.max_clusters;
      if (best != nullptr &&
          (full || key_distance(call, b, h, t, best->representative) <= delta * delta)) {
        ++best->size;
        for (Index& x : best->sample)
          if (random.uniform() * static_cast<double>(best->size) < 1) x = t;
      } else {
        clusters.push_back(
            {t, 1, std::vector<Index>(static_cast<std::size_t>(rule.per_cluster), t)});
      }
      const double norm2 = squared(t);
      if (slots.empty()) {
        slots.assign(static_cast<std::size_t>(rule.samples), t);
      } else {
        for (Index& x : slots)
          if (random.uniform() * (mu + norm2) < norm2) x = t;
      }
      mu += norm2;
      if (rule.delta < 0 && t == 31) {
        std::vector<double> apart;
        for (const Cluster& x : clusters)
          for (const Cluster& y : clusters)
            if (y.representative < x.representative)
              apart.push_back(
                  std::sqrt(key_distance(call, b, h, x.representative, y.representative)));
        std::sort(apart.begin(), apart.end());
        if (!apart.empty()) delta = 0.5 * apart[apart.size() / 2];
      }
      double tau = 0;
      for (const Cluster& c : clusters)
        for (const Index x : c.sample)
          tau += static_cast<double>(c.size) / static_cast<double>(rule.per_cluster) *
                 std::exp(logit(call, b, h, t, x));
      for (const Index x : slots)
        for (Index c = 0; c < p.d_v; ++c)
          at(out, b, h, t, c) += mu / (static_cast<double>(rule.samples) * squared(x)) *
                                 std::exp(logit(call, b, h, t, x)) * at(call.v, b, h, x, c) / tau;
    }
  });
  return out;
}

}  // namespace subquad::reference
