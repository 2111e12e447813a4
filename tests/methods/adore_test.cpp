// ADORE and SubGen: what their papers and the method's own description promise.
#include "tests/reference/adore.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdio>
#include <filesystem>
#include <set>

#include "harness/autodiff/ops.h"
#include "harness/core/method_weights.h"
#include "methods/engines/adore_gradient.h"
#include "methods/engines/token_scorers.h"
#include "tests/methods/method_fixture.h"
#include "tests/reference/cache_policy.h"
#include "tests/reference/softmax_attention.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

Problem sequence(Index n, Index heads = 2) {
  return {.batch = 1, .heads = heads, .n = n, .n_kv = n, .d_k = 12, .d_v = 20, .causal = true};
}

Tensor run(const std::string& name, const Settings& settings, const Problem& p, const QKV& in) {
  return run_method(name, settings, p, in).out;
}

double apart(const Tensor& a, const Tensor& b) { return relative_error(a, cast<double>(b)); }

// Rows of the attention matrix of head h.
Matrix shown(const std::string& name, const Settings& settings, const Problem& p, const QKV& in,
             Index h) {
  const auto method = make_method(name, settings);
  method->prepare(p, {});
  std::vector<Index> rows(static_cast<std::size_t>(p.n));
  for (Index i = 0; i < p.n; ++i) rows[static_cast<std::size_t>(i)] = i;
  Matrix weights(p.n, p.n);
  REQUIRE(method->attention_rows(in.inputs(), 0, h, rows, weights));
  return weights;
}

}  // namespace

TEST_CASE("fetching everything that was released is dense attention", "[cache_policy][adore]") {
  const Problem p = sequence(70);
  const QKV in = random_inputs(p, 1, 3);
  const Tensor dense = run("dense", {}, p, in);
  for (const Index m : {1, 5, 40})
    for (const char* name : {"adore", "adore_oracle"}) {
      INFO(name << " m=" << m);
      CHECK(apart(run(name, {{"m", m}, {"r", Index{70}}}, p, in), dense) <= 1e-6);
    }
}

TEST_CASE("ADORE with true scores and r = m sees the m tokens of largest weight",
          "[cache_policy][adore]") {
  const Problem p = sequence(80, 1);
  const QKV in = random_inputs(p, 2, 3);
  const Matrix weights = shown("adore_oracle", {{"m", Index{6}}, {"r", Index{6}}}, p, in, 0);
  const Matrix best = shown("topk_exact", {{"top_k", Index{6}}}, p, in, 0);
  for (Index i = 0; i < p.n; ++i)
    for (Index j = 0; j <= i; ++j)
      if (best(i, j) > 0) CHECK(weights(i, j) > 0);
  // With less rebuilding some are missed, and the fewer the more is fetched.
  const auto missed = [&](Index r) {
    const Matrix w = shown("adore_oracle", {{"m", Index{6}}, {"r", r}}, p, in, 0);
    Index count = 0;
    for (Index e = 0; e < w.size(); ++e) count += best.data()[e] > 0 && !(w.data()[e] > 0);
    return count;
  };
  CHECK(missed(0) > missed(1));
  CHECK(missed(1) > missed(3));
  CHECK(missed(3) > 0);
}

TEST_CASE("fetched tokens are none of the cache, and stay only where they may",
          "[cache_policy][adore]") {
  const Problem p = sequence(60, 1);
  const QKV in = random_inputs(p, 3, 3);
  const auto kept = [&](bool keep) {
    return shown("adore",
                 {{"m", Index{8}},
                  {"r", Index{2}},
                  {"score", std::string("random")},
                  {"keep_rebuilt", keep}},
                 p, in, 0);
  };
  // Without keep_rebuilt a token that is seen after it was released is never there twice running
  // but by chance of another fetch: compare what is seen in all with what a cache of 8 can hold.
  const Matrix with = kept(true), without = kept(false);
  for (Index i = 11; i < p.n; ++i) {
    CHECK((with.row(i).array() > 0).count() == 11);  // 8 cached, 2 fetched, the current one
    CHECK((without.row(i).array() > 0).count() == 11);
  }
  CHECK((with - without).norm() > 0.1f);
}

