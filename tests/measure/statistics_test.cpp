#include "harness/measure/statistics.h"

#include <catch2/catch.hpp>

#include "harness/core/error.h"

using namespace subquad;

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
