// The generator's invariants: distinct keys, one label per key, the law of the slots, with fixed
// seeds and chi-square limits at p = 0.001.
#include <catch2/catch.hpp>
#include <map>
#include <set>
#include <tuple>

#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;

namespace {

constexpr Index kN = 64, kPairs = 8, kVocabulary = 512;

Settings settings(bool random_filler, Index pairs = kPairs) {
  return {{"vocabulary", kVocabulary}, {"pairs", pairs}, {"random_non_queries", random_filler}};
}

// Slot of the query of every pair, in the order of the pairs.
std::vector<Index> slots(const ExampleView& e, Index n, Index pairs) {
  std::map<std::int32_t, Index> pair_of;
  for (Index j = 0; j < pairs; ++j) pair_of[e.x[2 * j]] = j;
  std::vector<Index> slot(static_cast<std::size_t>(pairs), -1);
  for (Index t = 2 * pairs; t < n; ++t)
    if (e.y[t] != kIgnore) slot[static_cast<std::size_t>(pair_of.at(e.x[t]))] = (t - 2 * pairs) / 2;
  return slot;
}

double limit(std::size_t cells) { return chi_square_limit(cells - 1); }

}  // namespace

TEST_CASE("mqar puts distinct keys and values first, and one label per pair at its query",
          "[mqar]") {
  for (const bool filler : {false, true})
    for (const Index passes : {1, 2}) {
      Settings s = settings(filler);
      s["passes"] = passes;
      const Index context = 2 * kPairs * passes;
      const TokenBatch batch = make_task("mqar", s)->tokens(Split::train, 0, 300, kN, 1);
      for (Index e = 0; e < batch.batch; ++e) {
        const auto [x, y] = example(batch, e);
        std::map<std::int32_t, std::int32_t> value_of;
        std::set<std::int32_t> values;
        for (Index j = 0; j < kPairs; ++j) {
          const std::int32_t key = x[2 * j], value = x[2 * j + 1];
          if (!(key >= 1 && key < kVocabulary / 2)) FAIL_CHECK("key out of range");
          if (!(value >= kVocabulary / 2 && value < kVocabulary)) FAIL_CHECK("value out of range");
          value_of[key] = value;
          values.insert(value);
          for (Index pass = 1; pass < passes; ++pass)
            if (x[2 * (pass * kPairs + j)] != key || x[2 * (pass * kPairs + j) + 1] != value)
              FAIL_CHECK("a pass is not a repetition");
        }
        if (value_of.size() != kPairs || values.size() != kPairs) FAIL_CHECK("not distinct");
        std::set<std::int32_t> queried;
        for (Index t = 0; t < kN; ++t) {
          if (y[t] == kIgnore) {
            if (!filler && t >= context && x[t] != 0) FAIL_CHECK("filler is not 0");
            continue;
          }
          if (t < context || (t - context) % 2 != 0 || t > kN - 2) FAIL_CHECK("misplaced label");
          if (value_of.at(x[t]) != y[t]) FAIL_CHECK("label is not the key's value");
          queried.insert(x[t]);
        }
        if (queried.size() != kPairs) FAIL_CHECK("a key is not queried exactly once");
        if (std::count_if(y, y + kN, [](std::int32_t l) { return l != kIgnore; }) != kPairs)
          FAIL_CHECK("number of labels");
      }
    }
  SUCCEED();
}

TEST_CASE("mqar filler is uniform over the vocabulary and moves nothing else", "[mqar]") {
  const TokenBatch off = make_task("mqar", settings(false))->tokens(Split::train, 0, 4000, kN, 2);
  const TokenBatch on = make_task("mqar", settings(true))->tokens(Split::train, 0, 4000, kN, 2);
  CHECK(on.labels == off.labels);
  std::vector<double> counts(kVocabulary);
  double total = 0;
  for (std::size_t i = 0; i < on.tokens.size(); ++i) {
    const Index t = static_cast<Index>(i) % kN;
    if (t >= 2 * kPairs && on.labels[i] == kIgnore) {
      counts[static_cast<std::size_t>(on.tokens[i])] += 1;
      total += 1;
    } else if (on.tokens[i] != off.tokens[i]) {
      FAIL_CHECK("the switch moved a pair or a query");
    }
  }
  CHECK(total == 4000 * (kN - 3 * kPairs));
  CHECK(chi_square(counts, std::vector<double>(kVocabulary, total / kVocabulary)) <
        limit(kVocabulary));
}

