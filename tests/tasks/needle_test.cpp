#include <catch2/catch.hpp>

#include "tests/tasks/attention.h"

using namespace subquad;

namespace {

// The needles: keys at right angles to all others.
std::vector<Index> needles_of(const QKV& data) {
  const MatrixD k = data.k.head(0, 0).cast<double>();
  MatrixD products = k * k.transpose();
  products.diagonal().setZero();
  std::vector<Index> needles;
  for (Index j = 0; j < k.rows(); ++j)
    if (products.row(j).cwiseAbs().maxCoeff() < 1e-4) needles.push_back(j);
  return needles;
}

// Sum of the `count` largest weights of row i.
double top_mass(const MatrixD& weights, Index i, Index count) {
  std::vector<double> row(weights.row(i).begin(), weights.row(i).end());
  std::sort(row.rbegin(), row.rend());
  double sum = 0;
  for (Index c = 0; c < count; ++c) sum += row[static_cast<std::size_t>(c)];
  return sum;
}

}  // namespace

TEST_CASE("needles carry the mass asked for, at every length, causal or not", "[needle]") {
  for (const Index n : {64, 256, 1024})
    for (const bool causal : {false, true})
      for (const double mass : {0.5, 0.95, 0.999})
        for (const Index per_query : {1, 2}) {
          Problem p;
          p.n = p.n_kv = n, p.causal = causal;
          const QKV data =
              fill("needle", {{"mass", mass}, {"per_query", per_query}, {"needles", Index{3}}}, p);
          const MatrixD weights = weights_of(data, p);
          INFO(p.str() << " mass=" << mass << " per_query=" << per_query);
          const std::vector<Index> needles = needles_of(data);
          REQUIRE(needles.size() == 3);
          double held = 0, aimed = 0;
          Index rows = 0;
          for (Index i = 0; i < n; ++i) {
            if (p.visible(i) <= needles.back() || p.visible(i) < 32) continue;
            double on_needles = 0;
            for (const Index j : needles) on_needles += weights(i, j);
            held += on_needles;
            aimed += top_mass(weights, i, per_query);
            ++rows;
          }
          REQUIRE(rows > n / 20);
          // The mean over rows of a mass whose background varies by a few per cent.
          const double tolerance = 0.25 * (1 - mass) + 1e-4;
          CHECK(std::fabs(aimed / static_cast<double>(rows) - mass) < tolerance);
          CHECK(held / static_cast<double>(rows) >= aimed / static_cast<double>(rows) - 1e-12);
        }
}

TEST_CASE("needles stand at the depth asked for", "[needle]") {
  const auto found = [](const std::string& placement, double depth, Index set) {
    Problem p;
    p.n = p.n_kv = 301;
    const Settings settings{{"placement", placement}, {"depth", depth}, {"needles", Index{2}}};
    return needles_of(fill("needle", settings, p, 1, set));
  };
  using Keys = std::vector<Index>;
  CHECK(found("depth", 0.0, 0) == Keys{0, 1});
  CHECK(found("depth", 0.5, 0) == Keys{150, 151});
  CHECK(found("depth", 1.0, 1) == Keys{299, 300});
  for (Index set = 0; set < 5; ++set) {  // at random: one of them early
    const Keys keys = found("random", 0.5, set);
    REQUIRE(keys.size() == 2);
    CHECK(keys[0] < 301 / 16);
  }
  CHECK(found("random", 0.5, 0) != found("random", 0.5, 1));
}

TEST_CASE("causal queries before the needle see only background", "[needle]") {
  Problem p;
  p.n = p.n_kv = 200, p.causal = true;
  const Settings settings{{"placement", std::string("depth")}, {"needles", Index{1}}};
  const MatrixD weights = weights_of(fill("needle", settings, p), p);
  for (Index i = 20; i < 100; ++i) CHECK(weights.row(i).maxCoeff() < 0.6);
  for (Index i = 120; i < 200; ++i) CHECK(weights(i, 100) > 0.9);
}

TEST_CASE("different queries look for different needles", "[needle]") {
  Problem p;
  p.n = p.n_kv = 400;
  const QKV data = fill("needle", {{"needles", Index{4}}}, p);
  const MatrixD weights = weights_of(data, p);
  REQUIRE(needles_of(data).size() == 4);
  for (const Index j : needles_of(data)) CHECK(weights.col(j).sum() == Approx(95).margin(40));
}

TEST_CASE("needle refuses more needles than keys or dimensions", "[needle]") {
  Problem p;
  p.n = p.n_kv = 100, p.d_k = 3;
  CHECK(make_task("needle")->unsupported(p) == "needles=4 is more than min(d_k, n_kv)=3");
  CHECK(make_task("needle", {{"per_query", Index{5}}, {"needles", Index{3}}})->unsupported(p) ==
        "per_query=5 is more than needles=3");
}
