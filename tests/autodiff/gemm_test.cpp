// Products against plain sums: every layout, sizes with and without remainders, any thread count.

#include "harness/autodiff/gemm.h"

#include <array>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <vector>

#include "harness/autodiff/tape.h"
#include "harness/core/parallel.h"
#include "harness/core/random.h"

namespace subquad::autodiff {
namespace {

template <class T>
std::vector<T> noise(Index count, Seed seed) {
  std::vector<T> x(static_cast<std::size_t>(count));
  Random random(seed);
  for (T& v : x) v = static_cast<T>(random.normal());
  return x;
}

struct Layout {
  const char* name;
  bool transpose_a, transpose_b, heads_a, heads_b, heads_c;
};

// m rows are [2, m / 2] of (batch, n); a width of h * d is heads where the layout says so.
template <class T>
void check(Index m, Index n, Index k, const Layout& l) {
  const Index batch = 2, heads = 4;
  const auto matrix = [&](auto* data, Index rows, Index cols, bool transposed, bool by_head) {
    if (by_head) return by_heads(data, heads, rows / batch, cols / heads);
    return transposed ? plain(data, rows).transposed() : plain(data, cols);
  };
  const auto a = noise<T>(m * k, 1), b = noise<T>(k * n, 2), bias = noise<T>(n, 3),
             residual = noise<T>(m * n, 4), before = noise<T>(m * n, 5);
  for (const int extra : {0, 1, 2}) {
    std::vector<T> c = before, work(static_cast<std::size_t>(gemm_work(n, k)));
    Gemm<T> g;
    g.m = m;
    g.n = n;
    g.k = k;
    g.a = matrix(a.data(), m, k, l.transpose_a, l.heads_a);
    g.b = matrix(b.data(), k, n, l.transpose_b, l.heads_b);
    g.c = matrix(c.data(), m, n, false, l.heads_c);
    g.accumulate = extra == 1;
    g.bias = extra == 2 ? bias.data() : nullptr;
    g.residual = extra == 2 ? residual.data() : nullptr;
    Index rows_done = 0;
    const auto count = [&](Index first, Index last) { rows_done += last - first; };
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    g.done = RowsDone::of(count);
    gemm(g, work.data());
    CHECK(rows_done == m);
    g.done = {};
    std::vector<T> again = before;
    g.c.data = again.data();
    omp_set_num_threads(3);
    gemm(g, work.data());
    omp_set_num_threads(threads);
    REQUIRE(again == c);
    double worst = 0;
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) {
        const auto at = static_cast<std::size_t>(g.c.rows.at(i) + g.c.cols.at(j));
        double sum = extra == 1   ? static_cast<double>(before[at])
                     : extra == 2 ? static_cast<double>(bias[static_cast<std::size_t>(j)]) +
                                        static_cast<double>(residual[at])
                                  : 0;
        for (Index t = 0; t < k; ++t)
          sum += static_cast<double>(g.a.data[g.a.rows.at(i) + g.a.cols.at(t)]) *
                 static_cast<double>(g.b.data[g.b.rows.at(t) + g.b.cols.at(j)]);
        const double error = std::abs(sum - static_cast<double>(c[at]));
        if (!(error <= worst)) worst = error;
      }
    INFO(l.name << " m=" << m << " n=" << n << " k=" << k << " extra=" << extra);
    // k roundings of partial sums that reach sqrt(k), of random sign; five deviations are below
    // this.
    constexpr double kEpsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
    REQUIRE(worst <= kEpsilon * static_cast<double>(k + 20));
  }
}

TEST_CASE("products of every layout are right", "[autodiff]") {
  const std::vector<Layout> layouts{{"a b", false, false, false, false, false},
                                    {"a b^T", false, true, false, false, false},
                                    {"a^T b", true, false, false, false, false},
                                    {"a^T b^T", true, true, false, false, false},
                                    {"a in heads", false, true, true, false, false},
                                    {"b in heads", true, false, false, true, false},
                                    {"c in heads", false, true, false, false, true},
                                    {"all in heads", false, false, true, true, true}};
  for (const Layout& l : layouts) {
    for (const auto& [m, n, k] : std::vector<std::array<Index, 3>>{{2, 4, 4},
                                                                   {10, 12, 20},
                                                                   {14, 64, 32},
                                                                   {100, 128, 64},
                                                                   {26, 68, 260},
                                                                   {98, 192, 520}}) {
      check<float>(m, n, k, l);
      check<double>(m, n, k, l);
    }
  }
  const Layout ab = layouts[0];
  for (const auto& [m, n, k] : std::vector<std::array<Index, 3>>{
           {1, 1, 1}, {7, 5, 3}, {13, 17, 257}, {97, 65, 1}, {3, 1, 300}, {5, 3, 0}})
    check<float>(m, n, k, ab);
}

// dq of a head layout times its weight: the terms come in groups.
TEST_CASE("terms in groups are summed in any number of blocks", "[autodiff]") {
  const Layout l{"a in heads", false, false, true, false, false};
  for (const Index k : {8, 64, 256, 512, 1040, 2400}) check<float>(6, 20, k, l);
}

}  // namespace
}  // namespace subquad::autodiff
