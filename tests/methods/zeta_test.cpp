// ZETA: the choice of keys under the chunk rule, and what must hold whatever the data.
#include "tests/reference/zeta.h"

#include <fmt/core.h>

#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "methods/engines/zeta_attention.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

using Set = std::set<Index>;

Settings with(Settings settings, const Settings& more) {
  for (const auto& [key, value] : more) settings[key] = value;
  return settings;
}

Problem problem(Index n, bool causal, Index d_k = 3, Index d_v = 5) {
  return {.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = d_k, .d_v = d_v, .causal = causal};
}

// The keys that every query chose: [heads][n].
std::vector<std::vector<Set>> chosen_keys(const std::string& name, const Settings& settings,
                                          const Problem& p, const QKV& in) {
  const auto method = make_method(name, settings);
  Env env;
  env.gradients = true;
  method->prepare(p, env);
  const auto saved = method->make_saved();
  Tensor out(p.batch, p.heads, p.n, p.d_v);
  method->forward(in.inputs(), out, saved.get());
  const auto& zeta = static_cast<const ZetaSaved&>(*saved);
  const Index heads = p.batch * p.heads, list = zeta.keys.size() / (heads * p.n);
  std::vector<std::vector<Set>> chosen(static_cast<std::size_t>(heads),
                                       std::vector<Set>(static_cast<std::size_t>(p.n)));
  for (Index row = 0; row < heads * p.n; ++row) {
    Set& set =
        chosen[static_cast<std::size_t>(row / p.n)][static_cast<std::size_t>(zeta.query[row])];
    set.insert(zeta.keys.data() + row * list, zeta.keys.data() + row * list + zeta.count[row]);
    CHECK(static_cast<Index>(set.size()) == zeta.count[row]);  // no key twice
  }
  return chosen;
}

Matrix weights_of(const std::string& name, const Settings& settings, const Problem& p,
                  const QKV& in, Index h) {
  const auto method = make_method(name, settings);
  method->prepare(p, {});
  std::vector<Index> rows(static_cast<std::size_t>(p.n));
  std::iota(rows.begin(), rows.end(), Index{0});
  Matrix weights(p.n, p.n_kv);
  REQUIRE(method->attention_rows(in.inputs(), 0, h, rows, weights));
  return weights;
}

double mean_distance(const Problem& p, const QKV& in, const std::vector<std::vector<Set>>& chosen) {
  double sum = 0, count = 0;
  for (Index h = 0; h < p.heads; ++h)
    for (Index i = 0; i < p.n; ++i)
      for (const Index j : chosen[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)]) {
        for (Index c = 0; c < p.d_k; ++c)
          sum += std::pow(std::tanh(static_cast<double>(in.q.head(0, h)(i, c))) -
                              std::tanh(static_cast<double>(in.k.head(0, h)(j, c))),
                          2);
        ++count;
      }
  return sum / count;
}

}  // namespace

TEST_CASE("in one dimension the exact nearest keys are found", "[methods][zeta]") {
  const Problem p = problem(150, false, 1);
  const QKV in = random_inputs(p, 4);
  const Settings settings{{"d_key", Index{1}}, {"bits", Index{31}}, {"top_k", Index{8}}};
  const auto exact = with(settings, {});
  Settings reference = exact;
  reference.erase("bits");
  CHECK(chosen_keys("zeta", settings, p, in) == chosen_keys("zeta_topk", reference, p, in));
}

TEST_CASE("chosen keys lie in earlier chunks, as many as there are, and are those of the reference",
          "[methods][zeta]") {
  for (const bool causal : {false, true}) {
    const Problem p = problem(130, causal, 12);
    const QKV in = random_inputs(p, 5);
    const Settings settings{{"top_k", Index{9}}, {"chunk", Index{16}}};
    const auto chosen = chosen_keys("zeta", settings, p, in);
    const auto rule = reference::ZetaRule::from("zeta", resolved("zeta", settings));
    std::vector<std::vector<Index>> want;
    reference::zeta_attention(rule, double_call(p, in), nullptr, nullptr, &want);
    for (Index h = 0; h < p.heads; ++h)
      for (Index i = 0; i < p.n; ++i) {
        const Set& keys = chosen[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)];
        const Index pool = causal ? i / 16 * 16 : p.n;
        CHECK(static_cast<Index>(keys.size()) == std::min<Index>(9, pool));
        CHECK((keys.empty() || *keys.rbegin() < pool));
        const auto& list = want[static_cast<std::size_t>(h * p.n + i)];
        CHECK(keys == Set(list.begin(), list.end()));
      }
  }
}

