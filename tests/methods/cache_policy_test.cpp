// KV-cache policies: the invariants of their papers, cache sizes, and peaked inputs.
#include <fmt/core.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <functional>
#include <set>

#include "harness/measure/alloc_counter.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

Problem sequence(Index n, Index heads = 2, Index batch = 1) {
  return {.batch = batch, .heads = heads, .n = n, .n_kv = n, .d_k = 12, .d_v = 20, .causal = true};
}

// Queries and keys with topics that return: the weights are peaked and change with time.
QKV topical_inputs(const Problem& p, Seed seed) {
  QKV in = random_inputs(p, seed);
  Random random(seed, "topics");
  std::vector<double> topic(static_cast<std::size_t>(5 * p.d_k));
  for (double& x : topic) x = random.normal();
  Index now = 0;
  for (Index t = 0; t < p.n; ++t) {
    if (t % 13 == 0) now = static_cast<Index>(random.below(5));
    for (Index bh = 0; bh < p.batch * p.heads; ++bh)
      for (Index c = 0; c < p.d_k; ++c) {
        const auto shift =
            static_cast<float>(1.5 * topic[static_cast<std::size_t>(now * p.d_k + c)]);
        in.q.data()[(bh * p.n + t) * p.d_k + c] += shift;
        in.k.data()[(bh * p.n + t) * p.d_k + c] += shift;
      }
  }
  return in;
}

struct Fed {
  Tensor out;                                 // [batch, heads, n, d_v]
  std::vector<std::vector<VisibleKey>> seen;  // by step, head 0 of item 0
  std::vector<CacheBytes> bytes;              // by step
};

// Feeds all tokens one by one; the first `prefill` at once.
Fed feed(Decoder& decoder, const Problem& p, const QKV& in, Index prefill = 0) {
  Fed fed{Tensor(p.batch, p.heads, p.n, p.d_v), {}, {}};
  const Index heads = p.batch * p.heads;
  const auto rows = [&](const Tensor& x, Index t) {
    std::vector<float> row;
    for (Index bh = 0; bh < x.batch() * x.heads(); ++bh)
      row.insert(row.end(), x.data() + (bh * p.n + t) * x.d(),
                 x.data() + (bh * p.n + t + 1) * x.d());
    return row;
  };
  const auto first = [&](const Tensor& x) {
    Tensor part(x.batch(), x.heads(), prefill, x.d());
    for (Index bh = 0; bh < x.batch() * x.heads(); ++bh)
      std::copy_n(x.data() + bh * p.n * x.d(), prefill * x.d(), part.data() + bh * prefill * x.d());
    return part;
  };
  if (prefill > 0) {
    const Tensor q = first(in.q), k = first(in.k), v = first(in.v);
    const Tensor x = in.x.empty() ? Tensor() : first(in.x);
    decoder.prefill(q, k, v, x.empty() ? ConstTensorView() : x.view());
  }
  std::vector<float> out(static_cast<std::size_t>(heads * p.d_v));
  for (Index t = prefill; t < p.n; ++t) {
    const auto q = rows(in.q, t), k = rows(in.k, t), v = rows(in.v, t);
    const auto x = in.x.empty() ? std::vector<float>() : rows(in.x, t);
    decoder.step({q.data(), k.data(), v.data(), x.empty() ? nullptr : x.data()}, out.data());
    for (Index bh = 0; bh < heads; ++bh)
      std::copy_n(out.data() + bh * p.d_v, p.d_v, fed.out.data() + (bh * p.n + t) * p.d_v);
    fed.seen.push_back(decoder.visible(0, 0));
    fed.bytes.push_back(decoder.bytes());
  }
  return fed;
}

DecodeConfig config_of(const Problem& p, const QKV& in) {
  return {.batch = p.batch,
          .heads = p.heads,
          .capacity = p.n,
          .d_k = p.d_k,
          .d_v = p.d_v,
          .d_e = in.x.empty() ? 0 : in.x.d(),
          .seed = 0};
}

