// Built-in methods against the double-precision references: outputs and gradients.
#include <fmt/core.h>

#include <catch2/catch.hpp>

#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

// Settings worth testing beyond the defaults.
std::vector<Settings> settings_of(const std::string& name) {
  const auto window = [](Index w, Index s) { return Settings{{"window", w}, {"sinks", s}}; };
  if (name == "sliding_window")
    return {window(1, 0), window(2, 0), window(7, 3), window(64, 1), window(100, 70), {}};
  const auto one = [](const char* key, Index value) { return Settings{{key, value}}; };
  if (name == "topk_exact") {
    std::vector<Settings> all{one("top_k", 1), one("top_k", 5), {}};
    for (const std::string norm : {"frobenius", "frobenius_row1"})
      for (const Index k : {1, 5, 128}) all.push_back({{"top_k", k}, {"norm", norm}});
    return all;
  }
  if (name == "topk_value_exact") return {one("top_k", 1), one("top_k", 5), {}};
  if (name == "topk_block_exact") {
    std::vector<Settings> all{{}};
    for (const std::string norm : {"tv", "frobenius"})
      for (const auto& [block, blocks] : {std::pair<Index, Index>{1, 3}, {8, 1}, {7, 4}})
        all.push_back({{"block", block}, {"blocks", blocks}, {"norm", norm}});
    return all;
  }
  if (name == "svd_rank" || name == "block_rank_causal")
    return {one("rank", 1), one("rank", 5), {}};
  if (name == "column_sampling")
    return {one("samples", 1), {{"samples", Index{40}}, {"values", true}}, {}};
  if (name == "deltanet")
    return {{{"chunk", Index{16}}},  {{"beta", 1.0}},
            {{"beta", 0.0}},         {{"beta", 0.02}, {"normalize", false}},
            {{"chunk", Index{256}}}, {}};
  if (name == "lightning2")
    return {{{"decay", "none"}},
            {{"decay", "linear"}, {"layer", Index{1}}, {"layers", Index{3}}},
            {{"decay", "constant"}, {"lambda", 0.0}},
            {{"decay", "constant"}, {"lambda", 0.5}, {"chunk", Index{64}}},
            {{"layer", Index{3}}, {"layers", Index{4}}, {"chunk", Index{16}}},
            {}};
  if (name ==
      "performer")  // eps 0: the references have no stabiliser, whose size eps is measured by
    return {{{"eps", 0.0}},
            {{"form", "positive"}, {"eps", 0.0}, {"features", Index{40}}},
            {{"form", "positive"}, {"eps", 0.0}, {"orthogonal", false}},
            {{"eps", 0.0}, {"norms", "sqrt_d"}, {"features", Index{6}}},
            {{"eps", 0.0}, {"stabiliser", false}}};
  if (name == "linear")
    return {{{"eps", 0.0}},
            {{"eps", 1e-2}},
            {{"feature_map", "relu"}, {"relu_shift", 0.5}},
            {{"feature_map", "exp"}},
            {{"form", "sequential"}},
            {{"chunk", Index{16}}},
            {{"chunk", Index{48}}},
            {{"chunk", Index{256}}},
            {}};
  if (name == "longformer") {
    const auto wide = [](Index w, Index g) {
      return Settings{{"half_window", w}, {"global_tokens", g}};
    };
    return {wide(0, 0), wide(0, 1), wide(3, 0), wide(7, 3), wide(30, 70), {}};
  }
  if (name == "bigbird") {
    std::vector<Settings> all{{}};
    for (const std::string plan : {"all", "paper"})
      for (const auto& [block, r] : {std::pair<Index, Index>{1, 0}, {4, 2}, {7, 1}, {48, 3}})
        all.push_back({{"block", block}, {"random_blocks", r}, {"plan", plan}});
    return all;
  }
  if (name == "block_sparse") {
    std::vector<Settings> all{{}};
    for (const std::string pattern : {"strided", "fixed"})
      for (const auto& [block, stride] : {std::pair<Index, Index>{1, 4}, {8, 3}, {30, 2}, {5, 1}})
        all.push_back({{"block", block}, {"stride", stride}, {"pattern", pattern}});
    return all;
  }
  if (name == "conv_basis") {
    std::vector<Settings> all{{}};
    for (const std::string segmentation : {"scan_causal", "first_k", "uniform", "band_merge"})
      all.push_back({{"k", Index{5}}, {"segmentation", segmentation}});
    all.push_back(
        {{"segmentation", std::string("fixed")}, {"starts", std::string("0,1,9,30,128")}});
    for (const std::string engine : {"shared", "local", "partitioned"})
      all.push_back(
          {{"k", Index{6}}, {"segmentation", std::string("uniform")}, {"engine", engine}});
    all.push_back({{"probe", Index{1}}, {"k", Index{40}}});
    all.push_back({{"representative", std::string("mean")}, {"k", Index{3}}});
    all.push_back({{"gradient", std::string("plug_in")}, {"k", Index{4}}});
    return all;
  }
  if (name == "nprf") {
    const auto with = [](const char* key, ParamValue value) {
      return Settings{{"bias_std", 1.0}, {"features", Index{8}}, {key, value}};
    };
    return {{},
            with("engine", std::string("explicit")),
            with("engine", std::string("fft")),
            with("feature_map", std::string("elu")),
            with("bias_range", Index{3}),
            with("rpe", false),
            with("normalize", false)};
  }
  if (name == "clustered" || name == "improved_clustered") {
    std::vector<Settings> all{{}};
    for (const auto& [clusters, bits, top_k] :
         {std::tuple<Index, Index, Index>{1, 63, 6}, {5, 8, 40}, {40, 31, 1}}) {
      all.push_back({{"clusters", clusters},
                     {"bits", bits},
                     {"iterations", bits / 4},
                     {"hash_bias", bits != 8}});
      if (name == "improved_clustered") all.back()["top_k"] = top_k;
    }
    return all;
  }
  if (name == "reformer") {
    const auto lsh = [](Index rounds, Index bits, Index chunk, const char* combine, bool self) {
      return Settings{{"rounds", rounds},
                      {"bits", bits},
                      {"chunk", chunk},
                      {"round_combine", std::string(combine)},
                      {"attend_self", self}};
    };
    return {lsh(3, 4, 16, "mean", false), lsh(2, 1, 1, "mean", false), lsh(2, 2, 7, "mean", true),
            lsh(2, 2, 7, "lse", false),   lsh(2, 3, 100, "lse", true), {}};
  }
  if (name == "window" || name == "random_cache" || name == "release_oracle" ||
      name == "topk_oracle")
    return {one("m", 7), one("m", 1), one("m", 64), {}};
  if (name == "adore" || name == "adore_oracle") {
    // Scores of the controller are float32 and may tie to within rounding: cache_policy_test.
    std::vector<Settings> all;
    for (const Index r : {3, 0, 1000}) all.push_back({{"m", Index{16}}, {"r", r}});
    all.push_back({{"m", Index{9}}, {"keep_rebuilt", false}});
    all.push_back({{"m", Index{9}}, {"rebuild_gate", true}});
    all.push_back({{"m", Index{1}}});
    if (name == "adore_oracle") return all;
    for (Settings& s : all) s["score"] = std::string("h2o");
    all.push_back({{"m", Index{12}}, {"score", std::string("random")}});
    all.push_back({{"m", Index{12}}, {"score", std::string("recency")}});
    all.back().insert({{"protect_sinks", Index{3}}, {"r", Index{2}}});
    return all;
  }
  if (name == "streaming_llm")
    return {{{"m", Index{20}}, {"sinks", Index{3}}}, {{"m", Index{5}}, {"sinks", Index{9}}}, {}};
  if (name == "strided")
    return {{{"m", Index{12}}, {"stride", Index{5}}},
            {{"m", Index{12}}, {"recent", Index{0}}, {"stride", Index{2}}},
            {{"m", Index{9}}, {"recent", Index{9}}},
            {}};
  if (name == "h2o" || name == "keyformer" || name == "subgen_kcenter") {
    std::vector<Settings> all{one("m", 16), one("m", 1), {}};
    for (const Index recent : {0, 3, 16}) all.push_back({{"m", Index{16}}, {"recent", recent}});
    if (name == "h2o") all.push_back({{"m", Index{16}}, {"normalise_by_age", true}});
    if (name == "keyformer") {
      all.push_back({{"m", Index{16}}, {"noise", false}, {"tau_end", 1.0}});
      all.push_back({{"m", Index{16}}, {"reference_mask", true}});
    }
    return all;
  }
  if (name == "subgen")
    return {{},
            {{"samples", Index{3}}, {"per_cluster", Index{1}}, {"delta", 0.0}},
            {{"samples", Index{5}}, {"max_clusters", Index{4}}, {"delta", 2.0}}};
  if (name == "sea") {
    // A learned mask ranks float32 scores: the shorter the sequence, the fewer near ties.
    std::vector<Settings> all{{{"mask", std::string("local")}, {"top_k", Index{40}}}};
    const auto with = [&](Settings settings) {
      settings.insert({"n_max", Index{129}});
      settings.insert({"cells", Index{16}});
      settings.insert({"top_k", Index{5}});
      all.push_back(std::move(settings));
    };
    with({});
    with({{"cells", Index{64}}, {"top_k", Index{20}}});
    with({{"stretch", Index{1}}, {"channels", Index{3}}, {"kernel", std::string("relu")}});
    with({{"stretch", Index{8}}, {"repo_quirks", true}, {"avg_normalize", true}});
    with({{"cnn", false}, {"input_norm", std::string("block_ln")}, {"features", Index{20}}});
    with({{"query_skip", Index{4}}, {"position", std::string("learned")}});
    with({{"cell_map", std::string("absolute")}, {"mask_empty_cells", false}});
    with({{"position", std::string("nearest")}, {"gates", std::string("one")}});
    with({{"position", std::string("none")}});
    for (const std::string group : {"per_query", "per_head", "per_batch"}) with({{"group", group}});
    for (const std::string mask : {"oracle", "random"})
      with({{"mask", mask}, {"cells", Index{24}}});
    with({{"mask", std::string("identity")}, {"cells", Index{20}}});
    return all;
  }
  if (name == "sea_sparse") {
    std::vector<Settings> all{{}};
    for (const std::string format : {"csr", "coo", "coo_unsorted", "runs"})
      for (const auto& [cells, k] : {std::pair<Index, Index>{16, 5}, {48, 200}, {9, 40}})
        all.push_back({{"format", format}, {"cells", cells}, {"top_k", k}});
    return all;
  }
  if (name == "sliced_window") {
    std::vector<Settings> all;
    for (const std::string release : {"slice", "move"})
      for (const Index m : {1, 7, 128}) all.push_back({{"release", release}, {"m", m}});
    return all;
  }
  if (name == "hrrformer")
    return {{},
            {{"rescale", true}, {"temperature", 3.0}},
            {{"mask_in_sum", false}, {"transform", std::string("fft")}}};
  if (name == "cauchy_dense" || name == "cauchy_topk" || name == "zeta_topk" || name == "zeta") {
    // Distances are float32: two keys may tie to within rounding, as they do at top_k = 32.
    std::vector<Settings> all{{}};
    if (name != "cauchy_dense") all[0] = {{"top_k", Index{24}}};
    for (const std::string kind : {"neg_euclid", "inverse_euclid", "dot"}) {
      all.push_back(all[0]);
      all.back().insert({{"similarity", kind}, {"gamma", 0.7}});
    }
    if (name == "cauchy_dense") return all.push_back({{"history", true}}), all;
    all.push_back({{"top_k", Index{4}}, {"history", false}, {"gamma", 0.05}});
    all.push_back({{"top_k", Index{7}}, {"bound", std::string("clamp")}, {"gain", 0.4}});
    if (name == "cauchy_topk") return all;
    all.push_back({{"top_k", Index{4}}, {"chunk", Index{16}}, {"local", true}});
    all.push_back({{"top_k", Index{8}}, {"chunk", Index{1}}, {"history", false}});
    if (name == "zeta_topk") return all;
    all.push_back({{"top_k", Index{5}}, {"window_factor", Index{1}}, {"chunks", Index{4}}});
    all.push_back({{"top_k", Index{8}}, {"d_key", Index{1}}});
    all.push_back({{"top_k", Index{8}}, {"d_key", Index{2}}, {"bits", Index{3}}});
    all.push_back({{"top_k", Index{8}}, {"d_key", Index{8}}, {"window_factor", Index{4}}});
    return all;
  }
  return {{}};
}