TEST_CASE("mqar keys and values are uniform over their halves", "[mqar]") {
  const TokenBatch batch =
      make_task("mqar", settings(false))->tokens(Split::train, 0, 20000, kN, 3);
  std::vector<double> keys(kVocabulary / 2 - 1), values(kVocabulary / 2);
  for (Index e = 0; e < batch.batch; ++e)
    for (Index j = 0; j < kPairs; ++j) {
      keys[static_cast<std::size_t>(example(batch, e).x[2 * j] - 1)] += 1;
      values[static_cast<std::size_t>(example(batch, e).x[2 * j + 1] - kVocabulary / 2)] += 1;
    }
  const double drawn = 20000.0 * kPairs;
  const auto even = [&](const std::vector<double>& c) {
    return std::vector<double>(c.size(), drawn / static_cast<double>(c.size()));
  };
  CHECK(chi_square(keys, even(keys)) < limit(keys.size()));
  CHECK(chi_square(values, even(values)) < limit(values.size()));
}

TEST_CASE("mqar slots of the first and last pair follow the published law", "[mqar]") {
  struct Case {
    Index n, pairs;
    double p0, last_p, mean_first, mean_last, used0;
  };
  for (const Case& c :
       {Case{64, 4, .2511, .00927, 6.20, 8.08, .72}, Case{64, 8, .2613, .01124, 5.42, 9.4, .96},
        Case{128, 8, .2131, .00396, 11.31, 16.9, .90},
        Case{256, 16, .1847, .00173, 20.48, 34.7, .98}}) {
    INFO("n=" << c.n << " pairs=" << c.pairs);
    const Index draws = 20000, count = (c.n - 2 * c.pairs) / 2;
    const TokenBatch batch =
        make_task("mqar", settings(false, c.pairs))->tokens(Split::train, 0, draws, c.n, 4);
    std::vector<double> first(static_cast<std::size_t>(count)), expected(first.size());
    double sum_first = 0, sum_last = 0, sum2_first = 0, sum2_last = 0, used = 0, weight = 0;
    for (Index e = 0; e < draws; ++e) {
      const std::vector<Index> slot = slots(example(batch, e), c.n, c.pairs);
      const double a = static_cast<double>(slot.front()), b = static_cast<double>(slot.back());
      first[static_cast<std::size_t>(slot.front())] += 1;
      sum_first += a, sum2_first += a * a, sum_last += b, sum2_last += b * b;
      used += std::find(slot.begin(), slot.end(), 0) != slot.end() ? 1 : 0;
    }
    for (Index s = 0; s < count; ++s)
      weight += expected[static_cast<std::size_t>(s)] =
          std::pow(static_cast<double>(s + 1), 0.01 - 1);
    CHECK(expected.front() / weight == Approx(c.p0).margin(5e-5));
    CHECK(expected.back() / weight == Approx(c.last_p).margin(5e-6));
    for (double& p : expected) p *= draws / weight;
    CHECK(chi_square(first, expected) < limit(first.size()));
    const double d = static_cast<double>(draws);
    const double error_first = std::sqrt((sum2_first / d - sum_first / d * sum_first / d) / d),
                 error_last = std::sqrt((sum2_last / d - sum_last / d * sum_last / d) / d);
    // The table's own rounding, and that its means of the last pair come from 20000 draws.
    CHECK(std::fabs(sum_first / d - c.mean_first) < 3 * error_first + 0.005);
    CHECK(std::fabs(sum_last / d - c.mean_last) < 3 * std::sqrt(2.0) * error_last + 0.05);
    CHECK(used / d == Approx(c.used0).margin(0.005 + 3 * std::sqrt(0.25 / d)));
  }
}

TEST_CASE("mqar with power_a = 1 puts queries anywhere with equal chance", "[mqar]") {
  Settings s = settings(false, 4);
  s["power_a"] = 1.0;
  const TokenBatch batch = make_task("mqar", s)->tokens(Split::train, 0, 20000, kN, 5);
  for (const std::size_t pair : {std::size_t{0}, std::size_t{3}}) {
    std::vector<double> counts(28);
    for (Index e = 0; e < batch.batch; ++e)
      counts[static_cast<std::size_t>(slots(example(batch, e), kN, 4)[pair])] += 1;
    CHECK(chi_square(counts, std::vector<double>(28, 20000.0 / 28)) < limit(28));
  }
}

TEST_CASE("mqar with as many pairs as slots queries every even place", "[mqar]") {
  const TokenBatch batch =
      make_task("mqar", settings(true, 16))->tokens(Split::train, 0, 50, kN, 6);
  for (Index e = 0; e < batch.batch; ++e)
    for (Index t = 32; t < kN; ++t)
      if ((example(batch, e).y[t] != kIgnore) != (t % 2 == 0)) FAIL_CHECK("free slot at " << t);
  SUCCEED();
}

