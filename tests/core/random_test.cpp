#include "harness/core/random.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

#include "harness/core/parallel.h"

using namespace subquad;

TEST_CASE("philox4x32-10 gives the published vectors", "[random]") {
  using Words = std::array<std::uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("portable elementary functions agree with libm", "[random]") {
  Random random(7);
  for (int i = 0; i < 20000; ++i) {
    const double x = random.uniform(-700, 700), y = random.uniform(-1e5, 1e5);
    CHECK(portable_exp(x) == Approx(std::exp(x)).epsilon(2e-14));
    CHECK(portable_log(std::exp(x)) == Approx(std::log(std::exp(x))).epsilon(1e-14).margin(1e-15));
    CHECK(std::fabs(portable_sin(y) - std::sin(y)) < 1e-13);
    CHECK(std::fabs(portable_cos(y) - std::cos(y)) < 1e-13);
  }
  CHECK(portable_exp(0) == 1.0);
  CHECK(portable_log(1) == 0.0);
}

TEST_CASE("inverse_normal_cdf inverts the normal distribution", "[random]") {
  for (const double p : {1e-300, 1e-12, 1e-4, 0.02, 0.3, 0.5, 0.7, 0.98, 1 - 1e-9}) {
    const double x = inverse_normal_cdf(p);
    CHECK(0.5 * std::erfc(-x / std::sqrt(2.0)) == Approx(p).epsilon(1e-12));
  }
}

TEST_CASE("normal deviates have the moments of a normal distribution", "[random]") {
  constexpr Index kCount = 400000;
  std::vector<float> x(kCount);
  fill_normal(derive(3, "moments"), x.data(), kCount);
  double sum = 0, sum2 = 0, sum3 = 0, sum4 = 0;
  for (const float value : x) {
    const double v = static_cast<double>(value);
    sum += v, sum2 += v * v, sum3 += v * v * v, sum4 += v * v * v * v;
  }
  const double n = kCount, error = 4 / std::sqrt(n);  // four standard errors of the mean
  CHECK(std::fabs(sum / n) < error);
  CHECK(std::fabs(sum2 / n - 1) < error * std::sqrt(2.0));
  CHECK(std::fabs(sum3 / n) < error * std::sqrt(15.0));
  CHECK(std::fabs(sum4 / n - 3) < error * std::sqrt(96.0));
}

TEST_CASE("a filled array does not depend on the thread count and is its own prefix", "[random]") {
  const auto filled = [](int threads, Index count) {
    omp_set_num_threads(threads);
    std::vector<float> x(static_cast<std::size_t>(count));
    fill_normal(11, x.data(), count);
    return x;
  };
  const int before = thread_count();
  const auto one = filled(1, 100003), three = filled(3, 100003), shorter = filled(2, 777);
  omp_set_num_threads(before);
  CHECK(one == three);
  CHECK(std::equal(shorter.begin(), shorter.end(), one.begin()));
}

TEST_CASE("a filled array holds the same bits as the generator read one number at a time",
          "[random]") {
  constexpr Index kCount = 50001;
  const Seed seed = 0x123456789abcdefULL;
  std::vector<float> normal(kCount), uniform(kCount);
  fill_normal(seed, normal.data(), kCount);
  fill_uniform(seed, uniform.data(), kCount);
  const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed),
                                         static_cast<std::uint32_t>(seed >> 32)};
  Index different = 0;
  for (Index i = 0; i < kCount; ++i) {
    const auto block = philox4x32({static_cast<std::uint32_t>(i / 4), 0, 0, 0}, key);
    const double u = (static_cast<double>(block[static_cast<std::size_t>(i % 4)]) + 0.5) * 0x1p-32;
    if (normal[static_cast<std::size_t>(i)] != static_cast<float>(inverse_normal_cdf(u)))
      ++different;
    if (uniform[static_cast<std::size_t>(i)] != static_cast<float>(std::min(u, 1 - 0x1p-24)))
      ++different;
  }
  CHECK(different == 0);
  CHECK(*std::max_element(uniform.begin(), uniform.end()) < 1.0f);
}

TEST_CASE("below is uniform and sampling without replacement is a permutation", "[random]") {
  Random random(5, "below");
  std::vector<int> counts(7);
  for (int i = 0; i < 70000; ++i) ++counts[random.below(7)];
  double chi2 = 0;
  for (const int c : counts) chi2 += (c - 10000.0) * (c - 10000.0) / 10000.0;
  CHECK(chi2 < 22.5);  // 6 degrees of freedom, p = 0.001
  const auto drawn = random.sample_without_replacement(50, 50);
  CHECK(std::set<Index>(drawn.begin(), drawn.end()).size() == 50);
  CHECK(*std::max_element(drawn.begin(), drawn.end()) == 49);
}

TEST_CASE("derived seeds differ by purpose, number and order", "[random]") {
  std::set<Seed> seeds{derive(1, "a"),        derive(1, "b"),      derive(2, "a"),
                       derive(1, "a", {0}),   derive(1, "a", {1}), derive(1, "a", {0, 1}),
                       derive(1, "a", {1, 0})};
  CHECK(seeds.size() == 7);
}
