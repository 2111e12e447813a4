// Cases small or special enough to be checked by eye, method by method.
#include <malloc.h>

#include <catch2/catch.hpp>

#include "methods/engines/tiled_attention.h"
#include "tests/methods/method_fixture.h"
#include "tests/reference/softmax_attention.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

QKV inputs(const Problem& p, std::vector<float> q, std::vector<float> k, std::vector<float> v) {
  QKV in(p);
  std::copy(q.begin(), q.end(), in.q.data());
  std::copy(k.begin(), k.end(), in.k.data());
  std::copy(v.begin(), v.end(), in.v.data());
  return in;
}

void check_values(const Tensor& got, std::vector<double> want) {
  REQUIRE(got.size() == static_cast<Index>(want.size()));
  for (Index e = 0; e < got.size(); ++e)
    CHECK(static_cast<double>(got.data()[e]) ==
          Approx(want[static_cast<std::size_t>(e)]).epsilon(2e-6).margin(1e-7));
}

// Logits are the logarithms of {1, 2, 3; 1, 1, 2; 4, 1, 1}: the weights are simple fractions.
Problem three(bool causal) {
  return {.n = 3, .n_kv = 3, .d_k = 3, .d_v = 1, .causal = causal, .scale = 1};
}
QKV three_inputs(const Problem& p) {
  const float l2 = std::log(2.f), l3 = std::log(3.f), l4 = std::log(4.f);
  return inputs(p, {0, l2, l3, 0, 0, l2, l4, 0, 0}, {1, 0, 0, 0, 1, 0, 0, 0, 1}, {6, 12, 24});
}

bool supported(const std::string& name, const Problem& p) {
  const MethodEntry& entry = Registry::instance().method(name);
  return unsupported_reason(entry, *make_method(name), p, Pass::forward).empty();
}

double allocated_now() {
  const auto info = mallinfo2();
  return static_cast<double>(info.uordblks) + static_cast<double>(info.hblkhd);
}

}  // namespace

TEST_CASE("three by three attention equals the result worked by hand", "[methods]") {
  for (const std::string name : {"dense", "dense_naive"}) {
    INFO(name);
    const QKV in = three_inputs(three(false));
    // (6 + 2*12 + 3*24)/6, (6 + 12 + 2*24)/4, (4*6 + 12 + 24)/6
    check_values(run_method(name, {}, three(false), in).out, {17, 16.5, 10});
    check_values(run_method(name, {}, three(true), in).out, {6, 9, 10});
  }
  const QKV in = three_inputs(three(false));
  // Two keys: -1..0 around the query when centred, the same when causal.
  check_values(run_method("sliding_window", {{"window", Index{2}}}, three(false), in).out,
               {6, 9, 18});
  check_values(run_method("sliding_window", {{"window", Index{2}}}, three(true), in).out,
               {6, 9, 18});
  // Three centred keys; one causal key and the sink: (4*6 + 24)/5.
  check_values(run_method("sliding_window", {{"window", Index{3}}}, three(false), in).out,
               {10, 16.5, 18});
  check_values(
      run_method("sliding_window", {{"window", Index{1}}, {"sinks", Index{1}}}, three(true), in)
          .out,
      {6, 9, 9.6});
  // The two largest: {2, 3}, {1 (first of a tie), 2}, {4, 1 (first of a tie)}.
  check_values(run_method("topk_exact", {{"top_k", Index{2}}}, three(false), in).out,
               {(2 * 12 + 3 * 24) / 5.0, (6 + 2 * 24) / 3.0, (4 * 6 + 12) / 5.0});
}

TEST_CASE("linear attention of two tokens equals the result worked by hand", "[methods]") {
  // phi(1) = 2, phi(-inf..0) = exp: phi(0) = 1, phi(-log 2) = 1/2.
  const Problem p{.n = 2, .n_kv = 2, .d_k = 1, .d_v = 1, .causal = false};
  const QKV in = inputs(p, {1, 0}, {0, -std::log(2.f)}, {3, 9});
  check_values(run_method("linear", {{"eps", 0.0}}, p, in).out, {5, 5});  // (3 + 9/2) / (3/2)
  Problem causal = p;
  causal.causal = true;
  check_values(run_method("linear", {{"eps", 0.0}}, causal, in).out, {3, 5});
}

TEST_CASE("the scale of linear attention is without effect", "[methods]") {
  Problem p{.n = 20, .n_kv = 20, .d_k = 8, .d_v = 8};
  const QKV in = random_inputs(p, 3);
  const TensorD one = cast<double>(run_method("linear", {}, p, in).out);
  p.scale = 7;
  CHECK(relative_error(run_method("linear", {}, p, in).out, one) == 0);
}