TEST_CASE("projected keys and values are the copied ones", "[cache_policy][adore]") {
  const Problem p = sequence(50);
  QKV in = random_inputs(p, 4);
  constexpr Index kWidth = 9;
  Tensor w_k(1, p.heads, p.d_k, kWidth), w_v(1, p.heads, p.d_v, kWidth);
  fill_normal(5, w_k.data(), w_k.size());
  fill_normal(6, w_v.data(), w_v.size());
  in.x = Tensor(1, 1, p.n, kWidth);
  fill_normal(7, in.x.data(), in.x.size());
  for (Index h = 0; h < p.heads; ++h) {
    in.k.head(0, h) = in.x.head(0, 0) * w_k.head(0, h).transpose();
    in.v.head(0, h) = in.x.head(0, 0) * w_v.head(0, h).transpose();
  }
  const auto decode = [&](const char* rebuild, CacheBytes* bytes) {
    DecodeConfig config{.heads = p.heads, .capacity = p.n, .d_k = p.d_k, .d_v = p.d_v};
    config.d_e = kWidth;
    config.w_k = w_k.data(), config.w_v = w_v.data();
    const auto decoder = make_method("adore", {{"m", Index{7}},
                                               {"rebuild", std::string(rebuild)},
                                               {"score", std::string("random")}})
                             ->make_decoder(config);
    Tensor out(p.n, p.heads, 1, p.d_v);
    for (Index t = 0; t < p.n; ++t) {
      std::vector<float> q, k, v;
      for (Index h = 0; h < p.heads; ++h) {
        const auto take = [&](const Tensor& x, std::vector<float>* to) {
          const float* row = x.data() + (h * p.n + t) * x.d();
          to->insert(to->end(), row, row + x.d());
        };
        take(in.q, &q), take(in.k, &k), take(in.v, &v);
      }
      decoder->step({q.data(), k.data(), v.data(), in.x.data() + t * kWidth},
                    out.data() + t * p.heads * p.d_v);
    }
    *bytes = decoder->bytes();
    return out;
  };
  CacheBytes copied, projected;
  CHECK(apart(decode("copy", &copied), decode("project", &projected)) <= 1e-5);
  CHECK(copied.cold == 4.0 * 50 * 2 * (12 + 20));
  CHECK(projected.cold == 4.0 * 50 * kWidth);
  CHECK(copied.kv == 4.0 * 7 * 2 * (12 + 20));
  const auto refusal = [&](const char* rebuild) {
    return unsupported_reason(Registry::instance().method("adore"),
                              *make_method("adore", {{"rebuild", std::string(rebuild)}}), p,
                              Pass::forward);
  };
  CHECK(refusal("copy").empty());
  CHECK(refusal("project").find("projections") != std::string::npos);
  CHECK(refusal("model").find("layers") != std::string::npos);
}

TEST_CASE("a history read at once ends with the m best for its last token",
          "[cache_policy][adore]") {
  const Problem p = sequence(61, 1);
  const QKV in = random_inputs(p, 8, 3);
  const auto seen_after = [&](const Settings& settings) {
    const auto decoder = make_method("adore", settings)
                             ->make_decoder({.heads = 1, .capacity = p.n, .d_k = 12, .d_v = 20});
    const auto first = [](const Tensor& x) {
      Tensor part(1, 1, 60, x.d());
      std::copy_n(x.data(), part.size(), part.data());
      return part;
    };
    const Tensor q = first(in.q), k = first(in.k), v = first(in.v);
    decoder->prefill(q, k, v, {});
    std::vector<float> out(20);
    decoder->step({in.q.data() + 60 * 12, in.k.data() + 60 * 12, in.v.data() + 60 * 20, nullptr},
                  out.data());
    std::set<Index> places;
    for (const VisibleKey& key : decoder->visible(0, 0)) places.insert(key.position);
    return places;
  };
  CHECK(seen_after({{"m", Index{5}},
                    {"r", Index{0}},
                    {"score", std::string("recency")},
                    {"prefill", std::string("prompt")}}) ==
        std::set<Index>{55, 56, 57, 58, 59, 60});
  CHECK(seen_after({{"m", Index{60}}, {"prefill", std::string("prompt")}}).size() == 61);
  CHECK(seen_after({{"m", Index{5}}, {"r", Index{2}}, {"prefill", std::string("prompt")}}).size() ==
        8);
}