Fed decode(const std::string& name, const Settings& settings, const Problem& p, const QKV& in,
           Index prefill = 0) {
  return feed(*make_method(name, settings)->make_decoder(config_of(p, in)), p, in, prefill);
}

Tensor run(const std::string& name, const Settings& settings, const Problem& p, const QKV& in) {
  return run_method(name, settings, p, in).out;
}

double apart(const Tensor& a, const Tensor& b) { return relative_error(a, cast<double>(b)); }

std::vector<std::string> policies() {
  std::vector<std::string> names;
  for (const MethodEntry* entry : Registry::instance().methods())
    if (entry->info.family == "cache_policy") names.push_back(entry->info.name);
  return names;
}

Settings with_m(const std::string& name, Index m) {
  return name == "subgen" ? Settings{} : Settings{{"m", m}};
}

}  // namespace

TEST_CASE("policies equal their references where attention is peaked", "[cache_policy]") {
  const Problem p = sequence(150, 2, 2);
  const QKV in = topical_inputs(p, 3);
  for (const std::string& name : policies()) {
    std::vector<Settings> all{with_m(name, 16)};
    if (name == "adore") {
      const auto text = [](const char* t) { return std::string(t); };
      for (const char* form : {"additive", "pairwise"})
        for (const char* score : {"gru", "mlp"})
          all.push_back({{"m", Index{16}}, {"score", text(score)}, {"score_form", text(form)}});
      all.push_back({{"m", Index{16}}, {"r", Index{0}}, {"distances", Index{20}}});
    }
    for (const Settings& settings : all) {
      INFO(name << " " << to_string(settings));
      const TensorD want =
          reference::references().at(name).forward(resolved(name, settings), double_call(p, in));
      CHECK(relative_error(run(name, settings, p, in), want) <= 1e-5);
    }
  }
}

TEST_CASE("with room for all tokens a policy is dense attention", "[cache_policy]") {
  const Problem p = sequence(90);
  const QKV in = topical_inputs(p, 4);
  const Tensor dense = run("dense", {}, p, in);
  for (const std::string& name : policies()) {
    if (name == "subgen") continue;
    INFO(name);
    CHECK(apart(run(name, with_m(name, p.n), p, in), dense) <= 1e-6);
    CHECK(apart(decode(name, with_m(name, p.n), p, in).out, dense) <= 1e-6);
  }
}

TEST_CASE("at most m tokens stay, none twice, and the current one is seen", "[cache_policy]") {
  const Problem p = sequence(120, 3);
  const QKV in = topical_inputs(p, 5);
  for (const std::string& name : policies()) {
    if (name == "subgen") continue;
    for (const Index m : {1, 7, 32}) {
      INFO(name << " m=" << m);
      Settings settings = with_m(name, m);
      const bool adore = name.starts_with("adore");
      if (adore) settings["r"] = Index{3};
      const Fed fed = decode(name, settings, p, in);
      const Index most = name == "topk_oracle" ? m : m + 1 + (adore ? 3 : 0);
      double peak = 0;
      for (Index t = 0; t < p.n; ++t) {
        const auto& seen = fed.seen[static_cast<std::size_t>(t)];
        std::set<Index> places;
        double sum = 0;
        for (const VisibleKey& key : seen) places.insert(key.position), sum += key.weight;
        CHECK(places.size() == seen.size());
        CHECK(static_cast<Index>(seen.size()) <= most);
        CHECK(places.contains(t));
        CHECK(sum == Approx(1).epsilon(1e-5));
        peak = std::max(peak, fed.bytes[static_cast<std::size_t>(t)].kv);
      }
      CHECK(peak == 4.0 * static_cast<double>(m * p.heads * (p.d_k + p.d_v)));
      // What is seen in a step was kept after the one before, or fetched.
      if (adore || name == "topk_oracle") continue;
      for (Index t = 1; t < p.n; ++t)
        for (const VisibleKey& key : fed.seen[static_cast<std::size_t>(t)]) {
          const auto& before = fed.seen[static_cast<std::size_t>(t - 1)];
          CHECK((key.position == t ||
                 std::any_of(before.begin(), before.end(),
                             [&](const VisibleKey& b) { return b.position == key.position; })));
        }
    }
  }
}

