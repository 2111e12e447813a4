// The relatives of MQAR: forgetting, stacked, noisy, single query, induction.
#include <catch2/catch.hpp>
#include <map>
#include <set>

#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;

TEST_CASE("mqar_forgetting asks for the latest value of each key", "[recall]") {
  const Index n = 64, pairs = 8, updates = 3;
  const auto task = make_task("mqar_forgetting",
                              {{"vocabulary", Index{512}}, {"pairs", pairs}, {"updates", updates}});
  const TokenBatch batch = task->tokens(Split::train, 0, 2000, n, 1);
  std::vector<double> updated(pairs);
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    std::map<std::int32_t, std::int32_t> value_of;
    std::set<std::int32_t> values;
    std::map<std::int32_t, std::size_t> pair_of;
    for (Index j = 0; j < pairs + updates; ++j) {
      const std::int32_t key = x[2 * j], value = x[2 * j + 1];
      if (!(key >= 1 && key < 256 && value >= 256 && value < 512)) FAIL_CHECK("range");
      if (j < pairs) {
        if (value_of.contains(key)) FAIL_CHECK("keys are not distinct");
        pair_of[key] = static_cast<std::size_t>(j);
      } else {
        if (!value_of.contains(key)) FAIL_CHECK("an update of an unknown key");
        updated[pair_of[key]] += 1;
      }
      value_of[key] = value;
      values.insert(value);
    }
    if (values.size() != static_cast<std::size_t>(pairs + updates)) FAIL_CHECK("values repeat");
    std::set<std::int32_t> queried;
    for (Index t = 0; t < n; ++t) {
      if (y[t] == kIgnore) continue;
      const Index context = 2 * (pairs + updates);
      if (t < context || (t - context) % 2 != 0) FAIL_CHECK("misplaced label");
      if (value_of.at(x[t]) != y[t]) FAIL_CHECK("label is not the latest value");
      queried.insert(x[t]);
    }
    if (queried.size() != static_cast<std::size_t>(pairs)) FAIL_CHECK("queries");
  }
  double total = 0;
  for (const double u : updated) total += u;
  CHECK(total == 2000.0 * updates);
  CHECK(chi_square_uniform(updated) < chi_square_limit(pairs - 1));
  const auto floors = task->floors(n, 1);
  CHECK(floors.back().value == Approx(5.0 / 8));
  CHECK(refused("mqar_forgetting", {{"pairs", Index{15}}}, 64) ==
        "mqar_forgetting: 15 pairs and 4 updates need n >= 68, got n=64");
  CHECK(refused("mqar_forgetting", {}, 63) == "mqar_forgetting: n=63 is odd, expected an even n");
  CHECK(not_made("mqar_forgetting", {{"vocabulary", Index{16}}, {"pairs", Index{8}}}) ==
        "mqar_forgetting: 8 pairs and 4 updates, expected fewer pairs than 8 and at most 8 values "
        "for vocabulary=16");
}

TEST_CASE("mqar_stacked holds key and value in one position and asks with an empty value",
          "[recall]") {
  for (const Index passes : {1, 2}) {
    const Index n = 64, pairs = n / (passes + 1);
    const auto task = make_task("mqar_stacked", {{"passes", passes}});
    const TokenBatch batch = task->tokens(Split::train, 0, 300, n, 1);
    REQUIRE(batch.tokens_per_position == 2);
    for (Index e = 0; e < batch.batch; ++e) {
      const auto [x, y] = example(batch, e);
      std::map<std::int32_t, std::int32_t> value_of;
      std::set<std::int32_t> queried;
      for (Index t = 0; t < n; ++t) {
        const std::int32_t key = x[2 * t], value = x[2 * t + 1];
        if (t < pairs * passes) {
          if (!(key >= 1 && key < 4096 && value >= 4096 && y[t] == kIgnore)) FAIL_CHECK("pair");
          if (t >= pairs && value_of.at(key) != value) FAIL_CHECK("a pass is not a repetition");
          value_of[key] = value;
        } else if (t < pairs * (passes + 1)) {
          if (value != 0 || value_of.at(key) != y[t]) FAIL_CHECK("query");
          queried.insert(key);
        } else if (key != 0 || value != 0 || y[t] != kIgnore) {
          FAIL_CHECK("what is left is not empty");
        }
      }
      if (queried.size() != static_cast<std::size_t>(pairs)) FAIL_CHECK("queries");
    }
    CHECK(task->floors(n, 1)[1].value == Approx(1.0 / static_cast<double>(pairs)));
  }
  CHECK(refused("mqar_stacked", {{"pairs", Index{33}}}, 64) ==
        "mqar_stacked: 33 pairs in 1 passes need n >= 66, got n=64");
  CHECK(refused("mqar_stacked", {{"vocabulary", Index{64}}}, 64) ==
        "mqar_stacked: vocabulary=64 has 31 keys, n=64 needs 32");
}

