#include <catch2/catch.hpp>

#include "tests/tasks/attention.h"

using namespace subquad;

namespace {

// Column mass per query that sees the column, largest first.
std::vector<double> column_mass(const MatrixD& weights, const Problem& p) {
  std::vector<double> mass;
  for (Index j = 0; j < p.n_kv; ++j)
    mass.push_back(weights.col(j).sum() / static_cast<double>(p.n));
  return mass;
}

}  // namespace

TEST_CASE("heavy_hitter columns follow the power law exactly without noise", "[heavy_hitter]") {
  for (const double exponent : {0.0, 0.5, 1.0, 2.0}) {
    Problem p;
    p.n = 20, p.n_kv = 300;
    const QKV data = fill("heavy_hitter", {{"exponent", exponent}, {"noise", 0.0}}, p);
    std::vector<double> mass = column_mass(weights_of(data, p), p);
    if (exponent > 0)
      for (std::size_t j = 0; j < 3; ++j) CHECK(mass[j] > mass[j + 1]);  // sinks in order
    std::sort(mass.rbegin(), mass.rend());
    double total = 0;
    for (Index r = 1; r <= p.n_kv; ++r) total += std::pow(static_cast<double>(r), -exponent);
    for (Index r = 1; r <= p.n_kv; ++r)
      CHECK(mass[static_cast<std::size_t>(r - 1)] ==
            Approx(std::pow(static_cast<double>(r), -exponent) / total).epsilon(1e-4));
  }
}

TEST_CASE("heavy_hitter columns follow the power law on average with noise", "[heavy_hitter]") {
  Problem p;
  p.n = 1500, p.n_kv = 400;
  const Settings settings{{"exponent", 1.0}, {"noise", 1.0}, {"sinks", Index{4}}};
  const QKV data = fill("heavy_hitter", settings, p);
  const MatrixD logits = logits_of(data, p);
  std::vector<double> mass = column_mass(weights_of(data, p), p);
  std::sort(mass.rbegin(), mass.rend());
  // Least-squares slope of log mass over log rank.
  double sx = 0, sy = 0, sxx = 0, sxy = 0;
  const double n = static_cast<double>(p.n_kv);
  for (Index r = 1; r <= p.n_kv; ++r) {
    const double x = std::log(static_cast<double>(r)),
                 y = std::log(mass[static_cast<std::size_t>(r - 1)]);
    sx += x, sy += y, sxx += x * x, sxy += x * y;
  }
  CHECK((n * sxy - sx * sy) / (n * sxx - sx * sx) == Approx(-1).margin(0.1));
  // What is left of the logits without their column means is the noise.
  const MatrixD rest = logits.rowwise() - logits.colwise().mean();
  CHECK(deviation_of(rest) == Approx(1).margin(0.05));
}

TEST_CASE("heavy_hitter sinks hold the first positions, also in causal problems",
          "[heavy_hitter]") {
  Problem p;
  p.n = p.n_kv = 256, p.causal = true;
  const MatrixD weights =
      weights_of(fill("heavy_hitter", {{"sinks", Index{4}}, {"noise", 0.5}}, p), p);
  // Ranks 1 to 4 of 256 by r^-1: (1 + 1/2 + 1/3 + 1/4) / H_256 = 0.340.
  CHECK(weights.row(255).head(4).sum() == Approx(0.340).margin(0.08));
  CHECK(weights.row(40).head(4).sum() > weights.row(255).head(4).sum());
  const MatrixD without =
      weights_of(fill("heavy_hitter", {{"sinks", Index{0}}, {"noise", 0.5}}, p), p);
  CHECK(without.row(255).head(4).sum() < 0.3);
}
