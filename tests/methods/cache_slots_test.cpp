// Slots of a cache: their order means nothing, and writing one over is the product with a slicing
// matrix; and what caches say they hold.
#include "methods/engines/cache_slots.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <set>

#include "tests/methods/method_fixture.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

constexpr Index kTokens = 37, kWidth = 20, kValues = 12;

struct Tokens {
  Matrix k{kTokens, kWidth}, v{kTokens, kValues};
  RowVector q{kWidth};
  Tokens() {
    fill_normal(1, k.data(), k.size());
    fill_normal(2, v.data(), v.size());
    fill_normal(3, q.data(), q.size());
  }
};

}  // namespace

TEST_CASE("the order of slots does not change what is attended to", "[cache_policy][slots]") {
  const Tokens tokens;
  CacheSlots in_order(1, kTokens, kWidth, kValues), shuffled(1, kTokens, kWidth, kValues);
  std::vector<Index> order(kTokens);
  for (Index s = 0; s < kTokens; ++s) order[static_cast<std::size_t>(s)] = s;
  Random(4).shuffle(order);
  for (Index s = 0; s < kTokens; ++s) {
    const Index t = order[static_cast<std::size_t>(s)];
    in_order.write(0, s, tokens.k.row(s).data(), tokens.v.row(s).data());
    shuffled.write(0, s, tokens.k.row(t).data(), tokens.v.row(t).data());
  }
  RowVector a(kValues), b(kValues);
  in_order.attend(0, tokens.q.data(), 0.3, kTokens, a.data());
  shuffled.attend(0, tokens.q.data(), 0.3, kTokens, b.data());
  CHECK((a - b).cwiseAbs().maxCoeff() <= 1e-6f);
  CHECK(a.cwiseAbs().maxCoeff() > 0.1f);
  // Slots named one by one: those of the first 20 tokens, wherever they are.
  std::vector<std::int32_t> slots;
  for (Index s = 0; s < kTokens; ++s)
    if (order[static_cast<std::size_t>(s)] < 20) slots.push_back(static_cast<std::int32_t>(s));
  in_order.attend(0, tokens.q.data(), 0.3, 20, a.data());
  shuffled.attend(0, tokens.q.data(), 0.3, slots, b.data());
  CHECK((a - b).cwiseAbs().maxCoeff() <= 1e-6f);
  for (std::size_t e = 0; e < slots.size(); ++e)
    CHECK(shuffled.weights(0)[e] ==
          Approx(in_order.weights(0)[order[static_cast<std::size_t>(slots[e])]]).margin(1e-6));
}

TEST_CASE("writing a slot over is the product with a slicing matrix, as a set",
          "[cache_policy][slots]") {
  const Tokens tokens;
  constexpr Index m = kTokens - 1;
  const auto rows_of = [](const Matrix& x) {
    std::multiset<std::vector<float>> rows;
    for (Index i = 0; i < x.rows(); ++i) rows.emplace(x.row(i).data(), x.row(i).data() + x.cols());
    return rows;
  };
  for (const Index gone : {0, 7, 35}) {
    // E: the unit matrix of m + 1 rows without row `gone`.
    Matrix slicing = Matrix::Zero(m, m + 1);
    for (Index i = 0; i < m; ++i) slicing(i, i < gone ? i : i + 1) = 1;
    CacheSlots cache(1, m, kWidth, kValues);
    for (Index s = 0; s < m; ++s) cache.write(0, s, tokens.k.row(s).data(), tokens.v.row(s).data());
    cache.write(0, gone, tokens.k.row(m).data(), tokens.v.row(m).data());
    const Matrix keys = ConstMatrixMap(cache.key(0, 0), m, kWidth);
    const Matrix values = ConstMatrixMap(cache.value(0, 0), m, kValues);
    CHECK(rows_of(keys) == rows_of(slicing * tokens.k));
    CHECK(rows_of(values) == rows_of(slicing * tokens.v));
  }
}

TEST_CASE("bytes of dense caches and of SubGen are those of their formulas",
          "[cache_policy][slots]") {
  const Problem p{
      .batch = 2, .heads = 3, .n = 30, .n_kv = 30, .d_k = 12, .d_v = 20, .causal = true};
  const QKV in = random_inputs(p, 5);
  const auto kv_after = [&](const std::string& name, const Settings& settings, Index tokens) {
    const auto method = make_method(name, settings);
    method->prepare(p, {});
    const auto decoder = method->make_decoder(
        {.batch = p.batch, .heads = p.heads, .capacity = p.n, .d_k = p.d_k, .d_v = p.d_v});
    std::vector<float> q(6 * 12), k(6 * 12), v(6 * 20), out(6 * 20);
    for (Index t = 0; t < tokens; ++t) {
      for (Index bh = 0; bh < 6; ++bh) {
        std::copy_n(in.q.data() + (bh * p.n + t) * 12, 12, q.data() + bh * 12);
        std::copy_n(in.k.data() + (bh * p.n + t) * 12, 12, k.data() + bh * 12);
        std::copy_n(in.v.data() + (bh * p.n + t) * 20, 20, v.data() + bh * 20);
      }
      decoder->step({q.data(), k.data(), v.data(), nullptr}, out.data());
    }
    return decoder->bytes().kv;
  };
  for (const Index n : {1, 13, 30}) {
    const auto tokens = static_cast<double>(n);
    for (const char* name : {"dense", "dense_stateful"})
      CHECK(kv_after(name, {}, n) == 4.0 * 6 * (12 + 20) * tokens);
    // delta = 0: every key is a cluster, with its count and `per_cluster` samples.
    const Settings settings{{"delta", 0.0},
                            {"per_cluster", Index{2}},
                            {"samples", Index{5}},
                            {"max_clusters", Index{16}}};
    CHECK(kv_after("subgen", settings, n) ==
          4.0 * 6 * (std::min(tokens, 16.0) * (12 * 3 + 1) + 5 * (12 + 20) + 1));
  }
}