TEST_CASE("mqar splits share no sequence", "[mqar]") {
  const auto task = make_task("mqar", settings(false));
  std::set<std::vector<std::int32_t>> seen;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    const TokenBatch batch = task->tokens(split, 0, 3000, kN, 7);
    for (Index e = 0; e < 3000; ++e) seen.emplace(example(batch, e).x, example(batch, e).x + kN);
  }
  CHECK(seen.size() == 9000);
}

TEST_CASE("mqar refuses lengths and vocabularies for which it is not defined", "[mqar]") {
  const auto refused = [](const Settings& s, Index n) {
    try {
      make_task("mqar", s)->tokens(Split::train, 0, 1, n, 1);
      return std::string();
    } catch (const Unsupported& error) {
      return std::string(error.what());
    }
  };
  CHECK(refused(settings(false), 63) == "mqar: n=63 is odd, expected an even n");
  CHECK(refused(settings(false, 17), 64) == "mqar: 17 pairs in 1 passes need n >= 68, got n=64");
  CHECK(refused(settings(false), 512) == "mqar: vocabulary=512, expected more than n=512");
  CHECK(refused(settings(false), 510).empty());
  CHECK(refused(settings(false, 16), 64).empty());
}

TEST_CASE("mqar is solved by looking the key up, and not by a fixed answer", "[mqar]") {
  const TokenBatch batch = make_task("mqar", settings(true))->tokens(Split::test, 0, 4000, kN, 8);
  double looked_up = 0, second_token = 0, labels = 0;
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    for (Index t = 0; t < kN; ++t) {
      if (y[t] == kIgnore) continue;
      Index j = 0;
      while (j < kPairs && x[2 * j] != x[t]) ++j;
      labels += 1;
      looked_up += j < kPairs && x[2 * j + 1] == y[t] ? 1 : 0;
      second_token += x[1] == y[t] ? 1 : 0;
    }
  }
  CHECK(looked_up == labels);
  CHECK(second_token == labels / kPairs);  // exactly one query in each sequence
  const auto floors = make_task("mqar", settings(true))->floors(kN, 1);
  REQUIRE(floors.size() == 2);
  CHECK(floors[0].value == 1.0 / 256);
  CHECK(floors[1].value == 1.0 / kPairs);
}

TEST_CASE("exact attention on mqar's q, k, v retrieves the value of each key", "[mqar]") {
  // With random filler some keys appear once more by chance, and their mass is shared.
  for (const auto& [n, random_filler, least] :
       {std::tuple(Index{64}, false, 0.98), std::tuple(Index{65}, false, 0.98),
        std::tuple(Index{1024}, false, 0.98), std::tuple(Index{1024}, true, 0.85)}) {
    Problem p;
    p.heads = 2, p.n = p.n_kv = n, p.d_k = 64, p.d_v = 32, p.causal = true;
    const QKV data = fill("mqar", {{"random_non_queries", random_filler}}, p, 11);
    // Queries are found by what the generator promises: the first rows are pairs (key, value).
    const Index pairs = n / 16, context = 2 * pairs;
    for (Index h = 0; h < 2; ++h) {
      const MatrixD weights = weights_of(data, p, 0, h);
      const auto q = data.q.head(0, h);
      const auto v = data.v.head(0, h);
      Index queries = 0, right = 0;
      double mass = 0;
      for (Index t = context; t < n; ++t)
        for (Index j = 0; j < pairs; ++j) {
          if (q.row(t) != q.row(2 * j)) continue;  // the token at t is key j
          ++queries;
          mass += weights(t, 2 * j + 1);
          const RowVectorT<double> out = weights.row(t) * v.cast<double>();
          Index nearest = 0;
          double best = 1e300;
          for (Index other = 0; other < n; ++other) {
            const double distance = (v.row(other).cast<double>() - out).squaredNorm();
            if (distance < best) best = distance, nearest = other;
          }
          right += v.row(nearest) == v.row(2 * j + 1) ? 1 : 0;
        }
      INFO("n=" << n << " queries=" << queries << " right=" << right << " mass=" << mass);
      CHECK(queries >= pairs);
      CHECK(static_cast<double>(right) >= least * static_cast<double>(queries));
      CHECK(mass >= least * static_cast<double>(queries));
    }
  }
}

TEST_CASE("mqar queries are the last tokens where there are more keys", "[mqar]") {
  Problem all, some;
  all.n = all.n_kv = 128, all.causal = true;
  some = all;
  some.n = 5;
  const QKV a = fill("mqar", {}, all), b = fill("mqar", {}, some);
  CHECK(b.k.head(0, 0) == a.k.head(0, 0));
  CHECK(b.v.head(0, 0) == a.v.head(0, 0));
  CHECK(b.q.head(0, 0) == a.q.head(0, 0).bottomRows(5));
  CHECK(b.q.head(0, 0).topRows(4) == b.k.head(0, 0).bottomRows(4));  // the token before
}