// Settings with which five tokens show what a method does.
Settings small_settings(const std::string& name) {
  if (name == "sliding_window") return {{"window", Index{3}}, {"sinks", Index{1}}};
  if (name == "topk_exact") return {{"top_k", Index{3}}};
  if (name == "performer") return {{"eps", 0.0}};
  if (name == "conv_basis") return {{"k", Index{3}}, {"segmentation", std::string("uniform")}};
  if (name == "longformer") return {{"half_window", Index{1}}, {"global_tokens", Index{1}}};
  if (name == "bigbird") return {{"block", Index{1}}, {"random_blocks", Index{1}}};
  if (name == "block_sparse") return {{"block", Index{2}}, {"stride", Index{2}}};
  if (name == "clustered") return {{"clusters", Index{2}}};
  if (name == "improved_clustered") return {{"clusters", Index{2}}, {"top_k", Index{2}}};
  if (name == "reformer")
    return {{"rounds", Index{2}}, {"bits", Index{2}}, {"chunk", Index{2}}, {"attend_self", true}};
  if (name == "zeta" || name == "zeta_topk") return {{"top_k", Index{2}}, {"chunk", Index{2}}};
  if (name == "cauchy_topk") return {{"top_k", Index{2}}};
  if (name == "sea")  // relu: the shift of the other features counts as constant in the gradient
    return {{"top_k", Index{2}}, {"cells", Index{8}}, {"kernel", std::string("relu")}};
  return {};
}