// ---- the controller ----

namespace {

StreamConfig stream_of(Index n, Index d_e) {
  return {.heads = 1, .capacity = n, .d_k = 4, .d_v = 4, .d_e = d_e};
}

template <class T>
struct Net {  // the parameters of a controller as T, and room for gradients
  std::vector<std::vector<T>> value, grad;
  ControllerTensors<const T> read;
  ControllerTensors<T> grads;

  explicit Net(const AdoreController& net) {
    const Parameter* all[] = {&net.w,  &net.u,      &net.b_w, &net.b_u, &net.distance,
                              &net.w1, &net.w1_now, &net.b1,  &net.w2,  &net.b2};
    for (const Parameter* p : all) {
      value.emplace_back(p->value.data(), p->value.data() + p->value.size());
      grad.emplace_back(value.back().size());
    }
    auto v = value.begin();
    for (const T** to : {&read.w, &read.u, &read.b_w, &read.b_u, &read.distance, &read.w1,
                         &read.w1_now, &read.b1, &read.w2, &read.b2})
      *to = (v++)->data();
    auto g = grad.begin();
    for (T** to : {&grads.w, &grads.u, &grads.b_w, &grads.b_u, &grads.distance, &grads.w1,
                   &grads.w1_now, &grads.b1, &grads.w2, &grads.b2})
      *to = (g++)->data();
  }
};

std::vector<PairSample> some_pairs(Index length) {
  std::vector<PairSample> pairs;
  Random random(9);
  for (Index n = 2; n < length; ++n)
    for (int e = 0; e < 3; ++e)
      pairs.push_back({static_cast<std::int32_t>(n),
                       static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(n))),
                       random.uniform() < 0.5 ? 1.f : 0.f});
  return pairs;
}

}  // namespace

TEST_CASE("the controller's gradient is that of central differences", "[cache_policy][adore]") {
  constexpr Index kLength = 23, kWidth = 5;
  std::vector<double> x(kLength * kWidth);
  Random random(10);
  for (double& v : x) v = random.normal();
  const std::vector<PairSample> pairs = some_pairs(kLength);
  for (const bool gru : {true, false})
    for (const bool pairwise : {true, false}) {
      INFO("gru=" << gru << " pairwise=" << pairwise);
      const ControllerOptions options{
          .gru = gru, .pairwise = pairwise, .d_z = 6, .hidden = 4, .distances = 20};
      const AdoreController net(options, kWidth, 11);
      Net<double> d(net);
      ControllerWork<double> work;
      controller_loss<double>(options, kWidth, d.read, x.data(), kLength, pairs, &d.grads, &work);
      const auto loss = [&] {
        return controller_loss<double>(options, kWidth, d.read, x.data(), kLength, pairs, nullptr,
                                       &work);
      };
      double worst = 0;
      for (std::size_t i = 0; i < d.value.size(); ++i)
        for (std::size_t e = 0; e < d.value[i].size(); ++e) {
          constexpr double kStep = 1e-6;
          const double kept = d.value[i][e];
          d.value[i][e] = kept + kStep;
          const double up = loss();
          d.value[i][e] = kept - kStep;
          const double slope = (up - loss()) / (2 * kStep);
          d.value[i][e] = kept;
          worst = std::max(worst, std::abs(slope - d.grad[i][e]));
        }
      CHECK(worst <= 1e-8);
    }
}