TEST_CASE("large logits neither overflow nor lose accuracy", "[methods]") {
  for (const auto& [name, reference] : reference::references()) {
    const MethodInfo& info = Registry::instance().method(name).info;
    // Random features estimate exp(80) with an error of its own size.
    if (info.approximates != Approximates::softmax || info.random) continue;
    for (const bool causal : {false, true})
      for (const double limit : {80.0, 1e4}) {
        Problem p{
            .batch = 1, .heads = 2, .n = 129, .n_kv = 129, .d_k = 16, .d_v = 8, .causal = causal};
        p.scale = 1;
        // Rows near one-hot give equal singular values: which of them go is no matter of accuracy.
        if (!supported(name, p) || name == "svd_rank" || name == "block_rank_causal") continue;
        QKV in = random_inputs(p, 4);
        double largest = 0;
        const reference::Call drawn = double_call(p, in);
        for (Index h = 0; h < p.heads; ++h)
          for (Index i = 0; i < p.n; ++i)
            for (Index j = 0; j < p.n_kv; ++j)
              largest = std::max(largest, std::fabs(reference::logit(drawn, 0, h, i, j)));
        for (Index e = 0; e < in.q.size(); ++e)
          in.q.data()[e] *= static_cast<float>(limit / largest);  // logits now in [-limit, limit]
        INFO(name << " " << p.str() << " limit " << limit);
        Tensor dout(p.batch, p.heads, p.n, p.d_v);
        dout.fill(1);
        const bool backward = info.supports(Pass::backward);
        const Outcome got = run_method(name, {}, p, in, backward ? &dout : nullptr);
        const TensorD want = reference.forward(resolved(name, {}), double_call(p, in));
        // At 1e4 a float32 logit itself is only known to 1e-3.
        CHECK(relative_error(got.out, want) <= (limit > 100 ? 1e-2 : 1e-5));
        if (!backward) continue;
        for (const Tensor* g : {&got.dq, &got.dk, &got.dv})
          for (Index e = 0; e < g->size() && backward; ++e)
            if (!std::isfinite(g->data()[e])) FAIL("gradient element " << e << " is not finite");
      }
  }
}

TEST_CASE("a query that sees no key has a zero row and no gradient", "[methods]") {
  for (const auto& [name, reference] : reference::references()) {
    const MethodInfo& info = Registry::instance().method(name).info;
    if (!info.key_padding) continue;
    for (const bool causal : {false, true}) {
      if (!causal && !info.bidirectional) continue;
      INFO(name << (causal ? " causal" : ""));
      const Problem p{
          .batch = 2, .heads = 2, .n = 70, .n_kv = 70, .d_k = 5, .d_v = 7, .causal = causal};
      if (!supported(name, p)) continue;
      QKV in = random_inputs(p, 9);
      in.key_mask.assign(140, 1);
      std::fill_n(in.key_mask.begin(), 70, std::uint8_t{0});      // batch item 0 sees nothing
      std::fill_n(in.key_mask.begin() + 70, 3, std::uint8_t{0});  // item 1 lacks its first keys
      Tensor dout(p.batch, p.heads, p.n, p.d_v);
      fill_normal(2, dout.data(), dout.size());
      const bool backward = info.supports(Pass::backward);
      const Outcome got = run_method(name, {}, p, in, backward ? &dout : nullptr);
      CHECK(got.out.head(0, 1).isZero(0));
      CHECK(got.out.head(1, 0).row(2).isZero(0) == causal);
      // Causal improved clustering gives nothing where no key of the cluster's choice is past.
      if (!(name == "improved_clustered" && causal))
        CHECK_FALSE(got.out.head(1, 0).row(3).isZero(1e-3f));
      if (!backward) continue;
      CHECK(got.dq.head(0, 1).isZero(0));
      CHECK(got.dq.head(1, 0).row(2).isZero(0) == causal);
      CHECK(got.dk.head(0, 0).isZero(0));
      CHECK(got.dv.head(0, 0).isZero(0));
      CHECK(got.dk.head(1, 1).topRows(3).isZero(0));
      CHECK(got.dv.head(1, 1).topRows(3).isZero(0));
    }
  }
}