TEST_CASE("with every key in the window zeta is dense Cauchy attention", "[methods][zeta]") {
  const Settings all{{"top_k", Index{90}}, {"history", false}};
  const auto double_output = [](const std::string& name, const Settings& settings, const Problem& p,
                                const QKV& in) {
    return cast<double>(run_method(name, settings, p, in).out);
  };
  const Problem whole = problem(90, false);
  const QKV in = random_inputs(whole, 6);
  CHECK(relative_error(run_method("zeta", all, whole, in).out,
                       double_output("cauchy_dense", {}, whole, in)) <= 1e-6);
  const Problem causal = problem(90, true);
  for (const Index chunk : {1, 7, 32})
    CHECK(relative_error(
              run_method("zeta", with(all, {{"chunk", chunk}, {"local", true}}), causal, in).out,
              double_output("cauchy_dense", {}, causal, in)) <= 1e-6);
  CHECK(relative_error(run_method("cauchy_topk", all, causal, in).out,
                       double_output("cauchy_dense", {}, causal, in)) <= 1e-6);
  // Chunks of one token hide the token itself: the weights are the dense ones of j < i.
  const Matrix strict = weights_of("zeta", with(all, {{"chunk", Index{1}}}), causal, in, 1);
  Matrix want = weights_of("cauchy_dense", {}, causal, in, 1);
  for (Index i = 0; i < 90; ++i) {
    want(i, i) = 0;
    if (i > 0) want.row(i) /= want.row(i).sum();
  }
  CHECK((strict - want).norm() <= 1e-6 * want.norm());
}

TEST_CASE("a key without history or local block shows from the next chunk on", "[methods][zeta]") {
  const Problem p = problem(100, true);
  const QKV in = random_inputs(p, 7);
  const Settings settings{{"chunk", Index{16}}, {"top_k", Index{100}}, {"history", false}};
  const Tensor before = run_method("zeta", settings, p, in).out;
  for (const Index t : {0, 15, 16, 50}) {
    QKV changed = in;
    for (Index h = 0; h < 2; ++h) {
      changed.k.head(0, h).row(t).array() += 0.3f;
      changed.v.head(0, h).row(t).array() += 1.0f;
    }
    const Tensor after = run_method("zeta", settings, p, changed).out;
    for (Index i = 0; i < p.n; ++i) {
      const bool same = before.head(0, 1).row(i) == after.head(0, 1).row(i);
      CHECK(same == (i < (t / 16 + 1) * 16));
    }
  }
}

TEST_CASE("weights are positive and sum to one, rows without keys are zero", "[methods][zeta]") {
  const Problem p = problem(100, true);
  const QKV in = random_inputs(p, 8);
  for (const std::string name : {"zeta", "zeta_topk", "cauchy_topk", "cauchy_dense"})
    for (const bool history : {false, true}) {
      Settings settings{{"history", history}};
      if (name != "cauchy_dense") settings["top_k"] = Index{6};
      const Matrix weights = weights_of(name, settings, p, in, 0);
      const bool chunked = name.starts_with("zeta");
      for (Index i = 0; i < p.n; ++i) {
        const bool empty = !history && chunked && i < 7;  // chunks of ceil(100 / 16) tokens
        CHECK(weights.row(i).sum() == Approx(empty ? 0 : 1).margin(1e-6));
        CHECK(weights.row(i).minCoeff() >= 0);
      }
      const Tensor out = run_method(name, settings, p, in).out;
      CHECK((out.head(0, 0).row(3).norm() == 0) == (!history && chunked));
    }
}