TEST_CASE("the recurrence of the loss is the autodiff GRU cell, and that of decoding",
          "[cache_policy][adore]") {
  constexpr Index kLength = 30, kWidth = 5;
  std::vector<float> x(kLength * kWidth);
  Random random(12);
  for (float& v : x) v = static_cast<float>(random.normal());
  const ControllerOptions options{.pairwise = true, .d_z = 6, .hidden = 4, .distances = 20};
  auto net = std::make_shared<AdoreController>(options, kWidth, 13);
  Net<float> f(*net);
  ControllerWork<float> work;
  const std::vector<PairSample> pairs = some_pairs(kLength);
  controller_loss<float>(options, kWidth, f.read, x.data(), kLength, pairs, nullptr, &work);

  autodiff::Tape<float> tape;
  const auto constant = [&](const Parameter& p, autodiff::Dims dims) {
    return tape.constant(p.value.data(), dims);
  };
  const std::vector<float> zero(6);
  autodiff::Var<float> z = tape.constant(zero.data(), {1, 6});
  for (Index t = 0; t < kLength; ++t) {
    z = autodiff::gru_cell(tape.constant(x.data() + t * kWidth, {1, kWidth}), z,
                           constant(net->w, {18, kWidth}), constant(net->u, {18, 6}),
                           constant(net->b_w, {18}), constant(net->b_u, {18}));
    for (Index c = 0; c < 6; ++c) CHECK(work.z(t, c) == Approx(z.data()[c]).margin(1e-6));
  }

  // Scores of decoding against the formula, all tokens at once and some, in both layouts.
  StreamTokens token;
  for (const bool all : {true, false}) {
    const auto scorer = make_controller_scorer(stream_of(kLength, kWidth), net, all);
    scorer->reset();
    for (Index n = 0; n < kLength; ++n) {
      token.x = x.data() + n * kWidth;
      scorer->append(token, n);
      std::vector<float> past(static_cast<std::size_t>(n + 1), -99.f), some(past);
      std::vector<std::int32_t> places;
      for (Index i = 0; i < n; ++i) places.push_back(static_cast<std::int32_t>(i));
      scorer->score_past(n, past.data());
      scorer->score_some(n, places.data(), n, some.data());
      CHECK(past[static_cast<std::size_t>(n)] == -99.f);
      for (Index i = 0; i < n; ++i) {
        float want = net->b2.value[0];
        for (Index j = 0; j < 4; ++j)
          want +=
              net->w2.value[j] * std::max(0.f, work.a(i, j) + work.now(n, j) + net->b1.value[j] +
                                                   work.by_distance(distance_bucket(n - i, 20), j));
        CHECK(past[static_cast<std::size_t>(i)] == Approx(want).margin(1e-5));
        CHECK(some[static_cast<std::size_t>(i)] == Approx(want).margin(1e-5));
      }
    }
  }
}

TEST_CASE("distances are exact below 16, then four an octave", "[cache_policy][adore]") {
  CHECK(distance_bucket(1, 512) == 1);
  CHECK(distance_bucket(15, 512) == 15);
  CHECK(distance_bucket(16, 512) == 16);
  CHECK(distance_bucket(19, 512) == 16);
  CHECK(distance_bucket(20, 512) == 17);
  CHECK(distance_bucket(32, 512) == 20);
  CHECK(distance_bucket(511, 512) == 35);
  CHECK(distance_bucket(100000, 512) == 35);
  CHECK(distance_bucket(9, 4) == 3);
}

