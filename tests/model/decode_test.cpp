// Decoding of whole models: against the parallel forward, for every kind of model and method.
#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "harness/measure/alloc_counter.h"
#include "harness/model/model_decoder.h"
#include "tests/model/saved_model.h"

namespace subquad {
namespace {

DecodingSetup with(const std::string& method, const Settings& settings = {}, Index batch = 1) {
  return {.method = method,
          .settings = resolve(method, Registry::instance().method(method).params, settings),
          .batch = batch,
          .seed = 5};
}

std::vector<ModelTrace> traces_of(const TrainedModel& model, Index count) {
  const TokenBatch batch =
      model.task().tokens(Split::test, 0, count, model.sizes().n, model.setup().seed);
  std::vector<ModelTrace> traces;
  for (Index b = 0; b < count; ++b)
    traces.push_back(model.trace(
        {batch.tokens.data() + b * model.sizes().n, static_cast<std::size_t>(model.sizes().n)}));
  return traces;
}

// Logits of all positions from `prompt` on: [batch, n - prompt, classes].
Tensor decoded(const TrainedModel& model, ModelDecoder& decoder,
               const std::vector<ModelTrace>& traces, Index prompt) {
  const Index n = model.sizes().n, batch = decoder.batch(), classes = decoder.classes();
  Tensor out(batch, 1, n - prompt, classes);
  decoder.reset();
  decoder.prefill(traces, prompt);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch));
  std::vector<float> logits(static_cast<std::size_t>(batch * classes));
  for (Index t = prompt; t < n; ++t) {
    for (std::size_t b = 0; b < tokens.size(); ++b)
      tokens[b] = traces[b].tokens[static_cast<std::size_t>(t)];
    decoder.step(tokens, logits.data());
    for (Index b = 0; b < batch; ++b)
      std::copy_n(logits.data() + b * classes, classes,
                  out.view().head_data(b, 0) + (t - prompt) * classes);
  }
  return out;
}

// Largest difference to the parallel forward, over the largest logit.
double apart(const Tensor& out, const std::vector<ModelTrace>& traces) {
  double worst = 0, largest = 0;
  for (Index b = 0; b < out.batch(); ++b) {
    const Matrix& all = traces[static_cast<std::size_t>(b)].logits;
    const Matrix expected = all.bottomRows(out.n());
    const Matrix got = out.view().head(b, 0);
    if (!got.allFinite()) return INFINITY;
    worst = std::max(worst, static_cast<double>((got - expected).cwiseAbs().maxCoeff()));
    largest = std::max(largest, static_cast<double>(expected.cwiseAbs().maxCoeff()));
  }
  REQUIRE(largest > 0.1);
  return worst / largest;
}

const Settings kSmall{{"vocabulary", Index{64}}, {"pairs", Index{2}}};

}  // namespace

TEST_CASE("decoding a model by dense attention is its parallel forward", "[model][decode]") {
  const auto text = [](const char* t) { return std::string(t); };
  const std::vector<Settings> kinds{
      {{"positions", text("learned")}},
      {{"positions", text("sinusoidal")}, {"tied", false}},
      {{"positions", text("sinusoidal_concat")}, {"activation", text("relu")}},
      {{"positions", text("rope")}, {"conv", Index{4}}, {"activation", text("gelu_tanh")}},
      {{"positions", text("none")}, {"norm", text("post")}, {"conv", Index{3}}},
      {{"positions", text("rope")}, {"mlp", 0.0}},
      {{"positions", text("learned")}, {"mlp", 1.5}, {"norm", text("post")}}};
  for (const Settings& kind : kinds) {
    INFO(to_string(kind));
    const SavedModel saved("mqar", kSmall, kind, 24);
    const TrainedModel model(saved.path());
    const std::vector<ModelTrace> traces = traces_of(model, 2);
    for (const char* method : {"dense", "dense_stateful"}) {
      ModelDecoder decoder(model, with(method, {}, 2));
      for (const Index prompt : {0, 1, 9}) {
        INFO(method << " prompt=" << prompt);
        CHECK(apart(decoded(model, decoder, traces, prompt), traces) <= 1e-4);
        CHECK(decoder.length() == 24);
      }
    }
  }
}

