// The stream with returning topics: what its parameters say, measured in double.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <set>
#include <vector>

#include "harness/core/registry.h"

using namespace subquad;

namespace {

Problem stream(Index n, Index heads = 1) {
  Problem p;
  p.batch = 1, p.heads = heads, p.n = p.n_kv = n, p.d_k = 32, p.d_v = 256, p.causal = true;
  return p;
}

QKV filled(const Settings& settings, const Problem& p, Seed seed = 1, Index set = 0) {
  QKV data(p);
  make_task("kv_trace", settings)->fill(p, seed, set, &data);
  return data;
}

// Causal attention weights of query t of a head.
std::vector<double> weights(const QKV& data, const Problem& p, Index h, Index t) {
  std::vector<double> w;
  double max = -1e300, sum = 0;
  for (Index j = 0; j <= t; ++j) {
    double dot = 0;
    for (Index c = 0; c < p.d_k; ++c)
      dot += static_cast<double>(data.q.head(0, h)(t, c)) *
             static_cast<double>(data.k.head(0, h)(j, c));
    w.push_back(dot * p.logit_scale());
    max = std::max(max, w.back());
  }
  for (double& x : w) sum += x = std::exp(x - max);
  for (double& x : w) x /= sum;
  return w;
}

// Topic of every token by its value: those of a topic have a mean in common and half of its spread.
std::vector<int> topics_of(const QKV& data) {
  const auto v = data.v.head(0, 0);  // [n, 256]: distances^2 near 128 within a topic, 640 between
  std::vector<Index> first;
  std::vector<int> topic;
  for (Index t = 0; t < v.rows(); ++t) {
    int found = -1;
    for (std::size_t c = 0; c < first.size() && found < 0; ++c)
      if ((v.row(t) - v.row(first[c])).squaredNorm() < 300) found = static_cast<int>(c);
    if (found < 0) found = static_cast<int>(first.size()), first.push_back(t);
    topic.push_back(found);
  }
  return topic;
}

const Settings kBare{{"salient", 0.0}, {"hh_rate", 0.0}, {"sinks", Index{0}}, {"d_e", Index{64}}};

Settings bare(const Settings& more) {
  Settings s = kBare;
  for (const auto& [key, value] : more) s[key] = value;
  return s;
}

}  // namespace

TEST_CASE("queries of a stream attend to their topic, to sinks and to heavy hitters",
          "[tasks][kv_trace]") {
  const Problem p = stream(600, 2);
  const QKV data = filled({}, p);
  const QKV without = filled({{"sinks", Index{0}}, {"hh_rate", 0.0}}, p);
  CHECK(data.x.shape() == Shape{1, 1, 600, 16});
  double sinks = 0, plain = 0;
  for (Index h = 0; h < 2; ++h)
    for (Index t = 300; t < 600; t += 10) {
      const auto w = weights(data, p, h, t), u = weights(without, p, h, t);
      for (std::size_t j = 0; j < 4; ++j) sinks += w[j] / 60, plain += u[j] / 60;
    }
  // Four of some 450 keys.
  CHECK(sinks > 0.03);
  CHECK(plain < 0.5 * sinks);
}

TEST_CASE("most weight lies on tokens of the query's topic", "[tasks][kv_trace]") {
  const Problem p = stream(800);
  const QKV data = filled(kBare, p);
  const std::vector<int> topic = topics_of(data);
  double mass = 0, share = 0;
  int queries = 0;
  for (Index t = 200; t < 800; t += 20, ++queries) {
    const auto w = weights(data, p, 0, t);
    for (Index j = 0; j <= t; ++j)
      if (topic[static_cast<std::size_t>(j)] == topic[static_cast<std::size_t>(t)]) {
        mass += w[static_cast<std::size_t>(j)];
        share += 1.0 / static_cast<double>(t + 1);
      }
  }
  CHECK(mass / queries > 0.8);
  CHECK(share / queries < 0.6);
}

TEST_CASE("topics return with p_rev and never without it", "[tasks][kv_trace]") {
  const auto returns = [](double p_rev, Index topics) {
    const Problem p = stream(4000);
    const std::vector<int> topic =
        topics_of(filled(bare({{"p_rev", p_rev}, {"topics", topics}, {"segment", 20.0}}), p));
    std::set<int> seen{topic[0]};
    int segments = 1, again = 0;
    for (std::size_t t = 1; t < topic.size(); ++t) {
      if (topic[t] == topic[t - 1]) continue;
      ++segments;
      if (!seen.insert(topic[t]).second) ++again;
    }
    CHECK(segments > 100);
    CHECK(static_cast<Index>(seen.size()) <= topics);
    return static_cast<double>(again) / segments;
  };
  CHECK(returns(0, 1000) == 0);
  CHECK(returns(0.5, 1000) == Approx(0.5).margin(0.12));
  CHECK(returns(1, 1000) > 0.95);
  CHECK(returns(0.5, 8) > 0.9);  // no new ones are left
}