namespace {

// Sequences whose keys of sign + are attended to, and embeddings that tell the sign.
class Signs final : public FitData {
 public:
  explicit Signs(bool embeddings) : embeddings_(embeddings) {}
  void next(Inputs* inputs, ConstTensorView* dense) override {
    const Problem p = sequence(60, 1);
    in_ = random_inputs(p, ++seed_, 0.1f);
    in_.x = Tensor(1, 1, p.n, 3);
    Random random(seed_, "signs");
    for (Index t = 0; t < p.n; ++t) {
      const float sign = random.uniform() < 0.5 ? -1.f : 1.f;
      in_.q.data()[t * p.d_k] = 3;
      in_.k.data()[t * p.d_k] = 3 * sign;
      for (Index c = 0; c < 3; ++c)
        in_.x.data()[t * 3 + c] = (c == 0 ? sign : 0) + 0.1f * static_cast<float>(random.normal());
    }
    *inputs = in_.inputs();
    if (!embeddings_) inputs->x = {};
    *dense = {};
  }
  const QKV& last() const { return in_; }

 private:
  QKV in_;
  Seed seed_ = 0;
  bool embeddings_;
};

}  // namespace

TEST_CASE("the controller learns what is attended to, and its file restores it",
          "[cache_policy][adore]") {
  const Problem p = sequence(60, 1);
  const std::string path =
      (std::filesystem::temp_directory_path() / "subquad_adore_test.safetensors").string();
  for (const bool embeddings : {true, false}) {
    INFO("embeddings=" << embeddings);
    const Settings settings{{"m", Index{12}}, {"r", Index{0}}, {"d_z", Index{8}}};
    const auto method = make_method("adore", settings);
    Env env;
    env.d_model = embeddings ? 3 : 0;
    method->prepare(p, env);
    Signs data(embeddings);
    FitOptions options;
    options.steps = 150;
    options.learning_rate = 1e-2;
    const FitReport report = method->fit(data, options);
    CHECK(report.steps == 150);
    save_method_weights(path, "adore", settings, *method);
    CHECK(report.first_loss > 0.5);
    CHECK(report.last_loss < 0.9 * report.first_loss);
    data.next(std::make_unique<Inputs>().get(), std::make_unique<ConstTensorView>().get());
    Inputs in = data.last().inputs();
    if (!embeddings) in.x = {};
    Tensor out(1, 1, p.n, p.d_v), again = out, untrained = out;
    method->forward(in, out, nullptr);
    // Half of the tokens matter; at the end hardly any other one is in the cache.
    const Index last[] = {p.n - 1};
    Matrix weights(1, p.n);
    REQUIRE(method->attention_rows(in, 0, 0, last, weights));
    Index wrong = 0;
    for (Index t = 0; t < p.n - 1; ++t)
      if (weights(0, t) > 0 && in.k.head(0, 0)(t, 0) < 0) ++wrong;
    CHECK((weights.array() > 0).count() == 13);
    CHECK(wrong <= 1);

    const auto restored = make_method("adore", settings);
    restored->prepare(p, env);
    load_method_weights(path, "adore", *restored);
    restored->forward(in, again, nullptr);
    CHECK(apart(again, out) == 0);
    const auto fresh = make_method("adore", settings);
    fresh->prepare(p, env);
    fresh->forward(in, untrained, nullptr);
    CHECK(apart(untrained, out) > 0.1);

    const auto other = make_method("adore", {{"m", Index{12}}});  // a wider state
    other->prepare(p, env);
    CHECK_THROWS_AS(load_method_weights(path, "adore", *other), UserError);
  }
  std::remove(path.c_str());
}

// ---- SubGen ----