TEST_CASE("a wide kernel averages, a narrow one picks the key that equals the query",
          "[methods][zeta]") {
  alignas(64) float x[32] = {0.1f, 3.0f, 1.0f, 0.7f, 2.0f}, w[32];
  ZetaKernel{Similarity::cauchy, 1e6f}.weights(x, 5, w);
  for (int j = 0; j < 5; ++j) CHECK(w[j] == Approx(0.2f).epsilon(1e-4));
  const Problem p = problem(60, false);
  QKV in = random_inputs(p, 9);
  in.k.head(0, 0).row(17) = in.q.head(0, 0).row(40);
  const Tensor out =
      run_method("zeta", {{"gamma", 1e-3}, {"top_k", Index{4}}, {"history", false}}, p, in).out;
  CHECK((out.head(0, 0).row(40) - in.v.head(0, 0).row(17)).norm() <= 1e-2);
}

TEST_CASE("bidirectional zeta follows a permutation of the tokens, and shifts with the values",
          "[methods][zeta]") {
  const Problem p = problem(90, false);
  const QKV in = random_inputs(p, 10);
  const Settings settings{{"top_k", Index{7}}, {"bits", Index{20}}};
  const Tensor before = run_method("zeta", settings, p, in).out;
  QKV moved = in, shifted = in;
  const auto to = [](Index i) { return (37 * i + 11) % 90; };
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < p.n; ++i) {
      moved.q.head(0, h).row(to(i)) = in.q.head(0, h).row(i);
      moved.k.head(0, h).row(to(i)) = in.k.head(0, h).row(i);
      moved.v.head(0, h).row(to(i)) = in.v.head(0, h).row(i);
    }
  for (Index e = 0; e < shifted.v.size(); ++e) shifted.v.data()[e] += 2;
  const Tensor after = run_method("zeta", settings, p, moved).out;
  const Tensor higher = run_method("zeta", settings, p, shifted).out;
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < p.n; ++i) {
      CHECK((after.head(0, h).row(to(i)) - before.head(0, h).row(i)).norm() <= 1e-5);
      CHECK((higher.head(0, h).row(i).array() - before.head(0, h).row(i).array() - 2)
                .abs()
                .maxCoeff() <= 1e-5);
    }
}

TEST_CASE("the gradient of theta equals the reference's and central differences",
          "[methods][zeta]") {
  for (const std::string kind : {"cauchy", "neg_euclid", "inverse_euclid", "dot"})
    for (const bool local : {false, true}) {
      const Problem p = problem(60, true);
      const QKV in = random_inputs(p, 11);
      const Settings settings{{"top_k", Index{5}},
                              {"chunk", Index{8}},
                              {"similarity", kind},
                              {"gamma", 0.6},
                              {"local", local}};
      Tensor dout(p.batch, p.heads, p.n, p.d_v), out = dout;
      fill_normal(12, dout.data(), dout.size());
      const auto method = make_method("zeta", settings);
      Env env;
      env.gradients = true;
      method->prepare(p, env);
      const auto saved = method->make_saved();
      Tensor dq(in.q.shape()), dk(in.k.shape()), dv(in.v.shape());
      method->forward(in.inputs(), out, saved.get());
      method->backward(in.inputs(), out, dout, *saved, {dq, dk, dv, {}});
      const double got = static_cast<double>(method->parameters().front()->grad[0]);
      const auto loss = [&](double theta, reference::ZetaGradient* gradient) {
        auto rule = reference::ZetaRule::from("zeta", resolved("zeta", settings));
        rule.gamma = 1 / (1 + std::exp(-theta));
        const TensorD d = cast<double>(dout);
        const TensorD o = reference::zeta_attention(rule, double_call(p, in), &d, gradient);
        double sum = 0;
        for (Index e = 0; e < o.size(); ++e) sum += o.data()[e] * d.data()[e];
        return sum;
      };
      reference::ZetaGradient gradient;
      const double theta = std::log(0.6 / 0.4);
      loss(theta, &gradient);
      INFO(kind);
      CHECK(got == Approx(gradient.dtheta).epsilon(1e-4).margin(1e-5));
      const double difference = (loss(theta + 1e-4, nullptr) - loss(theta - 1e-4, nullptr)) / 2e-4;
      CHECK(gradient.dtheta == Approx(difference).epsilon(1e-5).margin(1e-6));
    }
}