TEST_CASE("a step of any policy allocates nothing once warm", "[cache_policy]") {
  if (!hooks_active()) return;
  const Problem p = sequence(60, 2, 2);
  const QKV in = topical_inputs(p, 6);
  for (const std::string& name : policies())
    for (const Index m : {5, 100}) {
      INFO(name << " m=" << m);
      const auto decoder = make_method(name, with_m(name, m))->make_decoder(config_of(p, in));
      std::vector<float> out(static_cast<std::size_t>(p.batch * p.heads * p.d_v));
      std::uint64_t before = 0;
      for (Index t = 0; t < p.n; ++t) {
        if (t == 1) before = alloc_calls();
        decoder->step({in.q.data() + t, in.k.data() + t, in.v.data() + t, nullptr}, out.data());
      }
      CHECK(alloc_calls() - before == 0);
    }
}

TEST_CASE("changing a later token leaves earlier outputs as they are", "[cache_policy]") {
  const Problem p = sequence(80);
  const QKV in = topical_inputs(p, 7);
  for (const std::string& name : policies()) {
    INFO(name);
    const Fed before = decode(name, with_m(name, 8), p, in);
    QKV changed = in;
    for (Tensor* x : {&changed.q, &changed.k, &changed.v})
      for (Index bh = 0; bh < p.heads; ++bh)
        for (Index t = 50; t < p.n; ++t) x->data()[(bh * p.n + t) * x->d()] += 3;
    const Fed after = decode(name, with_m(name, 8), p, changed);
    for (Index bh = 0; bh < p.heads; ++bh)
      CHECK(std::memcmp(before.out.data() + bh * p.n * p.d_v, after.out.data() + bh * p.n * p.d_v,
                        static_cast<std::size_t>(50 * p.d_v) * sizeof(float)) == 0);
  }
}

TEST_CASE("window, sliding_window, StreamingLLM and ADORE by position are one policy",
          "[cache_policy]") {
  const Problem p = sequence(100);
  const QKV in = topical_inputs(p, 8);
  const Settings m{{"m", Index{11}}};
  const Tensor window = run("window", m, p, in);
  CHECK(apart(run("sliding_window", {{"window", Index{12}}}, p, in), window) <= 1e-6);
  CHECK(apart(run("streaming_llm", {{"m", Index{11}}, {"sinks", Index{0}}}, p, in), window) <=
        1e-6);
  Settings recency{{"m", Index{11}}, {"r", Index{0}}, {"score", std::string("recency")}};
  CHECK(apart(run("adore", recency, p, in), window) <= 1e-6);
  const Tensor sinks = run("streaming_llm", {{"m", Index{11}}, {"sinks", Index{3}}}, p, in);
  CHECK(apart(run("sliding_window", {{"window", Index{9}}, {"sinks", Index{3}}}, p, in), sinks) <=
        1e-6);
  recency["protect_sinks"] = Index{3};
  CHECK(apart(run("adore", recency, p, in), sinks) <= 1e-6);
  CHECK(apart(sinks, window) > 1e-2);
  CHECK(apart(run("strided", {{"m", Index{11}}, {"recent", Index{11}}}, p, in), window) <= 1e-6);
  CHECK(apart(run("h2o", {{"m", Index{11}}, {"recent", Index{11}}}, p, in), window) <= 1e-6);
}

