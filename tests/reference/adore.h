// ADORE (arXiv 2407.02328) in double: the controller as written in engines/adore_controller.h, and
// release and rebuilding with sorted lists instead of slots.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/reference/cache_policy.h"

namespace subquad::reference {

// Parameters of an untrained controller by name, and the states and scores that follow from them.
struct AdoreNet {
  Index d_e, d_z, hidden, distances;
  bool gru, pairwise;
  std::map<std::string, std::vector<double>> p;

  AdoreNet(const Settings& s, Index input, Seed seed) : d_e(input) {
    d_z = std::get<Index>(s.at("d_z")), hidden = std::get<Index>(s.at("hidden"));
    distances = std::get<Index>(s.at("distances"));
    gru = std::get<std::string>(s.at("score")) == "gru";
    pairwise = std::get<std::string>(s.at("score_form")) == "pairwise";
    const Index gates = gru ? 3 * d_z : d_z;
    const std::map<std::string, Index> sizes{{"w", gates * d_e},
                                             {"b_w", gates},
                                             {"u", gates * d_z},
                                             {"b_u", gates},
                                             {"w1", hidden * d_z},
                                             {"w1_now", hidden * d_z},
                                             {"b1", hidden},
                                             {"w2", hidden},
                                             {"b2", 1},
                                             {"distance", (bucket(distances - 1) + 1) * d_z}};
    for (const auto& [name, size] : sizes) {
      Random random(derive(seed, "adore.controller"), name);
      const double spread = 1 / std::sqrt(static_cast<double>(d_z));
      for (Index e = 0; e < size; ++e)
        p[name].push_back(static_cast<double>(static_cast<float>(random.uniform(-spread, spread))));
    }
  }

