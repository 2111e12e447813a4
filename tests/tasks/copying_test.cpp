// Copying, selective copying, and the Linear Transformers' copy task.
#include <catch2/catch.hpp>

#include "tests/tasks/labelled.h"
#include "tests/tasks/statistics.h"

using namespace subquad;

TEST_CASE("copying puts the symbols first and asks for them last", "[copying]") {
  const Index n = 64, m = 16;
  const TokenBatch batch = make_task("copying")->tokens(Split::train, 0, 2000, n, 1);
  std::vector<double> symbols(14);
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    for (Index t = 0; t < n; ++t) {
      const std::int32_t expected = t < m ? x[t] : t == n - m - 1 ? 15 : 14;
      if (x[t] != expected || (t < m && x[t] > 13)) FAIL_CHECK("token at " << t);
      if (y[t] != (t < n - m ? kIgnore : x[t - (n - m)])) FAIL_CHECK("label at " << t);
      if (t < m) symbols[static_cast<std::size_t>(x[t])] += 1;
    }
  }
  CHECK(chi_square_uniform(symbols) < chi_square_limit(13));
  CHECK(refused("copying", {}, 32) == "copying: 16 symbols need n >= 33, got n=32");
  CHECK(refused("copying", {}, 33).empty());
}

TEST_CASE("selective_copying scatters the symbols and keeps their order", "[copying]") {
  const Index n = 64, m = 16;
  const TokenBatch batch = make_task("selective_copying")->tokens(Split::train, 0, 4000, n, 1);
  std::vector<double> symbols(14), gaps(m);
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    std::vector<std::int32_t> seen;
    Index gap = 0;
    for (Index t = 0; t < n - m - 1; ++t) {
      if (y[t] != kIgnore) FAIL_CHECK("a label before the end");
      if (x[t] == 14) {
        ++gap;
        continue;
      }
      gaps[seen.size()] += static_cast<double>(gap);
      gap = 0;
      seen.push_back(x[t]);
      symbols[static_cast<std::size_t>(x[t])] += 1;
    }
    if (seen.size() != static_cast<std::size_t>(m) || x[n - m - 2] == 14 || x[n - m - 1] != 15)
      FAIL_CHECK("layout");
    for (Index j = 0; j < m; ++j)
      if (y[n - m + j] != seen[static_cast<std::size_t>(j)] || x[n - m + j] != 14)
        FAIL_CHECK("label " << j);
  }
  CHECK(chi_square_uniform(symbols) < chi_square_limit(13));
  CHECK(chi_square_uniform(gaps) < chi_square_limit(m - 1));
  CHECK(refused("selective_copying", {}, 32) ==
        "selective_copying: 16 symbols need n >= 33, got n=32");
}

TEST_CASE("causal_copy is the published task: lengths, separator, scored positions", "[copying]") {
  const Index n = 128;
  const auto task = make_task("causal_copy");
  const TokenBatch batch = task->tokens(Split::train, 0, 6000, n, 1);
  std::vector<double> lengths(31), symbols(10);
  double right = 0, scored = 0;
  for (Index e = 0; e < batch.batch; ++e) {
    const auto [x, y] = example(batch, e);
    const Index m = std::find(x, x + n, 0) - x;
    if (!(m >= 32 && m <= 62)) {
      FAIL_CHECK("length " << m);
      continue;
    }
    lengths[static_cast<std::size_t>(m - 32)] += 1;
    for (Index t = 0; t < n; ++t) {
      if (t > m && t <= 2 * m && x[t] != x[t - m - 1]) FAIL_CHECK("not a copy");
      if (t > 2 * m && x[t] != 0) FAIL_CHECK("not padded");
      const bool mask = t >= m - 1 && t <= 2 * m - 1;
      if (y[t] != (mask ? x[t + 1] : kIgnore)) FAIL_CHECK("label at " << t);
      if (t < m) symbols[static_cast<std::size_t>(x[t] - 1)] += 1;
      scored += mask;
      right += mask && (t == m - 1 || y[t] == 7);  // a guess
    }
  }
  CHECK(chi_square_uniform(lengths) < chi_square_limit(30));
  CHECK(chi_square_uniform(symbols) < chi_square_limit(9));
  CHECK(task->floors(n, 1)[0].value == Approx(right / scored).margin(0.003));
  CHECK(refused("causal_copy", {}, 7) == "causal_copy: n=7, expected at least 8");
  for (Index small = 8; small < 20; ++small)
    CHECK_NOTHROW(task->tokens(Split::train, 0, 20, small, 1));
}