TEST_CASE("a model without a cache is its parallel forward of every length", "[model][decode]") {
  const auto uncached = [](const std::string& method) {
    DecodingSetup setup = with(method, {}, 2);
    setup.cache = false;
    return setup;
  };
  const auto text = [](const char* t) { return std::string(t); };
  for (const Settings& kind :
       std::vector<Settings>{{{"positions", text("learned")}, {"tied", false}},
                             {{"positions", text("rope")}, {"conv", Index{4}}},
                             {{"positions", text("sinusoidal_concat")}, {"norm", text("post")}}}) {
    INFO(to_string(kind));
    const SavedModel saved("mqar", kSmall, kind, 24);
    const TrainedModel model(saved.path());
    const std::vector<ModelTrace> traces = traces_of(model, 2);
    ModelDecoder decoder(model, uncached("dense"));
    for (const Index prompt : {0, 9})
      CHECK(apart(decoded(model, decoder, traces, prompt), traces) <= 1e-4);
    CHECK(decoder.bytes().kv == 0);
    CHECK(decoder.bytes().aux == 4.0 * 24);
    // No decoder, and what a token sees hangs on later ones: a whole forward has none.
    ModelDecoder lsh(model, uncached("reformer"));
    CHECK(std::isfinite(apart(decoded(model, lsh, traces, 20), traces)));
    CHECK_THROWS_AS(ModelDecoder(model, with("reformer", {}, 2)), Unsupported);
    CHECK_THROWS_WITH(ModelDecoder(model, uncached("sea")), Catch::Contains("trained with dense"));
  }
  for (const char* method : {"linear", "performer", "sea"}) {  // with parameters, and without
    INFO(method);
    const SavedModel saved("mqar", kSmall, {{"positions", text("rope")}}, 24, method);
    const TrainedModel model(saved.path());
    const std::vector<ModelTrace> traces = traces_of(model, 2);
    ModelDecoder decoder(model, uncached(method));
    CHECK(apart(decoded(model, decoder, traces, 20), traces) <= 1e-3);
  }
}

TEST_CASE("policies with room for all tokens decode a model as dense attention does",
          "[model][decode]") {
  const SavedModel saved("mqar", kSmall, {{"positions", std::string("rope")}}, 24);
  const TrainedModel model(saved.path());
  const std::vector<ModelTrace> traces = traces_of(model, 2);
  for (const MethodEntry* entry : Registry::instance().methods()) {
    if (entry->info.family != "cache_policy" || entry->info.name == "subgen") continue;
    INFO(entry->info.name);
    ModelDecoder all(model, with(entry->info.name, {{"m", Index{24}}}, 2));
    CHECK(apart(decoded(model, all, traces, 7), traces) <= 1e-4);
    ModelDecoder few(model, with(entry->info.name, {{"m", Index{4}}}, 2));
    const double error = apart(decoded(model, few, traces, 7), traces);
    CHECK(error > 1e-3);
    CHECK(std::isfinite(error));
    // Two layers of two heads, twice: the formula of the budget.
    CHECK(few.bytes().kv == 4.0 * 4 * 2 * 2 * 2 * (8 + 6));
    CHECK(all.bytes().kv == 4.0 * 24 * 2 * 2 * 2 * (8 + 6));
  }
}

TEST_CASE("a model decodes with the method that it was trained with", "[model][decode]") {
  for (const char* method : {"linear", "performer", "lightning2", "deltanet", "sliding_window"}) {
    INFO(method);
    const SavedModel saved("mqar", kSmall, {{"positions", std::string("rope")}}, 24, method);
    const TrainedModel model(saved.path());
    const std::vector<ModelTrace> traces = traces_of(model, 1);
    ModelDecoder decoder(model, with(method));
    CHECK(apart(decoded(model, decoder, traces, 0), traces) <= 1e-4);
    CHECK(apart(decoded(model, decoder, traces, 10), traces) <= 1e-4);
  }
}

