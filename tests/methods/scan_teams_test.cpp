// Scans over chunks by teams of threads; built under the sanitizers too.
#include <algorithm>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "methods/engines/scan_segments.h"
#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

bool same(const Tensor& x, const Tensor& y) {
  return x.size() == y.size() && std::equal(x.data(), x.data() + x.size(), y.data());
}
void check_same(const Outcome& got, const Outcome& want) {
  CHECK(same(got.out, want.out));
  CHECK(same(got.dq, want.dq));
  CHECK(same(got.dk, want.dk));
  CHECK(same(got.dv, want.dv));
}

struct Case {
  std::string name;
  Settings settings;
  Index n;
};

}  // namespace

TEST_CASE("a scan of any length is cut into segments that cover it and can be kept",
          "[methods][linear][threads]") {
  for (const Index group_tokens : {1, 16, 48, 64, 192, 256, 1024}) {
    const Index kept = std::max<Index>(1, 704 / group_tokens);
    std::vector<Index> sizes{2784};  // at 256 tokens a long end is easily left over
    for (Index groups = 0; groups < 20000; groups += groups < 300 ? 1 : groups / 20)
      sizes.push_back(groups);
    for (const Index groups : sizes) {
      const engine::ScanSegments cut(groups, group_tokens);
      INFO(groups << " groups of " << group_tokens << " tokens, " << cut.count() << " segments");
      if (groups == 0 || groups == 1 || groups * group_tokens <= 256)
        REQUIRE(cut.count() == std::min<Index>(groups, 1));
      else
        REQUIRE(cut.count() > 1);
      if (cut.count() == 0) continue;
      REQUIRE(cut.first(0) == 0);
      REQUIRE(cut.end(cut.count() - 1) == groups);
      if (cut.count() == 1) continue;
      for (Index s = 0; s < cut.count(); ++s) {
        INFO("segment " << s);
        REQUIRE(cut.end(s) > cut.first(s));
        REQUIRE(cut.end(s) <= groups);
        if (s % 2 == 1) REQUIRE(cut.end(s) - cut.first(s) <= kept);
      }
      REQUIRE(cut.widest() <= kept + std::max<Index>(4, kept / 2));  // float32 sums stay short
    }
  }
}

TEST_CASE("teams of any size that go through several heads change no bit",
          "[methods][linear][threads]") {
  // Nine segments a head, so that rings of kept increments go round; or few large groups, so that a
  // segment is begun as a whole before it is its turn.
  const Case c = GENERATE(Case{"linear", {}, 6001}, Case{"lightning2", {}, 6001},
                          Case{"performer", {{"features", Index{24}}}, 3001},
                          Case{"linear", {{"chunk", Index{256}}}, 2048},
                          Case{"linear", {{"chunk", Index{256}}}, 3001},
                          Case{"linear", {{"chunk", Index{256}}}, 512});
  const Problem p{
      .batch = 1, .heads = 3, .n = c.n, .n_kv = c.n, .d_k = 16, .d_v = 16, .causal = true};
  const QKV in = random_inputs(p, 14);
  Tensor dout(1, p.heads, p.n, p.d_v);
  fill_normal(15, dout.data(), dout.size());
  const auto run = [&](int threads) {
    const Threads restore(threads);
    return run_method(c.name, c.settings, p, in, &dout);
  };
  const Outcome one = run(1);
  for (const int threads : {2, 4, 5}) {
    INFO(c.name << ", " << c.n << " tokens, " << threads << " threads");
    check_same(run(threads), one);
  }
}

TEST_CASE("a prepared scan runs with any number of threads, one after the other",
          "[methods][linear][threads]") {
  const Problem p{
      .batch = 1, .heads = 1, .n = 3000, .n_kv = 3000, .d_k = 16, .d_v = 16, .causal = true};
  const QKV in = random_inputs(p, 16);
  Tensor dout(1, 1, p.n, p.d_v);
  fill_normal(17, dout.data(), dout.size());
  const Outcome want = [&] {
    const Threads restore(1);
    return run_method("linear", {}, p, in, &dout);
  }();
  const auto method = make_method("linear", {});
  Env env;
  env.gradients = true;
  {
    const Threads restore(2);
    method->prepare(p, env);
  }
  for (const int threads : {2, 5, 3, 1, 2}) {
    INFO(threads << " threads");
    const Threads restore(threads);
    Outcome got{Tensor(1, 1, p.n, p.d_v), Tensor(in.q.shape()), Tensor(in.k.shape()),
                Tensor(in.v.shape())};
    const auto saved = method->make_saved();
    method->forward(in.inputs(), got.out, saved.get());
    method->backward(in.inputs(), got.out, dout, *saved, {got.dq, got.dk, got.dv, {}});
    check_same(got, want);
  }
}