TEST_CASE("the saved log-sum-exp is that of the visible logits", "[methods]") {
  for (const bool causal : {false, true}) {
    const Problem p{
        .batch = 2, .heads = 2, .n = 70, .n_kv = 150, .d_k = 6, .d_v = 5, .causal = causal};
    QKV in = random_inputs(p, 12, 5);
    pad_keys(p, 12, 0.2, &in);
    std::fill_n(in.key_mask.begin(), 100, std::uint8_t{0});  // early causal rows see nothing
    TiledAttention attention;
    attention.prepare(p, Pattern::of(Band::dense(p)), false);
    Tensor out(p.batch, p.heads, p.n, p.d_v), lse(p.batch, p.heads, p.n, 1);
    attention.forward(in.inputs(), out, lse.data());
    const reference::Call call = double_call(p, in);
    const TensorD want =
        reference::log_sum_exp(call, reference::sees_everything(call), reference::logits(call));
    for (Index e = 0; e < lse.size(); ++e) {
      INFO(e);
      if (std::isinf(want.data()[e])) {
        CHECK(lse.data()[e] == -std::numeric_limits<float>::infinity());
      } else {
        CHECK(static_cast<double>(lse.data()[e]) == Approx(want.data()[e]).margin(1e-5));
      }
    }
  }
}

TEST_CASE("no key too many and none too few, wherever a panel of keys ends", "[methods]") {
  const auto& reference = reference::references().at("dense");
  for (const bool causal : {false, true})
    for (Index n_kv = 40; n_kv <= 104; ++n_kv) {
      const Problem p{
          .batch = 1, .heads = 1, .n = 40, .n_kv = n_kv, .d_k = 8, .d_v = 5, .causal = causal};
      const QKV in = random_inputs(p, 3);
      INFO(p.str());
      CHECK(relative_error(run_method("dense", {}, p, in).out,
                           reference.forward(resolved("dense", {}), double_call(p, in))) <= 1e-6);
    }
}

TEST_CASE("outputs keep their bits when a key that they do not see becomes long", "[methods]") {
  // Short queries and keys need no row maximum; one long key anywhere sends all rows the other way.
  for (const Index before : {Index{0}, Index{100}}) {
    const Problem p{
        .batch = 1, .heads = 2, .n = 1000, .n_kv = 1000, .d_k = 40, .d_v = 24, .causal = true};
    QKV in = random_inputs(p, 21);
    Band band = Band::dense(p);
    if (before > 0) band.before = before;  // windows begin in the middle of a panel
    TiledAttention attention;
    attention.prepare(p, Pattern::of(band), false);
    Tensor out(p.batch, p.heads, p.n, p.d_v), lse(p.batch, p.heads, p.n, 1), long_out(out.shape()),
        long_lse(lse.shape());
    attention.forward(in.inputs(), out, lse.data());
    for (Index h = 0; h < p.heads; ++h) in.k.head(0, h).row(p.n - 1) *= 1e3f;
    attention.forward(in.inputs(), long_out, long_lse.data());
    for (Index h = 0; h < p.heads; ++h) {
      INFO("head " << h << ", window " << before);
      const Index same = p.n - 1;
      CHECK(out.head(0, h).topRows(same) == long_out.head(0, h).topRows(same));
      CHECK(lse.head(0, h).topRows(same) == long_lse.head(0, h).topRows(same));
      CHECK_FALSE(lse.head(0, h).row(same) == long_lse.head(0, h).row(same));
    }
  }
}

TEST_CASE("equal keys are chosen in their order", "[methods]") {
  const Problem p{.batch = 1, .heads = 1, .n = 9, .n_kv = 9, .d_k = 7, .d_v = 1, .causal = false};
  QKV in = random_inputs(p, 15);
  for (Index j = 1; j < 9; ++j) in.k.head(0, 0).row(j) = in.k.head(0, 0).row(0);
  for (Index j = 0; j < 9; ++j) in.v.data()[j] = static_cast<float>(j);
  const Tensor out = run_method("topk_exact", {{"top_k", Index{3}}}, p, in).out;
  for (Index i = 0; i < 9; ++i) CHECK(out.data()[i] == Approx(1.0));  // (0 + 1 + 2) / 3
}

TEST_CASE("captured mass is the share of the softmax that the chosen keys hold", "[methods]") {
  const auto mass = [](Index k) {
    const auto method = make_method("topk_exact", {{"top_k", k}});
    method->prepare(three(false), {});
    Tensor out(1, 1, 3, 1);
    method->forward(three_inputs(three(false)).inputs(), out, nullptr);
    return method->metrics().at(0).value;
  };
  CHECK(mass(1) == Approx((3.0 / 6 + 2.0 / 4 + 4.0 / 6) / 3));
  CHECK(mass(2) == Approx((5.0 / 6 + 3.0 / 4 + 5.0 / 6) / 3));
  CHECK(mass(3) == Approx(1));
}