  // 0 .. 15 each for itself, then four an octave; constant from distances - 1 on.
  Index bucket(Index distance) const {
    const Index d = std::min(distance, distances - 1);
    if (d < 16) return d;
    Index octave = 4;
    while (Index{1} << (octave + 1) <= d) ++octave;
    return 16 + 4 * (octave - 4) + (4 * d / (Index{1} << octave)) % 4;
  }
  std::vector<double> product(const char* name, Index rows, const std::vector<double>& x) const {
    std::vector<double> y(static_cast<std::size_t>(rows));
    const std::vector<double>& m = p.at(name);
    for (std::size_t r = 0; r < y.size(); ++r)
      for (std::size_t c = 0; c < x.size(); ++c) y[r] += m[r * x.size() + c] * x[c];
    return y;
  }
  std::vector<double> next(const std::vector<double>& x, const std::vector<double>& z) const {
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const auto size = static_cast<std::size_t>(d_z);
    std::vector<double> a = product("w", gru ? 3 * d_z : d_z, x), to(size);
    for (std::size_t i = 0; i < a.size(); ++i) a[i] += p.at("b_w")[i];
    if (!gru) {
      for (std::size_t i = 0; i < size; ++i) to[i] = std::tanh(a[i]);
      return to;
    }
    std::vector<double> b = product("u", 3 * d_z, z);
    for (std::size_t i = 0; i < b.size(); ++i) b[i] += p.at("b_u")[i];
    for (std::size_t i = 0; i < size; ++i) {
      const double reset = sigmoid(a[i] + b[i]), update = sigmoid(a[size + i] + b[size + i]);
      const double candidate = std::tanh(a[2 * size + i] + reset * b[2 * size + i]);
      to[i] = (1 - update) * candidate + update * z[i];
    }
    return to;
  }
  double score(Index distance, const std::vector<double>& z, const std::vector<double>& now) const {
    std::vector<double> sum = z;
    for (std::size_t c = 0; c < z.size(); ++c)
      sum[c] += p.at("distance")[static_cast<std::size_t>(bucket(distance) * d_z) + c];
    const std::vector<double> a = product("w1", hidden, sum), b = product("w1_now", hidden, now);
    double out = p.at("b2")[0];
    for (std::size_t j = 0; j < a.size(); ++j)
      out += p.at("w2")[j] * std::max(0.0, a[j] + (pairwise ? b[j] : 0.0) + p.at("b1")[j]);
    return out;
  }
};

// Head mean of the dense weights of query t of item b over tokens 0 .. t.
inline std::vector<double> mean_dense_weights(const Call& call, Index b, Index t) {
  std::vector<Index> all;
  for (Index j = 0; j <= t; ++j) all.push_back(j);
  std::vector<double> mean(all.size());
  for (Index h = 0; h < call.problem.heads; ++h) {
    const std::vector<double> w = weights_over(call, b, h, t, all);
    for (std::size_t j = 0; j < w.size(); ++j)
      mean[j] += w[j] / static_cast<double>(call.problem.heads);
  }
  return mean;
}

// score: gru, mlp, recency, h2o, random, or truth (adore_oracle).
inline TensorD adore(const Settings& s, const Call& call, const std::string& score) {
  const Problem& p = call.problem;
  const Index m = std::get<Index>(s.at("m")), r = std::get<Index>(s.at("r"));
  const bool keep = std::get<bool>(s.at("keep_rebuilt")),
             gate = std::get<bool>(s.at("rebuild_gate"));
  const auto guarded = [&](const char* key) {
    return s.contains(key) ? std::get<Index>(s.at(key)) : 0;
  };
  const Index sinks = guarded("protect_sinks"), recent = guarded("protect_recent");
  const bool learned = score == "gru" || score == "mlp";
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for (Index b = 0; b < p.batch; ++b) {
    std::vector<std::vector<double>> z;
    std::vector<double> collected;
    std::set<Index> cache;
    for (Index n = 0; n < p.n; ++n) {
      // Importance of every past token.
      std::vector<double> importance(static_cast<std::size_t>(n));
      if (learned) {
        const AdoreNet net(s, p.heads * p.d_k, 0);
        std::vector<double> x;
        for (Index h = 0; h < p.heads; ++h)
          for (Index c = 0; c < p.d_k; ++c) x.push_back(at(call.k, b, h, n, c));
        z.push_back(
            net.next(x, n > 0 ? z.back() : std::vector<double>(static_cast<std::size_t>(net.d_z))));
        for (Index i = 0; i < n; ++i)
          importance[static_cast<std::size_t>(i)] =
              net.score(n - i, z[static_cast<std::size_t>(i)], z.back());
      }
      const std::vector<double> truth =
          score == "truth" ? mean_dense_weights(call, b, n) : std::vector<double>{};
      const Seed seed = derive(0, "adore.random", {static_cast<std::uint64_t>(b * p.heads)});
      for (Index i = 0; i < n; ++i) {
        double& value = importance[static_cast<std::size_t>(i)];
        if (score == "recency") value = static_cast<double>(i);
        if (score == "h2o") value = collected[static_cast<std::size_t>(i)];
        if (score == "truth") value = truth[static_cast<std::size_t>(i)];
        if (score == "random")
          value = philox4x32({static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(i), 0, 0},
                             {static_cast<std::uint32_t>(seed),
                              static_cast<std::uint32_t>(seed >> 32)})[0] >>
                  8;
      }
      const auto better = [&](Index x, Index y) {
        const double a = importance[static_cast<std::size_t>(x)],
                     c = importance[static_cast<std::size_t>(y)];
        return a > c || (a == c && x > y);
      };
      // Fetch the r best of what was released.
      std::vector<Index> fetched;
      for (Index i = 0; i < n; ++i)
        if (!cache.contains(i)) fetched.push_back(i);
      std::sort(fetched.begin(), fetched.end(), better);
      fetched.resize(std::min(fetched.size(), static_cast<std::size_t>(r)));
      if (gate && !cache.empty()) {
        const Index worst = *std::max_element(cache.begin(), cache.end(), better);
        std::erase_if(fetched, [&](Index i) {
          return !(importance[static_cast<std::size_t>(i)] >
                   importance[static_cast<std::size_t>(worst)]);
        });
      }
      std::vector<Index> seen(cache.begin(), cache.end());
      seen.insert(seen.end(), fetched.begin(), fetched.end());
      seen.push_back(n);
      collected.push_back(0);
      for (Index h = 0; h < p.heads; ++h) {
        const std::vector<double> w = weights_over(call, b, h, n, seen);
        add_values(call, b, h, n, seen, w, &out);
        for (std::size_t e = 0; e < seen.size(); ++e)
          collected[static_cast<std::size_t>(seen[e])] += w[e] / static_cast<double>(p.heads);
      }
      // Keep the current token and the m - 1 best of the others.
      std::vector<Index> pool(cache.begin(), cache.end());
      if (keep) pool.insert(pool.end(), fetched.begin(), fetched.end());
      std::sort(pool.begin(), pool.end(), [&](Index x, Index y) {
        const bool guard_x = x < sinks || n - x < recent, guard_y = y < sinks || n - y < recent;
        if (guard_x != guard_y) return guard_x;
        return guard_x ? x > y : better(x, y);
      });
      pool.resize(std::min(pool.size(), static_cast<std::size_t>(m - 1)));
      cache = {pool.begin(), pool.end()};
      cache.insert(n);
    }
  }
  return out;
}

}  // namespace subquad::reference