TEST_CASE("SubGen is exact for one token, and with single clusters in its normaliser",
          "[cache_policy][subgen]") {
  const Problem p = sequence(1);
  const QKV in = random_inputs(p, 20);
  const Tensor out = run("subgen", {}, p, in);
  CHECK(apart(out, in.v) <= 1e-6);

  // delta = 0, one sample a cluster: tau is exact. With equal values the numerator is, in
  // expectation, their value times tau: the mean over seeds tends to v.
  Problem q = sequence(40, 1);
  QKV same = random_inputs(q, 21);
  for (Index t = 0; t < q.n; ++t) std::copy_n(same.v.data(), q.d_v, same.v.data() + t * q.d_v);
  double sum = 0, square = 0;
  constexpr int kSeeds = 400;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const auto method =
        make_method("subgen", {{"delta", 0.0}, {"per_cluster", Index{1}}, {"samples", Index{16}}});
    Env env;
    env.seed = static_cast<Seed>(seed);
    method->prepare(q, env);
    Tensor estimate(1, 1, q.n, q.d_v);
    method->forward(same.inputs(), estimate, nullptr);
    const double ratio = static_cast<double>(estimate.data()[39 * q.d_v] / same.v.data()[0]);
    sum += ratio, square += ratio * ratio;
  }
  const double mean = sum / kSeeds;
  const double error = std::sqrt((square / kSeeds - mean * mean) / kSeeds);
  CHECK(std::abs(mean - 1) <= 4 * error);
  CHECK(error < 0.05);
}

TEST_CASE("the mean of SubGen's numerator and normaliser over seeds is exact",
          "[cache_policy][subgen]") {
  // Two columns of values tell both apart: v = (1, x). num / tau of column 0 is num_1 / tau.
  Problem p{.batch = 1, .heads = 1, .n = 30, .n_kv = 30, .d_k = 6, .d_v = 2, .causal = true};
  const QKV in = random_inputs(p, 22);
  const reference::Call call = double_call(p, in);
  std::vector<Index> all;
  for (Index j = 0; j < p.n; ++j) all.push_back(j);
  const auto w = reference::weights_over(call, 0, 0, p.n - 1, all);
  // Every key a cluster of its own: tau exact, so the mean of the output is that of num / tau.
  constexpr int kSeeds = 2000;
  for (Index c = 0; c < 2; ++c) {
    double exact = 0, sum = 0, square = 0;
    for (Index j = 0; j < p.n; ++j)
      exact += w[static_cast<std::size_t>(j)] * static_cast<double>(in.v.data()[j * 2 + c]);
    for (int seed = 0; seed < kSeeds; ++seed) {
      const auto method = make_method(
          "subgen", {{"delta", 0.0}, {"samples", Index{32}}, {"per_cluster", Index{1}}});
      Env env;
      env.seed = static_cast<Seed>(seed);
      method->prepare(p, env);
      Tensor out(1, 1, p.n, 2);
      method->forward(in.inputs(), out, nullptr);
      const auto value = static_cast<double>(out.data()[(p.n - 1) * 2 + c]);
      sum += value, square += value * value;
    }
    const double mean = sum / kSeeds;
    CHECK(std::abs(mean - exact) <= 4 * std::sqrt((square / kSeeds - mean * mean) / kSeeds));
  }
  // Values of equal norm, many of them: the normaliser with real clusters, 1 / out of a constant
  // numerator. With v = 1 and as many samples as never run out, num estimates tau without bias.
  Problem one = p;
  one.d_v = 1;
  QKV ones(one);
  ones.q = in.q, ones.k = in.k;
  for (Index t = 0; t < one.n; ++t) ones.v.data()[t] = 1;
  double sum = 0, square = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    const auto method = make_method("subgen", {{"delta", 1.5}, {"samples", Index{512}}});
    Env env;
    env.seed = static_cast<Seed>(seed);
    method->prepare(one, env);
    Tensor out(1, 1, one.n, 1);
    method->forward(ones.inputs(), out, nullptr);
    const double inverse = 1 / static_cast<double>(out.data()[one.n - 1]);  // tau / num
    sum += inverse, square += inverse * inverse;
  }
  const double mean = sum / kSeeds;
  // 1 / num has a bias of its variance, below 1 % with 512 samples.
  CHECK(std::abs(mean - 1) <= 4 * std::sqrt((square / kSeeds - mean * mean) / kSeeds) + 0.01);
}