Problem problem(Index n, Index n_kv, bool causal, double scale = 0) {
  Problem p{.batch = 2, .heads = 3, .n = n, .n_kv = n_kv, .d_k = 12, .d_v = 20, .causal = causal};
  p.scale = scale;
  return p;
}

/// The long ones have several batches and heads with a method's first settings alone: the double
/// transcriptions of all settings would take minutes there.
std::vector<Problem> ragged_problems(bool first_settings) {
  const Index few = first_settings ? 2 : 1;
  std::vector<Problem> all;
  for (const bool causal : {false, true}) {
    for (const Index n : {1, 2, 3, 17, 64, 129}) all.push_back(problem(n, n, causal));
    all.push_back(problem(5, 70, causal));
    all.push_back(problem(66, 150, causal, 0.7));
  }
  all.push_back(problem(70, 5, false));
  for (const bool causal : {false, true}) {  // for methods that need d_k = d_v
    all.push_back({.batch = 2, .heads = 2, .n = 33, .n_kv = 33, .d_k = 7, .d_v = 7});
    all.back().causal = causal;
    all.push_back({.batch = few, .heads = few, .n = 600, .n_kv = 600, .d_k = 16, .d_v = 16});
    all.back().causal = causal;
  }
  all.push_back({.batch = 2, .heads = 2, .n = 33, .n_kv = 33, .d_k = 1, .d_v = 1});
  all.push_back({.batch = 1, .heads = 2, .n = 33, .n_kv = 33, .d_k = 80, .d_v = 3, .causal = true});
  return all;
}