TEST_CASE("parameters of a method come from the model that was trained with it",
          "[model][decode]") {
  const SavedModel saved("mqar", kSmall, {{"learning_rate", 0.5}}, 24, "zeta");
  const TrainedModel model(saved.path());
  ModelDecoder own(model, with("zeta"));
  CHECK(own.learned_from() == "train");
  ModelDecoder other(model, with("zeta", {{"top_k", Index{3}}}));
  CHECK(other.learned_from() == "initial");
  ModelDecoder none(model, with("window"));
  CHECK(none.learned_from().empty());
}

TEST_CASE("a step of a decoded model allocates nothing once warm", "[model][decode]") {
  if (!hooks_active()) return;
  const SavedModel saved("mqar", kSmall, {{"conv", Index{3}}}, 24);
  const TrainedModel model(saved.path());
  for (const char* method : {"dense", "window", "h2o", "adore", "linear"}) {
    INFO(method);
    ModelDecoder decoder(model, with(method));
    std::vector<float> logits(static_cast<std::size_t>(decoder.classes()));
    std::uint64_t before = 0;
    for (std::int32_t t = 0; t < 24; ++t) {
      if (t == 2) before = alloc_calls();
      decoder.step({&t, 1}, logits.data());
    }
    CHECK(alloc_calls() - before == 0);
  }
}

TEST_CASE("rebuilding through all layers is exact where everything is seen", "[model][decode]") {
  const SavedModel saved("mqar", kSmall, {{"positions", std::string("rope")}, {"conv", Index{3}}},
                         24);
  const TrainedModel model(saved.path());
  const std::vector<ModelTrace> traces = traces_of(model, 2);
  const auto error = [&](Index m, Index r, const char* score, Index prompt) {
    ModelDecoder decoder(
        model,
        with("adore",
             {{"m", m}, {"r", r}, {"score", std::string(score)}, {"rebuild", std::string("model")}},
             2));
    return apart(decoded(model, decoder, traces, prompt), traces);
  };
  for (const char* score : {"gru", "recency", "random"})
    for (const Index prompt : {0, 7}) {
      INFO(score << " prompt=" << prompt);
      CHECK(error(24, 0, score, prompt) <= 1e-4);
      // All released tokens come back in every step, each after those before it.
      for (const Index m : {1, 5}) CHECK(error(m, 24, score, prompt) <= 1e-4);
      CHECK(error(5, 2, score, prompt) > 1e-3);
    }
}

TEST_CASE("in one layer, rebuilding through the model is fetching a copy", "[model][decode]") {
  const SavedModel saved("mqar", kSmall,
                         {{"layers", Index{1}}, {"positions", std::string("learned")}}, 24);
  const TrainedModel model(saved.path());
  const std::vector<ModelTrace> traces = traces_of(model, 2);
  for (const char* score : {"gru", "mlp", "recency", "random"})
    for (const char* form : {"additive", "pairwise"}) {
      const auto run = [&](const char* rebuild, bool keep) {
        ModelDecoder decoder(model, with("adore", {{"m", Index{5}},
                                                   {"r", Index{3}},
                                                   {"score", std::string(score)},
                                                   {"score_form", std::string(form)},
                                                   {"keep_rebuilt", keep},
                                                   {"prefill", std::string("prompt")},
                                                   {"rebuild", std::string(rebuild)}}));
        return decoded(model, decoder, {traces.begin(), traces.begin() + 1}, 6);
      };
      for (const bool keep : {true, false}) {
        INFO(score << " " << form << " keep=" << keep);
        const Tensor copied = run("copy", keep), rebuilt = run("model", keep);
        double worst = 0;
        for (Index e = 0; e < copied.size(); ++e)
          worst = std::max(worst, std::abs(static_cast<double>(copied.data()[e]) -
                                           static_cast<double>(rebuilt.data()[e])));
        CHECK(worst <= 1e-5);
      }
    }
}

