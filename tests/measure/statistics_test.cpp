#include "harness/measure/statistics.h"

#include <catch2/catch.hpp>

#include "harness/core/error.h"

using namespace subquad;

TEST_CASE("the uncertainty of a median is that of the sign test", "[statistics]") {
  // Ranks of the 95 % interval from binomial tables: n = 6: 1 and 6, n = 9: 2 and 8, n = 20: 6
  // and 15.
  const auto up_to = [](int n) {
    std::vector<double> samples;
    for (int i = n; i >= 1; --i) samples.push_back(i);
    return samples;
  };
  CHECK(median_uncertainty({7}) == 0);
  CHECK(median_uncertainty({3, 1, 2}) == Approx(0.5));
  CHECK(median_uncertainty(up_to(5)) == Approx(2.0 / 3));
  CHECK(median_uncertainty(up_to(6)) == Approx(2.5 / 3.5));
  CHECK(median_uncertainty(up_to(9)) == Approx(3.0 / 5));
  CHECK(median_uncertainty(up_to(20)) == Approx(4.5 / 10.5));
  // Five outliers of twenty are nothing to it, two groups of ten are.
  std::vector<double> samples(20, 1.0);
  std::fill_n(samples.begin(), 5, 50.0);
  CHECK(median_uncertainty(samples) == 0);
  std::fill_n(samples.begin(), 10, 50.0);
  CHECK(median_uncertainty(samples) == Approx(24.5 / 25.5));
}

TEST_CASE("median and quantiles of worked samples", "[statistics]") {
  CHECK(median({3, 1, 2}) == 2);
  CHECK(median({4, 1, 3, 2}) == 2.5);
  CHECK(median({7}) == 7);
  const std::vector<double> five{50, 10, 30, 20, 40};
  CHECK(quantile(five, 0) == 10);
  CHECK(quantile(five, 0.25) == 20);
  CHECK(quantile(five, 0.75) == 40);
  CHECK(quantile(five, 0.9) == Approx(46));
  CHECK(quantile(five, 1) == 50);
  CHECK(quantile({1, 2, 3, 4}, 0.25) == Approx(1.75));
  CHECK_THROWS_AS(median({}), InternalError);
}