bool supported(const std::string& name, const Settings& settings, const Problem& p, Pass pass) {
  const auto method = make_method(name, settings);
  return unsupported_reason(Registry::instance().method(name), *method, p, pass).empty();
}

}  // namespace

TEST_CASE("every built-in method has a reference", "[methods]") {
  for (const MethodEntry* entry : Registry::instance().methods()) {
    if (entry->file.find("tests/") != std::string::npos) continue;  // the example of the README
    INFO(entry->info.name);
    CHECK(reference::references().contains(entry->info.name));
    if (entry->info.supports(Pass::backward) && !entry->info.learned)
      CHECK(reference::references().at(entry->info.name).gradient);
  }
}

TEST_CASE("outputs equal the references on ragged sizes, with and without padding", "[methods]") {
  for (const auto& [name, reference] : reference::references())
    for (bool first = true; const Settings& settings : settings_of(name))
      for (const Problem& p : ragged_problems(std::exchange(first, false))) {
        if (!supported(name, settings, p, Pass::forward)) continue;
        for (const double padding : {0.0, 0.3}) {
          if (padding > 0 && !Registry::instance().method(name).info.key_padding) continue;
          INFO(fmt::format("{} {} {} padding {}", name, to_string(settings), p.str(), padding));
          QKV in = random_inputs(p, 5);
          if (padding > 0) pad_keys(p, 5, padding, &in);
          const TensorD want = reference.forward(resolved(name, settings), double_call(p, in));
          const double error = relative_error(run_method(name, settings, p, in).out, want);
          CHECK(error <= 1e-5);
        }
      }
}

