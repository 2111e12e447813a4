// Element-wise functions on vectors against double precision, over their whole range.
#include "methods/engines/vector_math.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

using namespace subquad;
using namespace subquad::engine;

namespace {

// Largest relative error of f against `exact` on [from, to], and where.
template <class Function>
std::pair<double, float> worst(Function&& f, double (*exact)(double), double from, double to) {
  constexpr int kPoints = 200'000 / kLanes * kLanes;
  double most = 0;
  float where = 0;
  for (int i = 0; i < kPoints; i += kLanes) {
    Vec x;
    for (int lane = 0; lane < kLanes; ++lane)
      x[lane] = static_cast<float>(from + (to - from) * (i + lane) / (kPoints - 1));
    const Vec y = f(x);
    for (int lane = 0; lane < kLanes; ++lane) {
      const double want = exact(static_cast<double>(x[lane]));
      const double error = std::fabs(static_cast<double>(y[lane]) / want - 1);
      if (!(error <= most)) most = error, where = x[lane];
    }
  }
  return {most, where};
}

}  // namespace

TEST_CASE("exponentials of vectors are exact to a few roundings", "[methods][simd]") {
  // Beyond a few units the rounding of the constant log2(e) counts, 5e-8 for every unit.
  const auto near = worst([](Vec x) { return exp_nonpositive(x); }, std::exp, -3, 0);
  INFO("worst at " << near.second);
  CHECK(near.first <= 3.5e-7);
  CHECK(worst([](Vec x) { return exp_nonpositive(x); }, std::exp, -87.2, 0).first <= 4.4e-6);
  CHECK(worst([](Vec x) { return exp2_nonpositive(x); }, std::exp2, -125.9, 0).first <= 2.5e-7);
  CHECK(worst([](Vec x) { return exp2_any(x); }, std::exp2, -125.9, 127.9).first <= 2.5e-7);
}

TEST_CASE("exponentials of vectors at the ends of their range", "[methods][simd]") {
  constexpr float kInfinite = std::numeric_limits<float>::infinity();
  for (const float x : {-88.0f, -1e4f, -3e38f, -kInfinite}) {
    INFO(x);
    CHECK(exp_nonpositive(broadcast(x))[0] == 0.0f);
  }
  CHECK(exp_nonpositive(broadcast(0.0f))[0] == Approx(1).epsilon(2e-7));
  CHECK(exp_nonpositive(broadcast(-87.2f))[kLanes - 1] > 0.0f);
  CHECK(std::isnan(exp_nonpositive(broadcast(std::numeric_limits<float>::quiet_NaN()))[0]));
  for (const float x : {-127.0f, -kInfinite}) CHECK(exp2_nonpositive(broadcast(x))[0] == 0.0f);
  CHECK(exp2_any(broadcast(kInfinite))[0] == kInfinite);
}