TEST_CASE("segments have at least 8 tokens and the mean that is asked for", "[tasks][kv_trace]") {
  const Problem p = stream(6000);
  const std::vector<int> topic = topics_of(filled(bare({{"segment", 50.0}}), p));
  std::vector<Index> lengths{0};
  for (std::size_t t = 0; t < topic.size(); ++t) {
    if (t > 0 && topic[t] != topic[t - 1]) lengths.push_back(0);
    ++lengths.back();
  }
  lengths.pop_back();  // cut off by the end
  CHECK(*std::min_element(lengths.begin(), lengths.end()) >= 8);
  double mean = 0;
  for (const Index length : lengths) mean += static_cast<double>(length);
  // E max(8, floor(X)) is about 51 for X of mean 50; its standard error here is near 4.5.
  CHECK(mean / static_cast<double>(lengths.size()) == Approx(51).margin(14));
}

TEST_CASE("heavy hitters, salient tokens and sinks have the lengths that are said",
          "[tasks][kv_trace]") {
  const Problem p = stream(3000);
  const double s2 = std::sqrt(32.0);  // s^2 = sqrt(d_k)
  const auto norm2 = [&](const QKV& data, Index t) {
    return static_cast<double>(data.k.head(0, 0).row(t).squaredNorm()) / s2;
  };
  const QKV data = filled({{"salient", 0.0}, {"hh_rate", 0.0}}, p);
  for (Index t = 0; t < 4; ++t) CHECK(norm2(data, t) == Approx(6.25).epsilon(1e-5));
  const auto mean_norm2 = [&](const Settings& settings) {
    const QKV d = filled(settings, p);
    double sum = 0;
    for (Index t = 4; t < p.n; ++t) sum += norm2(d, t);
    return sum / static_cast<double>(p.n - 4);
  };
  const double plain = 4.84 + 32 * 0.0625;
  CHECK(mean_norm2({{"salient", 0.0}, {"hh_rate", 0.0}}) == Approx(plain).epsilon(0.02));
  CHECK(mean_norm2({{"salient", 1.0}, {"hh_rate", 0.0}}) ==
        Approx(1.35 * 1.35 * plain).epsilon(0.02));
  CHECK(mean_norm2({{"hh_rate", 1.0}}) == Approx(6.25 + 2).epsilon(0.02));
}

TEST_CASE("drift moves a topic between its segments and not within", "[tasks][kv_trace]") {
  const Problem p = stream(2000);
  const auto spread = [&](double drift) {
    const Settings settings = bare({{"drift", drift}, {"topics", Index{2}}, {"p_rev", 1.0}});
    const std::vector<int> topic = topics_of(filled(settings, p));
    const QKV data = filled(settings, p);
    // Mean keys of the first and the last segment of topic 0.
    RowVector first = RowVector::Zero(32), last = first;
    Index n_first = 0, t = 0;
    for (; t < p.n && topic[static_cast<std::size_t>(t)] == 0; ++t, ++n_first)
      first += data.k.head(0, 0).row(t);
    Index n_last = 0;
    for (t = p.n - 1; t >= 0 && topic[static_cast<std::size_t>(t)] != 0;) --t;
    for (; t >= 0 && topic[static_cast<std::size_t>(t)] == 0; --t, ++n_last)
      last += data.k.head(0, 0).row(t);
    first /= static_cast<float>(n_first), last /= static_cast<float>(n_last);
    return static_cast<double>(first.dot(last) / (first.norm() * last.norm()));
  };
  CHECK(spread(0) > 0.9);
  CHECK(spread(0.5) < 0.6);
}

TEST_CASE("embeddings are fixed by the seed, or those of topics by the set", "[tasks][kv_trace]") {
  const Problem p = stream(200);
  const auto centre = [&](const char* kind, Index set) -> RowVector {
    const QKV data = filled(bare({{"embeddings", std::string(kind)}}), p, 3, set);
    return data.x.head(0, 0).topRows(8).colwise().mean();  // topic 0 comes first
  };
  const auto near = [](const RowVector& a, const RowVector& b) {
    return a.dot(b) / (a.norm() * b.norm());
  };
  CHECK(near(centre("fixed", 0), centre("fixed", 1)) > 0.8f);
  CHECK(std::abs(near(centre("per_set", 0), centre("per_set", 1))) < 0.5f);
}

TEST_CASE("what a stream cannot be is refused", "[tasks][kv_trace]") {
  const auto task = make_task("kv_trace", {});
  Problem p = stream(10);
  CHECK(task->unsupported(p).empty());
  p.n_kv = 12;
  CHECK(task->unsupported(p).find("n_kv") != std::string::npos);
  p = stream(10), p.d_k = 2;
  CHECK(task->unsupported(p).find("d_k") != std::string::npos);
}