TEST_CASE("outputs equal the references at n = 1000, cubic oracles at n = 200", "[methods]") {
  for (const auto& [name, reference] : reference::references())
    for (const bool causal : {false, true}) {
      // The references of cubic oracles take minutes there.
      const Index n = Registry::instance().method(name).info.max_n > 0 ? 200 : 1000;
      const Problem p{
          .batch = 2, .heads = 2, .n = n, .n_kv = n, .d_k = 24, .d_v = 40, .causal = causal};
      if (!supported(name, {}, p, Pass::forward)) continue;
      INFO(name << " " << p.str());
      const QKV in = random_inputs(p, 6);
      const Settings settings = settings_of(name).front();
      if (!supported(name, settings, p, Pass::forward)) continue;
      const TensorD want = reference.forward(resolved(name, settings), double_call(p, in));
      CHECK(relative_error(run_method(name, settings, p, in).out, want) <= 1e-5);
    }
}

TEST_CASE("gradients equal the reference gradients", "[methods]") {
  for (const auto& [name, reference] : reference::references()) {
    if (!reference.gradient) continue;
    for (bool first = true; const Settings& settings : settings_of(name))
      for (const Problem& p : ragged_problems(std::exchange(first, false))) {
        if (!supported(name, settings, p, Pass::backward)) continue;
        for (const double padding : {0.0, 0.3}) {
          INFO(fmt::format("{} {} {} padding {}", name, to_string(settings), p.str(), padding));
          QKV in = random_inputs(p, 7);
          if (padding > 0) pad_keys(p, 7, padding, &in);
          Tensor dout(p.batch, p.heads, p.n, p.d_v);
          fill_normal(derive(7, "dout"), dout.data(), dout.size());
          const auto want =
              reference.gradient(resolved(name, settings), double_call(p, in), cast<double>(dout));
          const Outcome got = run_method(name, settings, p, in, &dout);
          // Where few keys are seen the gradient of the scores nearly cancels: what is left is
          // judged against the size of dout, whose rounding it carries.
          const auto error = [&](const Tensor& g, const TensorD& w) {
            const double floor = 0.05 * norm(cast<double>(dout));
            return relative_error(g, w) * (norm(w) > 0 ? norm(w) : 1) / std::max(norm(w), floor);
          };
          // exp(W x) carries the rounding of its exponent, about 10 epsilon each.
          const double tolerance = name == "performer" ? 3e-5 : 1e-5;
          CHECK(error(got.dq, want.dq) <= tolerance);
          CHECK(error(got.dk, want.dk) <= tolerance);
          CHECK(error(got.dv, want.dv) <= tolerance);
        }
      }
  }
}

TEST_CASE("gradients equal central differences of the references in double", "[methods]") {
  for (const auto& [name, reference] : reference::references()) {
    if (!Registry::instance().method(name).info.supports(Pass::backward)) continue;
    const MethodInfo& info = Registry::instance().method(name).info;
    const Settings settings = small_settings(name);
    for (const bool causal : {false, true}) {
      const Problem p{.batch = 2,
                      .heads = 2,
                      .n = 5,
                      .n_kv = causal && info.cross_attention ? 7 : 5,
                      .d_k = 3,
                      .d_v = name == "hrrformer" ? 3 : 4,
                      .causal = causal};
      if (!supported(name, settings, p, Pass::backward)) continue;
      INFO(name << " " << p.str());
      const QKV in = random_inputs(p, 8);
      Tensor dout(p.batch, p.heads, p.n, p.d_v);
      fill_normal(derive(8, "dout"), dout.data(), dout.size());
      reference::Call call = double_call(p, in);
      const auto loss = [&] {
        const TensorD out = reference.forward(resolved(name, settings), call);
        double sum = 0;
        for (Index e = 0; e < out.size(); ++e)
          sum += out.data()[e] * static_cast<double>(dout.data()[e]);
        return sum;
      };
      const auto differences = [&](TensorD& x) {
        TensorD g(x.shape());
        for (Index e = 0; e < x.size(); ++e) {
          constexpr double kStep = 1e-5;
          const double kept = x.data()[e];
          x.data()[e] = kept + kStep;
          const double up = loss();
          x.data()[e] = kept - kStep;
          g.data()[e] = (up - loss()) / (2 * kStep);
          x.data()[e] = kept;
        }
        return g;
      };
      const Outcome got = run_method(name, settings, p, in, &dout);
      CHECK(relative_error(got.dq, differences(call.q)) <= 1e-4);
      CHECK(relative_error(got.dk, differences(call.k)) <= 1e-4);
      CHECK(relative_error(got.dv, differences(call.v)) <= 1e-4);
    }
  }
}