TEST_CASE("exact attention on mqar_stacked's q, k, v finds the value without any shift",
          "[recall]") {
  Problem p;
  p.n = p.n_kv = 64, p.d_k = 64, p.d_v = 48, p.causal = true;
  const QKV data = fill("mqar_stacked", {}, p, 5);
  const MatrixD weights = weights_of(data, p);
  for (Index t = 32; t < 64; ++t) {
    CHECK(data.v.head(0, 0).row(t).norm() == 0);
    Index best = 0;
    for (Index j = 1; j < 32; ++j)
      if (weights(t, j) > weights(t, best)) best = j;
    CHECK(data.k.head(0, 0).row(best) == data.q.head(0, 0).row(t));
    CHECK(weights(t, best) == Approx(0.5).margin(0.01));
    CHECK(weights(t, t) == Approx(0.5).margin(0.01));
  }
}

TEST_CASE("mqar_fused asks for every pair once, anywhere in the sequence", "[recall]") {
  const Index n = 66, pairs = 30;
  const auto task = make_task("mqar_fused", {{"pairs", pairs}, {"n_keys", Index{100}}});
  const TokenBatch batch = task->tokens(Split::train, 0, 600, n, 1);
  REQUIRE(batch.tokens_per_position == 2);
  std::vector<double> values(64), places(static_cast<std::size_t>(n)), keys(100);
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    std::map<std::int32_t, std::int32_t> value_of, label_of;
    Index empty = 0;
    for (Index t = 0; t < n; ++t) {
      const std::int32_t key = x[2 * t], value = x[2 * t + 1];
      if (key == 0) {
        if (value != 0 || y[t] != kIgnore) FAIL_CHECK("what is left is not empty");
        ++empty;
      } else if (value != 0) {
        if (!(key >= 65 && key < 165 && value <= 64 && y[t] == kIgnore)) FAIL_CHECK("pair");
        if (!value_of.emplace(key, value).second) FAIL_CHECK("keys are not distinct");
        values[static_cast<std::size_t>(value - 1)] += 1;
        keys[static_cast<std::size_t>(key - 65)] += 1;
      } else {
        if (!label_of.emplace(key, y[t]).second) FAIL_CHECK("asked twice");
        places[static_cast<std::size_t>(t)] += 1;
      }
    }
    if (empty != n - 2 * pairs || value_of.size() != pairs || label_of.size() != pairs)
      FAIL_CHECK("counts");
    for (const auto& [key, label] : label_of)
      if (value_of.at(key) != label + 1) FAIL_CHECK("label");
  }
  CHECK(chi_square_uniform(values) < chi_square_limit(63));
  CHECK(chi_square_uniform(keys) < chi_square_limit(99));
  CHECK(chi_square_uniform(places) < chi_square_limit(static_cast<std::size_t>(n - 1)));
  CHECK(task->labels(n).classes == 64);
  CHECK(task->labels(n).vocabulary == 165);
  CHECK(task->floors(n, 1)[0].value == Approx(1.0 / 64));
  CHECK(refused("mqar_fused", {{"pairs", Index{33}}}, 64) ==
        "mqar_fused: 33 pairs need n >= 66, got n=64");
  CHECK(refused("mqar_fused", {{"n_keys", Index{16}}}, 64) ==
        "mqar_fused: 32 pairs of distinct keys, n_keys=16");
}

TEST_CASE("exact attention on mqar_fused's q, k, v finds the pair of every query", "[recall]") {
  Problem p;
  p.n = p.n_kv = 64, p.d_k = 64, p.d_v = 48, p.causal = false;
  const QKV data = fill("mqar_fused", {}, p, 5);
  const MatrixD weights = weights_of(data, p);
  Index queries = 0;
  for (Index t = 0; t < 64; ++t) {
    Index best = 0;
    for (Index j = 1; j < 64; ++j)
      if (weights(t, j) > weights(t, best)) best = j;
    CHECK(data.k.head(0, 0).row(best) == data.q.head(0, 0).row(t));
    CHECK(weights(t, best) >= 0.99);
    if (data.v.head(0, 0).row(t).norm() > 0) continue;
    ++queries;
    CHECK(best != t);
  }
  CHECK(queries == 32);
}

