// SEA: formats of its sparse stage, and the marks between its stages.
#include "methods/engines/sea_sparse.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <limits>

#include "harness/measure/processors.h"
#include "harness/measure/stage_clock.h"
#include "methods/engines/sea_attention.h"
#include "tests/methods/method_fixture.h"
#include "tests/methods/sea_problem.h"

using namespace subquad;
using namespace subquad::testing;

TEST_CASE("sea: flat CSR, coordinates and runs give what the method gives", "[sea]") {
  for (const bool causal : {false, true})
    for (const Index k : {4, 12}) {  // wide cells thinned to single keys, and whole
      const Problem p = sea_problem(60, causal, 3);
      const QKV in = random_inputs(p, 16);
      SeaOptions options;
      options.source = SeaOptions::Source::random;
      options.cells = 8;
      options.top_k = k;
      SeaAttention attention;
      SeaWeights weights;
      attention.prepare(p, options, &weights, 1, false);
      const SeaCsr csr = kept_keys(attention, in.inputs(), p);
      Tensor want(1, 3, p.n, p.d_v), got(want.shape());
      attention.forward(in.inputs(), want, nullptr);
      const TensorD exact = cast<double>(want);
      SeaSparse sparse{in.q, in.k, in.v, p.logit_scale()};
      sparse.csr(csr, got);
      CHECK(relative_error(got, exact) <= 1e-6);
      got.fill(std::numeric_limits<float>::quiet_NaN());
      sparse.runs(runs_of(csr, p.n), got);
      CHECK(relative_error(got, exact) <= 1e-6);
      got.fill(std::numeric_limits<float>::quiet_NaN());
      sparse.coo(coo_of(csr), got);
      CHECK(relative_error(got, exact) <= 2e-6);
      // Entries in any order come back by query, then by column.
      const SeaCoo ordered = coo_of(csr);
      SeaCoo mixed = ordered, sorted;
      std::reverse(mixed.rows.begin(), mixed.rows.end());
      std::reverse(mixed.columns.begin(), mixed.columns.end());
      sparse.sort(mixed, &sorted);
      CHECK(sorted.rows == ordered.rows);
      CHECK(sorted.columns == ordered.columns);
    }
}

TEST_CASE("sea: every stage is marked, and marks change nothing", "[sea]") {
  struct Marks final : StageProbe {
    std::vector<std::vector<Index>> laps =
        std::vector<std::vector<Index>>(2, std::vector<Index>(6, 0));
    void start(int) override {}
    void lap(int thread, int stage) override {
      ++laps[static_cast<std::size_t>(thread)][static_cast<std::size_t>(stage)];
    }
    Index of(std::size_t stage) const { return laps[0][stage] + laps[1][stage]; }
  };
  const int before = thread_count();
  set_threads(2);
  for (const bool causal : {false, true}) {
    const Problem p = sea_problem(300, causal, 2);
    const QKV in = random_inputs(p, 21);
    const auto method =
        make_method("sea", resolved("sea", {{"top_k", Index{9}}, {"cells", Index{16}}}));
    method->prepare(p, {.seed = 0});
    Tensor plain(1, 2, p.n, p.d_v), out(plain.shape());
    method->forward(in.inputs(), plain, nullptr);
    auto* const staged = dynamic_cast<HasStages*>(method.get());
    REQUIRE(staged != nullptr);
    REQUIRE(staged->stages().size() == 6);
    Marks marks;
    staged->set_probe(&marks);
    method->forward(in.inputs(), out, nullptr);
    staged->set_probe(nullptr);
    CHECK(std::equal(out.data(), out.data() + out.size(), plain.data()));
    for (std::size_t stage = 0; stage < 6; ++stage) {
      INFO(staged->stages()[stage]);
      CHECK(marks.of(stage) > 0);
    }
    CHECK(marks.of(4) == 2 * p.n);  // sparse attention: once for each head and query
    const auto seen = marks.laps;
    method->forward(in.inputs(), out, nullptr);
    CHECK(marks.laps == seen);
  }
  set_threads(before);
}

TEST_CASE("a stage clock's shares add up to one, stage by stage", "[sea]") {
  StageClock clock(2, 3);
  CHECK(clock.shares({"a", "b", "c"})[0].value == 0);  // nothing was marked
  const auto wait = [](double seconds) {
    for (const double end = monotonic_seconds() + seconds; monotonic_seconds() < end;) {
    }
  };
  for (int thread = 0; thread < 2; ++thread) {
    clock.start(thread);
    wait(0.002);
    clock.lap(thread, 2);
    wait(0.0005);
    clock.start(thread);  // what lies before belongs to no stage
    wait(0.001);
    clock.lap(thread, 0);
  }
  const std::vector<Metric> shares = clock.shares({"a", "b", "c"});
  REQUIRE(shares.size() == 3);
  CHECK(shares[0].name == "share_a");
  CHECK(shares[0].value > 0);
  CHECK(shares[1].value == 0);
  CHECK(shares[2].value > 0);
  CHECK(shares[0].value + shares[2].value == Approx(1));
}
