#include <catch2/catch.hpp>

#include "tests/tasks/attention.h"

using namespace subquad;

TEST_CASE("gaussian logits have the standard deviation that is asked for", "[gaussian]") {
  for (const double temperature : {0.5, 1.0, 4.0})
    for (const double scale : {0.0, 0.02, -0.5})
      for (const Index d : {16, 64}) {
        Problem p;
        p.n = p.n_kv = 512, p.d_k = d, p.scale = scale;
        const QKV data = fill("gaussian", {{"temperature", temperature}}, p);
        const MatrixD logits = logits_of(data, p);
        INFO("temperature=" << temperature << " " << p.str());
        CHECK(deviation_of(logits) == Approx(temperature).epsilon(0.04));
        CHECK(std::fabs(mean_of(logits)) < 0.03 * temperature);
        CHECK(deviation_of(data.v.head(0, 0).cast<double>()) == Approx(1).epsilon(0.03));
      }
}

TEST_CASE("gaussian at temperature 0 is uniform attention", "[gaussian]") {
  Problem p;
  p.n = p.n_kv = 8;
  const QKV data = fill("gaussian", {{"temperature", 0.0}}, p);
  CHECK(weights_of(data, p).isConstant(1.0 / 8));
}

TEST_CASE("gaussian correlates q and k of the same token alone", "[gaussian]") {
  for (const Index n : {500, 300, 700}) {  // the last queries stand at the last keys
    Problem p;
    p.n = n, p.n_kv = 500;
    const QKV data = fill("gaussian", {{"correlation", 0.6}, {"temperature", 2.0}}, p);
    const MatrixD q = data.q.head(0, 0).cast<double>(), k = data.k.head(0, 0).cast<double>();
    const auto correlation = [&](Index shift) {
      double qk = 0, qq = 0, kk = 0;
      for (Index j = 0; j < p.n_kv; ++j) {
        const Index i = j - (p.n_kv - p.n) + shift;
        if (i < 0 || i >= p.n) continue;
        qk += q.row(i).dot(k.row(j)), qq += q.row(i).squaredNorm(), kk += k.row(j).squaredNorm();
      }
      return qk / std::sqrt(qq * kk);
    };
    CHECK(correlation(0) == Approx(0.6).margin(0.02));
    CHECK(std::fabs(correlation(1)) < 0.02);
    CHECK(deviation_of(k) == Approx(deviation_of(q)).epsilon(0.02));
  }
}
