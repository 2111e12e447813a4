#include "harness/measure/error_metrics.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

using namespace subquad;

namespace {

TensorD exact_tensor(std::initializer_list<double> values, Index n, Index d, Index heads = 1) {
  TensorD t(1, heads, n, d);
  std::copy(values.begin(), values.end(), t.data());
  return t;
}
Tensor tensor(std::initializer_list<float> values, Index n, Index d, Index heads = 1) {
  Tensor t(1, heads, n, d);
  std::copy(values.begin(), values.end(), t.data());
  return t;
}
ErrorMetrics compare(const TensorD& exact, const Tensor& got) {
  ErrorSums sums;
  sums.add(exact.view(), got.view());
  return sums.metrics();
}
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("errors of worked tensors", "[error_metrics]") {
  const TensorD exact = exact_tensor({3, 4, 0, 5}, 2, 2);
  const ErrorMetrics same = compare(exact, tensor({3, 4, 0, 5}, 2, 2));
  CHECK(same.relative == 0);
  CHECK(same.max_abs == 0);
  CHECK(same.cosine == Approx(1));
  CHECK(same.rows == 2);

  // differences 0 -1 / 5 -5: squares 1 + 50, exact 50
  const ErrorMetrics other = compare(exact, tensor({3, 3, 5, 0}, 2, 2));
  CHECK(other.relative == Approx(std::sqrt(51.0 / 50)));
  CHECK(other.max_abs == 5);
  CHECK(other.row_relative == Approx((1.0 / 5 + std::sqrt(50.0) / 5) / 2));
  CHECK(same.row_relative == 0);
  CHECK(other.cosine == Approx((21 / (5 * std::sqrt(18.0)) + 0) / 2));
  // mean row (1.5, 4.5): deviations (1.5, -0.5), (-1.5, 0.5)
  CHECK(other.constant_row_error == Approx(std::sqrt(5.0 / 50)));
}

TEST_CASE("sampled rows are compared with the rows that they stand for", "[error_metrics]") {
  const TensorD exact = exact_tensor({1, 2, 3, 4}, 2, 1, 2);  // heads {1, 2} and {3, 4}
  const Tensor got = tensor({9, 1, 2, 3, 9, 4.5f}, 3, 1, 2);  // heads {9, 1, 2}, {3, 9, 4.5}
  ErrorSums sums;
  sums.add(exact.view(), got.view(), {{1, 2}, {0, 2}});
  CHECK(sums.metrics().max_abs == 0.5);
  CHECK(sums.metrics().rows == 4);
  ErrorSums wrong;
  CHECK_THROWS_AS(wrong.add(exact.view(), got.view()), InternalError);
}

TEST_CASE("several tensors make one error", "[error_metrics]") {
  ErrorSums sums;
  sums.add(exact_tensor({3}, 1, 1).view(), tensor({3}, 1, 1).view());
  sums.add(exact_tensor({4, 0}, 1, 2).view(), tensor({4, 1}, 1, 2).view());
  CHECK(sums.metrics().relative == Approx(1.0 / 5));
  CHECK(sums.metrics().rows == 2);
}

TEST_CASE("an exact output of zeros defines no relative error unless it is met",
          "[error_metrics]") {
  const TensorD zero = exact_tensor({0, 0}, 2, 1);
  CHECK(compare(zero, tensor({0, 0}, 2, 1)).relative_defined);
  CHECK(compare(zero, tensor({0, 0}, 2, 1)).cosine == 1);
  CHECK_FALSE(compare(zero, tensor({0, 1}, 2, 1)).relative_defined);
  CHECK(weak_check(compare(zero, tensor({0, 0}, 2, 1))));
}

TEST_CASE("a NaN never looks good", "[error_metrics]") {
  // Contract: outputs are finite before metrics. Should one slip through, nothing passes a limit.
  const ErrorMetrics m = compare(exact_tensor({1, 2, 3}, 3, 1), tensor({1, kNaN, 3}, 3, 1));
  CHECK_FALSE(m.relative <= 1e9);
  CHECK_FALSE(m.max_abs <= 1e9);
  CHECK_FALSE(m.cosine >= -1);
  CHECK_FALSE(relative_difference(tensor({1, kNaN}, 2, 1), tensor({1, 2}, 2, 1)) <= 1e9);
  CHECK_FALSE(relative_difference(tensor({1, kNaN}, 2, 1), tensor({1, kNaN}, 2, 1)) <= 1e9);
}

TEST_CASE("the state of an output tells untouched from NaN and infinity", "[error_metrics]") {
  Tensor t(1, 2, 2, 2);
  CHECK(output_state(t).finite());
  CHECK(describe(output_state(t), t, "out").empty());
  for (const float bad : {kNaN, kInf, -kInf}) {
    t.fill(1);
    t.data()[7] = bad;  // the last element
    const OutputState state = output_state(t);
    CHECK(state.not_finite == 1);
    CHECK(state.untouched == 0);
    CHECK(describe(state, t, "out") ==
          "out has NaN or infinity in 1 of 8 elements, first at [0, 1, 1, 1]");
  }
  fill_untouched(t);
  CHECK(output_state(t).untouched == 8);
  t.fill(3);
  t.data()[2] = fill_pattern();
  CHECK(describe(output_state(t), t, "dq") ==
        "dq left untouched: 1 of 8 elements still hold the fill value (never written, or added "
        "to), first at [0, 0, 1, 0]");
  t.fill(std::numeric_limits<float>::max());  // large, yet finite
  CHECK(output_state(t).finite());
}

TEST_CASE("a nearly constant exact output is a weak check", "[error_metrics]") {
  const TensorD flat = exact_tensor({1, 2, 1.001, 2.001, 0.999, 2}, 3, 2);
  CHECK(weak_check(compare(flat, tensor({1, 2, 1, 2, 1, 2}, 3, 2))));
  const TensorD varied = exact_tensor({1, 2, -1, 1, 3, 0}, 3, 2);
  CHECK_FALSE(weak_check(compare(varied, tensor({1, 2, 1, 2, 1, 2}, 3, 2))));
  // Each head is constant, though the heads differ.
  CHECK(weak_check(compare(exact_tensor({1, 1, 5, 5}, 2, 1, 2), tensor({1, 1, 5, 5}, 2, 1, 2))));
  // One row says nothing about constancy.
  CHECK_FALSE(weak_check(compare(exact_tensor({1, 2}, 1, 2), tensor({1, 2}, 1, 2))));
}

TEST_CASE("divergence and top-k mass of worked rows", "[error_metrics]") {
  MatrixD exact(3, 3);
  exact << 0.5, 0.25, 0.25,  //
      1, 0, 0,               //
      0, 0, 0;               // a query that sees no key is passed over
  Matrix got(3, 3);
  got << 0.25f, 0.5f, 0.25f,  //
      0, 1, 0,                //
      0, 0, 0;
  MatrixSums sums;
  CHECK_FALSE(sums.metrics().has_value());
  REQUIRE(sums.add(exact, got, 1));
  const MatrixMetrics m = sums.metrics().value();
  CHECK(m.rows == 2);
  CHECK(m.kl == Approx((0.25 * std::log(2.0) + std::log(1 / kKlFloor)) / 2));
  CHECK(m.topk_mass == Approx((0.5 + 0) / 2));
  // All keys of the first row get weight, of the second only one without exact mass.
  CHECK(m.recall == Approx((1 + 0) / 2.0));
  CHECK(m.mass == Approx((1 + 0) / 2.0));
  MatrixSums half;
  Matrix few = exact.cast<float>();
  few(0, 1) = 0;
  REQUIRE(half.add(exact, few, 2));  // the second row has one key alone
  CHECK(half.metrics()->recall == Approx((0.5 + 1) / 2));
  CHECK(half.metrics()->mass == Approx((0.75 + 1) / 2));

  MatrixSums self;
  REQUIRE(self.add(exact, exact.cast<float>(), 2));
  CHECK(self.metrics()->kl == Approx(0).margin(1e-12));
  CHECK(self.metrics()->topk_mass == Approx(1));

  MatrixSums bad;
  Matrix spoilt = got;
  spoilt(0, 0) = kNaN;
  CHECK_FALSE(bad.add(exact, spoilt, 1));
  spoilt(0, 0) = kInf;
  CHECK_FALSE(bad.add(exact, spoilt, 1));
  CHECK_FALSE(bad.metrics().has_value());
}

TEST_CASE("distances of worked attention matrices", "[error_metrics]") {
  MatrixD exact(3, 2);
  exact << 0.5, 0.5,  //
      1, 0,           //
      0, 0;
  Matrix got(3, 2);
  got << 0.75f, 0.25f,  // differences 1/4, -1/4
      0.5f, -0.5f,      // -1/2, -1/2
      0, 0.25f;         // a weight where there is none: counts in both distances, not in kl
  MatrixSums sums;
  REQUIRE(sums.add(exact, got, 1));
  const MatrixMetrics m = sums.metrics().value();
  CHECK(m.relative == Approx(std::sqrt((2 / 16.0 + 2 / 4.0 + 1 / 16.0) / 1.5)));
  CHECK(m.row_tv == Approx((0.25 + 0.5 + 0.125) / 3));
  CHECK(m.judged_rows == 3);
  CHECK(m.rows == 2);
  CHECK(m.negative);
  MatrixSums self;
  REQUIRE(self.add(exact, exact.cast<float>(), 1));
  CHECK(self.metrics()->relative == 0);
  CHECK(self.metrics()->row_tv == 0);
  CHECK_FALSE(self.metrics()->negative);
}

TEST_CASE("a row without direction does not count in the cosine", "[error_metrics]") {
  const TensorD exact = exact_tensor({1, 0, 1e-17, 0, 0, 2}, 3, 2);
  CHECK(compare(exact, tensor({1, 0, 0, 1e-9f, 0, 2}, 3, 2)).cosine == Approx(1));
  CHECK(compare(exact, tensor({1, 0, 0, 0, 0, 0}, 3, 2)).cosine == Approx(0.5));
}