TEST_CASE("Keyformer without noise at temperature 1 is H2O", "[cache_policy]") {
  const Problem p = sequence(100);
  const QKV in = topical_inputs(p, 9);
  const Settings h2o{{"m", Index{16}}, {"recent", Index{6}}};
  Settings keyformer = h2o;
  keyformer.insert({{"noise", false}, {"tau_end", 1.0}});
  CHECK(apart(run("keyformer", keyformer, p, in), run("h2o", h2o, p, in)) <= 1e-6);
  Settings prompt = keyformer, prompt_h2o = h2o;
  prompt["prefill"] = prompt_h2o["prefill"] = std::string("prompt");
  CHECK(apart(decode("keyformer", prompt, p, in, 40).out,
              decode("h2o", prompt_h2o, p, in, 40).out) <= 1e-6);
  keyformer["noise"] = true;
  CHECK(apart(run("keyformer", keyformer, p, in), run("h2o", h2o, p, in)) > 1e-3);
  // The literal mask loses every token that leaves the window: the keys of the start stay for ever.
  keyformer["reference_mask"] = true;
  const auto seen = decode("keyformer", keyformer, p, in).seen.back();
  std::set<Index> places;
  for (const VisibleKey& key : seen) places.insert(key.position);
  std::set<Index> expected{93, 94, 95, 96, 97, 98, 99};
  for (Index t = 0; t < 10; ++t) expected.insert(t);
  CHECK(places == expected);
}

TEST_CASE("H2O keeps what has collected most attention", "[cache_policy]") {
  // One head, d_k = 1: the logit of key j is k_j. Keys 0 and 2 stand out.
  Problem p{.batch = 1, .heads = 1, .n = 6, .n_kv = 6, .d_k = 1, .d_v = 1, .causal = true};
  p.scale = 1;
  QKV in(p);
  const float keys[] = {2, 0, 3, 0, 0, 0};
  for (Index t = 0; t < p.n; ++t) {
    in.q.data()[t] = 1;
    in.k.data()[t] = keys[t];
    in.v.data()[t] = static_cast<float>(t);
  }
  DecodeConfig config = config_of(p, in);
  config.scale = 1;
  const auto decoder =
      make_method("h2o", {{"m", Index{3}}, {"recent", Index{1}}})->make_decoder(config);
  const Fed fed = feed(*decoder, p, in);
  const auto places = [&](Index t) {
    std::set<Index> all;
    for (const VisibleKey& key : fed.seen[static_cast<std::size_t>(t)]) all.insert(key.position);
    return all;
  };
  CHECK(places(3) == std::set<Index>{0, 1, 2, 3});
  CHECK(places(4) == std::set<Index>{0, 2, 3, 4});
  CHECK(places(5) == std::set<Index>{0, 2, 4, 5});
}

TEST_CASE("scores of H2O add up to the number of steps while nothing is released",
          "[cache_policy]") {
  // Seen through the choice of a prompt: with as many heavy places as tokens every score counts.
  const Problem p = sequence(40, 1);
  const QKV in = topical_inputs(p, 10);
  const Fed fed = decode("h2o", {{"m", Index{40}}}, p, in);
  std::map<Index, double> score;
  for (const auto& seen : fed.seen)
    for (const VisibleKey& key : seen) score[key.position] += static_cast<double>(key.weight);
  double sum = 0;
  for (const auto& [position, value] : score) sum += value;
  CHECK(sum == Approx(40).epsilon(1e-5));
  // A prompt of the same tokens keeps those that the stream scored highest.
  const Problem longer = sequence(41, 1);
  const QKV more = topical_inputs(longer, 10);
  const auto prompt =
      decode("h2o", {{"m", Index{8}}, {"recent", Index{2}}, {"prefill", std::string("prompt")}},
             longer, more, 40);
  const auto streamed = decode("h2o", {{"m", Index{41}}}, longer, more);
  std::map<Index, double> column;
  for (Index t = 0; t < 40; ++t)
    for (const VisibleKey& key : streamed.seen[static_cast<std::size_t>(t)])
      column[key.position] += static_cast<double>(key.weight);
  std::vector<Index> order;
  for (Index t = 0; t < 38; ++t) order.push_back(t);
  std::sort(order.begin(), order.end(), [&](Index a, Index b) { return column[a] > column[b]; });
  std::set<Index> expected{order.begin(), order.begin() + 6};
  for (const Index t : {38, 39, 40}) expected.insert(t);
  std::set<Index> got;
  for (const VisibleKey& key : prompt.seen.front()) got.insert(key.position);
  CHECK(got == expected);
}