TEST_CASE("a sliding window decodes what its causal form computes", "[methods]") {
  for (const auto& [window, sinks] : {std::pair<Index, Index>{1, 0}, {3, 2}, {5, 0}, {40, 9}}) {
    INFO("window " << window << " sinks " << sinks);
    const Settings settings{{"window", window}, {"sinks", sinks}};
    const Problem p{
        .batch = 1, .heads = 2, .n = 23, .n_kv = 23, .d_k = 4, .d_v = 3, .causal = true};
    const QKV in = random_inputs(p, 21);
    const TensorD want = cast<double>(run_method("sliding_window", settings, p, in).out);
    const auto decoder =
        make_method("sliding_window", settings)
            ->make_decoder({.batch = 1, .heads = 2, .capacity = 23, .d_k = 4, .d_v = 3});
    Tensor got(want.shape());
    for (Index t = 0; t < 23; ++t) {
      std::vector<float> q, k, v, out(6);
      for (Index h = 0; h < 2; ++h) {
        for (Index c = 0; c < 4; ++c) q.push_back(in.q.head(0, h)(t, c));
        for (Index c = 0; c < 4; ++c) k.push_back(in.k.head(0, h)(t, c));
        for (Index c = 0; c < 3; ++c) v.push_back(in.v.head(0, h)(t, c));
      }
      decoder->step({q.data(), k.data(), v.data()}, out.data());
      for (Index h = 0; h < 2; ++h)
        for (Index c = 0; c < 3; ++c)
          got.head(0, h)(t, c) = out[static_cast<std::size_t>(3 * h + c)];
      const auto visible = decoder->visible(0, 1);
      CHECK(static_cast<Index>(visible.size()) ==
            std::min(t + 1, std::min(sinks, std::max<Index>(0, t + 1 - window)) + window));
      double sum = 0;
      for (const VisibleKey& key : visible) sum += static_cast<double>(key.weight);
      CHECK(sum == Approx(1).epsilon(1e-5));
      CHECK(decoder->bytes().kv ==
            4.0 * 2 * 7 * static_cast<double>(std::min(t + 1, window + sinks)));
    }
    CHECK(relative_error(got, want) <= 1e-5);
    CHECK_THROWS_AS(decoder->step({in.q.data(), in.k.data(), in.v.data()}, got.data()),
                    InternalError);
  }
}

TEST_CASE("extra_bytes is what prepare and make_saved allocate", "[methods]") {
  const double before_probe = allocated_now();
  const auto probe = std::make_unique<Tensor>(1, 1, 1000, 1000);
  if (allocated_now() - before_probe < 4e6) return;  // a sanitizer's allocator does not tell
  for (const MethodEntry* entry : Registry::instance().methods())
    for (const bool gradients : {false, true}) {
      if (gradients && !entry->info.supports(Pass::backward)) continue;
      const bool causal = entry->info.causality != Causality::none;
      const Problem p{
          .batch = 2, .heads = 2, .n = 700, .n_kv = 700, .d_k = 64, .d_v = 96, .causal = causal};
      const auto method = make_method(entry->info.name);
      if (!method->unsupported(p, gradients ? Pass::backward : Pass::forward).empty()) continue;
      const double before = allocated_now();
      Env env;
      env.gradients = gradients;
      method->prepare(p, env);
      const auto saved = gradients ? method->make_saved() : nullptr;
      const double allocated = allocated_now() - before;
      const double declared = method->extra_bytes(p, gradients ? Pass::backward : Pass::forward);
      INFO(entry->info.name << (gradients ? " backward" : " forward"));
      CHECK(declared == Approx(allocated).epsilon(0.02).margin(4096));
    }
}

TEST_CASE("flops count the visible entries", "[methods]") {
  const Problem full{.batch = 2, .heads = 3, .n = 10, .n_kv = 10, .d_k = 4, .d_v = 6};
  Problem causal = full;
  causal.causal = true;
  for (const std::string name : {"dense", "dense_naive", "topk_exact"}) {
    INFO(name);
    CHECK(make_method(name)->flops(full, Pass::forward) == 6 * 100 * 2 * 10);
    CHECK(make_method(name)->flops(causal, Pass::forward) == 6 * 55 * 2 * 10);
  }
  CHECK(make_method("dense")->flops(causal, Pass::backward) == 6 * 55 * 2 * (3 * 4 + 2 * 6));
  // Windows of three: 1 + 2 + 8 * 3 causal entries, 2 + 8 * 3 + 2 centred ones.
  const auto window = make_method("sliding_window", {{"window", Index{3}}});
  CHECK(window->flops(causal, Pass::forward) == 6 * 27 * 2 * 10);
  CHECK(window->flops(full, Pass::forward) == 6 * 28 * 2 * 10);
}

TEST_CASE("a centred window refuses n != n_kv with the reason", "[methods]") {
  const Problem p{.n = 5, .n_kv = 9};
  const auto method = make_method("sliding_window");
  CHECK(unsupported_reason(Registry::instance().method("sliding_window"), *method, p,
                           Pass::forward) == "a centred window needs n_kv = n");
}