TEST_CASE("noisy_recall scores every key seen before and nothing else", "[recall]") {
  const Index n = 128;
  for (const double noise : {0.0, 0.2, 0.8}) {
    const TokenBatch batch =
        make_task("noisy_recall", {{"noise", noise}})->tokens(Split::train, 0, 2000, n, 1);
    double noisy = 0;
    std::vector<double> keys(8), values(8), noises(16);
    for (Index e = 0; e < batch.batch; ++e) {
      const auto [x, y] = example(batch, e);
      std::map<std::int32_t, std::int32_t> value_of;
      for (Index t = 0; t < n; t += 2) {
        if (y[t + 1] != kIgnore) FAIL_CHECK("a value is scored");
        if (x[t] >= 16) {
          if (x[t + 1] < 16 || y[t] != kIgnore) FAIL_CHECK("half a noise");
          noisy += 1;
          noises[static_cast<std::size_t>(x[t] - 16)] += 1;
          noises[static_cast<std::size_t>(x[t + 1] - 16)] += 1;
          continue;
        }
        if (!(x[t] < 8 && x[t + 1] >= 8 && x[t + 1] < 16)) FAIL_CHECK("range");
        const bool seen = value_of.contains(x[t]);
        if ((y[t] != kIgnore) != seen) FAIL_CHECK("label");
        if (seen && (value_of[x[t]] != x[t + 1] || y[t] != x[t + 1])) FAIL_CHECK("value");
        if (!seen) values[static_cast<std::size_t>(x[t + 1] - 8)] += 1;
        value_of[x[t]] = x[t + 1];
        if (t < n - 2) keys[static_cast<std::size_t>(x[t])] += 1;
      }
      if (y[n - 2] == kIgnore) FAIL_CHECK("the last pair holds a new key");
    }
    const double drawn = 2000.0 * (n / 2 - 1);  // the last pair is never noise
    CHECK(std::fabs(noisy - noise * drawn) < 4 * std::sqrt(drawn * noise * (1 - noise)) + 1e-9);
    CHECK(chi_square_uniform(keys) < chi_square_limit(7));
    CHECK(chi_square_uniform(values) < chi_square_limit(7));
    if (noise > 0) CHECK(chi_square_uniform(noises) < chi_square_limit(15));
  }
  // All noise but the last two pairs is possible, and the last still asks for a seen key.
  const TokenBatch few =
      make_task("noisy_recall", {{"noise", 0.95}})->tokens(Split::train, 0, 500, 4, 1);
  for (Index e = 0; e < 500; ++e)
    if (example(few, e).y[2] != example(few, e).x[1]) FAIL_CHECK("no seen key");
  CHECK(refused("noisy_recall", {}, 7) == "noisy_recall: n=7, expected an even n of at least 4");
}

TEST_CASE("single_query_recall asks for keys of the context at any place after it", "[recall]") {
  const Index n = 64, pairs = 8;
  for (const Index queries : {1, 3}) {
    const TokenBatch batch =
        make_task("single_query_recall",
                  {{"vocabulary", Index{256}}, {"pairs", pairs}, {"queries", queries}})
            ->tokens(Split::test, 0, 4000, n, 1);
    std::vector<double> places(static_cast<std::size_t>(n - 2 * pairs)), asked(pairs);
    for (Index e = 0; e < batch.batch; ++e) {
      const auto [x, y] = example(batch, e);
      Index labels = 0;
      std::set<std::int32_t> keys;
      for (Index t = 0; t < n; ++t) {
        if (y[t] == kIgnore) continue;
        ++labels;
        keys.insert(x[t]);
        if (t < 2 * pairs) {
          FAIL_CHECK("a query in the context");
          continue;
        }
        places[static_cast<std::size_t>(t - 2 * pairs)] += 1;
        Index j = 0;
        while (j < pairs && x[2 * j] != x[t]) ++j;
        if (j == pairs || x[2 * j + 1] != y[t])
          FAIL_CHECK("label");
        else
          asked[static_cast<std::size_t>(j)] += 1;
      }
      if (labels != queries || keys.size() != static_cast<std::size_t>(queries))
        FAIL_CHECK("count");
    }
    CHECK(chi_square_uniform(places) < chi_square_limit(places.size() - 1));
    CHECK(chi_square_uniform(asked) < chi_square_limit(asked.size() - 1));
  }
  CHECK(refused("single_query_recall", {{"pairs", Index{32}}}, 64) ==
        "single_query_recall: 32 pairs and 1 queries need n >= 65, got n=64");
  CHECK(refused("single_query_recall", {{"pairs", Index{2}}, {"queries", Index{3}}}, 64) ==
        "single_query_recall: 3 queries, expected at most 2 pairs");
}

TEST_CASE("induction asks for what followed the trigger", "[recall]") {
  const Index n = 33;
  const TokenBatch batch = make_task("induction")->tokens(Split::train, 0, 8000, n, 1);
  std::vector<double> places(static_cast<std::size_t>(n - 2)), answers(16);
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    if (std::count(x, x + n, 16) != 2 || x[n - 1] != 16) FAIL_CHECK("triggers");
    const Index place = std::find(x, x + n, 16) - x;
    if (std::count(y, y + n, kIgnore) != n - 1 || y[n - 1] != x[place + 1]) FAIL_CHECK("label");
    places[static_cast<std::size_t>(place)] += 1;
    answers[static_cast<std::size_t>(y[n - 1])] += 1;
  }
  CHECK(chi_square_uniform(places) < chi_square_limit(places.size() - 1));
  CHECK(chi_square_uniform(answers) < chi_square_limit(15));
  CHECK(refused("induction", {}, 2) == "induction: n=2, expected at least 3");
}