TEST_CASE("a plan keeps m tokens, fetches r others and always sees the new one",
          "[model][decode]") {
  const SavedModel saved("mqar", kSmall, {}, 24);
  const TrainedModel model(saved.path());
  ModelDecoder decoder(model, with("adore", {{"m", Index{5}},
                                             {"r", Index{2}},
                                             {"score", std::string("random")},
                                             {"rebuild", std::string("model")}}));
  std::vector<float> logits(static_cast<std::size_t>(decoder.classes()));
  for (std::int32_t t = 0; t < 24; ++t) {
    const std::uint64_t before = alloc_calls();
    decoder.step({&t, 1}, logits.data());
    const std::uint64_t allocated = alloc_calls() - before;
    if (t > 0) CHECK(allocated == 0);
    const auto seen = decoder.seen(0);
    const std::set<std::int32_t> places(seen.begin(), seen.end());
    CHECK(places.size() == seen.size());
    CHECK(seen.back() == t);
    CHECK(static_cast<Index>(seen.size()) == std::min<Index>(t + 1, 8));
    CHECK(decoder.bytes().kv ==
          4.0 * 2 * 2 * (8 + 6) * static_cast<double>(std::min<Index>(t + 1, 5)));
  }
}

TEST_CASE("random plans of two sequences are two draws", "[model][decode]") {
  const SavedModel saved("mqar", kSmall, {}, 24);
  const TrainedModel model(saved.path());
  ModelDecoder decoder(model, with("adore",
                                   {{"m", Index{5}},
                                    {"r", Index{0}},
                                    {"score", std::string("random")},
                                    {"rebuild", std::string("model")}},
                                   2));
  std::vector<float> logits(static_cast<std::size_t>(2 * decoder.classes()));
  for (std::int32_t t = 0; t < 24; ++t) {
    const std::int32_t both[] = {t, t};
    decoder.step(both, logits.data());
  }
  const auto set = [&](Index b) {
    const auto seen = decoder.seen(b);
    return std::set<std::int32_t>(seen.begin(), seen.end());
  };
  CHECK(set(0) != set(1));
}

TEST_CASE("the seed of random methods differs from layer to layer and comes with weights",
          "[model][decode]") {
  // Two layers of random features: with the second's seed in both, the output would be another.
  const SavedModel saved("mqar", kSmall, {}, 24, "performer");
  const TrainedModel model(saved.path());
  const std::vector<ModelTrace> traces = traces_of(model, 1);
  ModelDecoder own(model, with("performer"));
  CHECK(apart(decoded(model, own, traces, 0), traces) <= 1e-4);
  ModelDecoder other(model, with("performer", {{"features", Index{8}}}));
  CHECK(apart(decoded(model, other, traces, 0), traces) > 1e-3);
  CHECK(own.keys_per_query(12) <= own.keys_per_query(24));
  ModelDecoder dense(model, with("dense"));
  CHECK(dense.keys_per_query(12) < dense.keys_per_query(24));
}

TEST_CASE("models and methods that cannot be decoded are refused", "[model][decode]") {
  {
    const SavedModel saved("listops", {}, {}, 64);
    const TrainedModel model(saved.path());
    CHECK_THROWS_AS(ModelDecoder(model, with("dense")), Unsupported);
  }
  const SavedModel saved("mqar", kSmall, {}, 24);
  const TrainedModel model(saved.path());
  CHECK_THROWS_AS(ModelDecoder(model, with("dense_naive")), Unsupported);
  for (const char* rebuild : {"project", "model"})
    CHECK_THROWS_AS(ModelDecoder(model, with("adore", {{"rebuild", std::string(rebuild)},
                                                       {"score", std::string("h2o")}})),
                    Unsupported);
  ModelDecoder decoder(model, with("dense"));
  std::vector<float> logits(static_cast<std::size_t>(decoder.classes()));
  const std::int32_t token = 64;
  CHECK_THROWS_AS(decoder.step({&token, 1}, logits.data()), InternalError);
}

}  // namespace subquad
