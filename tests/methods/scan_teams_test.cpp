// Scans over chunks by teams of threads; built under the sanitizers too.
#include <omp.h>

#include <algorithm>
#include <catch2/catch.hpp>

#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

TEST_CASE("teams of any size that go through several heads change no bit",
          "[methods][linear][threads]") {
  // Nine segments a head: rings of kept increments go round.
  const Problem p{
      .batch = 1, .heads = 3, .n = 6001, .n_kv = 6001, .d_k = 16, .d_v = 16, .causal = true};
  const QKV in = random_inputs(p, 14);
  Tensor dout(1, p.heads, p.n, p.d_v);
  fill_normal(15, dout.data(), dout.size());
  for (const std::string name : {"linear", "lightning2", "deltanet"}) {
    const auto run = [&](int threads) {
      const int before = omp_get_max_threads();
      omp_set_num_threads(threads);
      Outcome outcome = run_method(name, {}, p, in, &dout);
      omp_set_num_threads(before);
      return outcome;
    };
    const Outcome one = run(1);
    for (const int threads : {2, 4, 5}) {
      INFO(name << " with " << threads << " threads");
      const Outcome more = run(threads);
      const auto same = [](const Tensor& x, const Tensor& y) {
        return x.size() == y.size() && std::equal(x.data(), x.data() + x.size(), y.data());
      };
      CHECK(same(more.out, one.out));
      CHECK(same(more.dq, one.dq));
      CHECK(same(more.dk, one.dk));
      CHECK(same(more.dv, one.dv));
    }
  }
}