TEST_CASE("decoding chooses the same keys as the parallel form, to the bit", "[methods][zeta]") {
  for (const Settings& settings :
       {Settings{}, Settings{{"top_k", Index{8}}, {"chunk", Index{16}}},
        Settings{{"top_k", Index{6}}, {"chunk", Index{50}}, {"history", false}},
        Settings{{"top_k", Index{8}}, {"chunk", Index{1}}, {"d_key", Index{8}}}}) {
    const Problem p = problem(700, true, 12);
    const QKV in = random_inputs(p, 13);
    const auto chosen = chosen_keys("zeta", settings, p, in);
    const TensorD want = cast<double>(run_method("zeta", settings, p, in).out);
    const auto decoder =
        make_method("zeta", settings)
            ->make_decoder({.batch = 1, .heads = 2, .capacity = p.n, .d_k = p.d_k, .d_v = p.d_v});
    Tensor got(want.shape());
    std::vector<float> q(24), k(24), v(10), out(10);
    for (Index t = 0; t < p.n; ++t) {
      for (Index h = 0; h < 2; ++h) {
        std::copy_n(in.q.head(0, h).row(t).data(), 12, q.data() + 12 * h);
        std::copy_n(in.k.head(0, h).row(t).data(), 12, k.data() + 12 * h);
        std::copy_n(in.v.head(0, h).row(t).data(), 5, v.data() + 5 * h);
      }
      decoder->step({q.data(), k.data(), v.data()}, out.data());
      for (Index h = 0; h < 2; ++h) {
        Set keys;
        for (const VisibleKey& key : decoder->visible(0, h)) keys.insert(key.position);
        CHECK(keys == chosen[static_cast<std::size_t>(h)][static_cast<std::size_t>(t)]);
        std::copy_n(out.data() + 5 * h, 5, got.head(0, h).row(t).data());
      }
    }
    CHECK(relative_error(got, want) <= 1e-5);
  }
}

TEST_CASE("recall rises with the window to one, and no choice is nearer than the exact one",
          "[methods][zeta]") {
  const Problem p = problem(400, true);
  const QKV in = random_inputs(p, 14);
  const Settings common{{"top_k", Index{8}}, {"chunk", Index{40}}};
  const auto exact = chosen_keys("zeta_topk", common, p, in);
  double last = 0;
  for (const Index factor : {1, 2, 4, 8, 50}) {
    const auto found = chosen_keys("zeta", with(common, {{"window_factor", factor}}), p, in);
    double hits = 0, all = 0;
    for (std::size_t h = 0; h < 2; ++h)
      for (std::size_t i = 0; i < 400; ++i)
        for (const Index j : exact[h][i]) hits += found[h][i].contains(j) ? 1 : 0, ++all;
    CHECK(hits / all > last);
    last = hits / all;
    CHECK(mean_distance(p, in, exact) <= mean_distance(p, in, found) + 1e-9);
  }
  CHECK(last == 1);
}

TEST_CASE("the metrics of recall agree with the chosen keys", "[methods][zeta]") {
  const Problem p = problem(64, true);  // every query of a head is in the sample
  QKV in = random_inputs(p, 15);
  for (Tensor* x : {&in.q, &in.k}) x->head(0, 1) = x->head(0, 0);
  const Settings settings{{"top_k", Index{3}}, {"chunk", Index{8}}, {"window_factor", Index{1}}};
  const auto recall = [&](const std::string& name, const Settings& s) {
    const auto method = make_method(name, s);
    method->prepare(p, {});
    Tensor out(p.batch, p.heads, p.n, p.d_v);
    method->forward(in.inputs(), out, nullptr);
    std::map<std::string, double> values;
    for (const Metric& metric : method->metrics()) values[metric.name] = metric.value;
    return values;
  };
  Settings exact = settings;
  exact.erase("window_factor");
  const auto want = chosen_keys("zeta_topk", exact, p, in);
  const auto got = chosen_keys("zeta", settings, p, in);
  double hits = 0, all = 0;
  for (std::size_t i = 0; i < 64; ++i)
    for (const Index j : want[0][i]) hits += got[0][i].contains(j) ? 1 : 0, ++all;
  CHECK(recall("zeta", settings).at("pool_recall") == Approx(hits / all));
  CHECK(hits / all < 1);
  CHECK(recall("zeta_topk", exact).at("pool_recall") == 1);
  CHECK(recall("zeta_topk", exact).at("past_recall") < 1);
  CHECK(recall("cauchy_topk", {{"top_k", Index{3}}}).at("past_recall") == 1);
}
