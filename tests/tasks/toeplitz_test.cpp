#include <catch2/catch.hpp>

#include "tasks/toeplitz_segments.h"
#include "tests/tasks/attention.h"

using namespace subquad;

namespace {
const Settings kLocal{{"profile", std::string("local")}};
const Settings kRandom{{"profile", std::string("random")}};

// Largest difference of two logits at the same distance.
double unevenness(const MatrixD& logits) {
  double worst = 0;
  for (Index i = 0; i + 1 < logits.rows(); ++i)
    for (Index j = 0; j + 1 < logits.cols(); ++j)
      worst = std::max(worst, std::fabs(logits(i, j) - logits(i + 1, j + 1)));
  return worst;
}
}  // namespace

TEST_CASE("toeplitz logits depend on the distance alone", "[toeplitz]") {
  for (const Settings& settings : {kLocal, kRandom})
    for (const Index n : {300, 100, 400})
      for (const Index d : {2, 7, 64}) {
        Problem p;
        p.heads = 2, p.n = n, p.n_kv = 300, p.d_k = d;
        const QKV data = fill("toeplitz", settings, p);
        INFO(to_string(settings) << " " << p.str());
        // float32 entries: relative error 6e-8 each, logits of a few units.
        for (Index h = 0; h < 2; ++h) CHECK(unevenness(logits_of(data, p, 0, h)) < 4e-6);
        if (d > 2) CHECK(logits_of(data, p, 0, 0)(0, 0) != logits_of(data, p, 0, 1)(0, 0));
      }
}

TEST_CASE("toeplitz is exact to float precision far from the origin", "[toeplitz]") {
  Problem p;
  p.n = 40, p.n_kv = 100000, p.d_k = 16, p.d_v = 1, p.causal = true;
  const QKV data = fill("toeplitz", kRandom, p);
  const MatrixD logits = logits_of(data, p);
  CHECK(unevenness(logits.leftCols(200)) < 4e-6);
  CHECK(unevenness(logits.rightCols(200)) < 4e-6);
  // The same distance near the origin and far from it.
  Problem small = p;
  small.n_kv = 40;
  const MatrixD near = logits_of(fill("toeplitz", kRandom, small), small);
  for (Index x = 0; x < 40; ++x)
    CHECK(logits(39, p.n_kv - 1 - x) == Approx(near(39, 39 - x)).margin(4e-6));
}

TEST_CASE("local toeplitz peaks at distance 0, where the query stands in causal attention",
          "[toeplitz]") {
  for (const Index n : {200, 50}) {
    Problem p;
    p.n = n, p.n_kv = 200, p.causal = true;
    const MatrixD logits = logits_of(fill("toeplitz", kLocal, p), p);
    for (Index i = 0; i < n; ++i) {
      Index peak = 0;
      logits.row(i).maxCoeff(&peak);
      CHECK(peak == i + p.causal_offset());
    }
    CHECK(logits(n - 1, 199) > logits(n - 1, 100) + 1);
  }
}

TEST_CASE("toeplitz logits have the deviation asked for, and noise breaks the pattern by degrees",
          "[toeplitz]") {
  Problem p;
  p.n = p.n_kv = 600, p.scale = 0.4;
  Settings settings = kRandom;
  settings["temperature"] = 3.0;
  CHECK(deviation_of(logits_of(fill("toeplitz", settings, p), p)) == Approx(3).epsilon(0.1));
  double before = 4e-6;
  const MatrixD clean = logits_of(fill("toeplitz", settings, p), p);
  for (const double noise : {0.01, 0.1, 1.0}) {
    settings["noise"] = noise;
    const QKV data = fill("toeplitz", settings, p);
    const double rest = deviation_of(logits_of(data, p) - clean);
    CHECK(rest > 5 * before);
    before = rest;
  }
  // Noise 1: two cross terms and one product, each as large as a logit of independent entries.
  settings["noise"] = 1.0;
  CHECK(deviation_of(logits_of(fill("toeplitz", settings, p), p)) ==
        Approx(3 * std::sqrt(4.0)).epsilon(0.15));
}

TEST_CASE("toeplitz refuses a width without room for a frequency", "[toeplitz]") {
  Problem p;
  p.n = p.n_kv = 4, p.d_k = 1;
  CHECK(make_task("toeplitz")->unsupported(p) == "toeplitz needs d_k >= 2, got d_k=1");
}

namespace {
// Logits of distinct columns inside a run must be equal at equal distance; returns the columns at
// which that fails.
std::vector<Index> starts_seen(const MatrixD& logits) {
  std::vector<Index> starts{0};
  for (Index j = 1; j < logits.cols(); ++j) {
    double worst = 0;
    for (Index t = j; t < logits.rows(); ++t)
      worst = std::max(worst, std::fabs(logits(t, j) - logits(t - 1, j - 1)));
    if (worst > 1e-4) starts.push_back(j);
  }
  return starts;
}
}  // namespace

TEST_CASE("toeplitz segments start where toeplitz_starts says, and nowhere else", "[toeplitz]") {
  for (const std::string profile : {"local", "random", "rotary"})
    for (const std::string layout : {"random", "even", "edges"})
      for (const Index n : {1, 2, 3, 257, 400})
        for (const Index segments : {1, 2, 9}) {
          Problem p;
          p.heads = 2, p.n = p.n_kv = n, p.d_k = 32, p.causal = true;
          const Settings settings{{"profile", profile}, {"layout", layout}, {"segments", segments}};
          const QKV data = fill("toeplitz", settings, p, 5, 2);
          INFO(to_string(settings) << " n=" << n);
          for (Index h = 0; h < 2; ++h) {
            const auto want = toeplitz_starts(layout, segments, n, 5, 2, 0, h);
            CHECK(static_cast<Index>(want.size()) <= std::min(segments, n));
            CHECK(starts_seen(logits_of(data, p, 0, h)) == want);
          }
        }
}

TEST_CASE("toeplitz layouts have the starts that they promise", "[toeplitz]") {
  using Starts = std::vector<Index>;
  CHECK(toeplitz_starts("even", 4, 100, 1, 0, 0, 0) == Starts{0, 25, 50, 75});
  CHECK(toeplitz_starts("edges", 4, 100, 1, 0, 0, 0) == Starts{0, 1, 50, 99});
  CHECK(toeplitz_starts("edges", 2, 100, 1, 0, 0, 0) == Starts{0, 99});
  CHECK(toeplitz_starts("random", 1, 100, 1, 0, 0, 0) == Starts{0});
  CHECK(toeplitz_starts("random", 7, 3, 1, 0, 0, 0) == Starts{0, 1, 2});
  const Starts drawn = toeplitz_starts("random", 50, 1000, 1, 0, 0, 0);
  CHECK(drawn.size() == 50);
  CHECK(drawn != toeplitz_starts("random", 50, 1000, 2, 0, 0, 0));
  CHECK(drawn != toeplitz_starts("random", 50, 1000, 1, 0, 0, 1));
}

TEST_CASE("rotary toeplitz logits have about the deviation of their temperature", "[toeplitz]") {
  Problem p;
  p.heads = 4, p.n = p.n_kv = 300, p.d_k = 64;
  double deviation = 0;
  const QKV data =
      fill("toeplitz",
           {{"profile", std::string("rotary")}, {"segments", Index{100}}, {"temperature", 2.0}}, p);
  for (Index h = 0; h < 4; ++h) deviation += deviation_of(logits_of(data, p, 0, h)) / 4;
  CHECK(deviation == Approx(2).epsilon(0.3));
}
