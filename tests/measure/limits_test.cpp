// What can be said of measured limits without asserting a speed: they are positive and finite, grow
// with what they count, and bound a real product.
#include "harness/measure/limits.h"

#include <catch2/catch.hpp>
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/measure/noise.h"
#include "harness/measure/processors.h"

using namespace subquad;

TEST_CASE("a burst of multiply-adds gives a finite rate for any number of threads", "[limits]") {
  const int before = thread_count();
  for (const int threads : {1, 2, 3}) {
    set_threads(threads);
    const double rate = fma_burst_gflops();
    CAPTURE(threads, rate);
    CHECK(std::isfinite(rate));
    CHECK(rate > 0);
  }
  set_threads(before);
}

TEST_CASE("no product is faster than multiply-adds in registers", "[limits]") {
  const int before = thread_count();
  set_threads(1);
  // Best of several on both sides: other programs can only slow either of them down.
  double peak = 0, product = 0;
  for (int i = 0; i < 10; ++i) {
    peak = std::max(peak, fma_burst_gflops());
    product = std::max(product, calibrate());
  }
  CAPTURE(peak, product);
  CHECK(product <= 1.05 * peak);
  set_threads(before);
}

TEST_CASE("a peak meter takes no second burst at once", "[limits]") {
  PeakMeter meter;
  CHECK(meter.gflops() == 0);
  meter.sample();
  meter.sample();
  CHECK(meter.bursts() == 1);
  CHECK(meter.gflops() > 0);
}

TEST_CASE("memory is read and copied at a finite rate, also in uneven parts", "[limits]") {
  const int before = thread_count();
  for (const int threads : {1, 3}) {
    set_threads(threads);
    const Bandwidth b = memory_bandwidth(std::size_t{4'000'001});
    CAPTURE(threads, b.read, b.copy);
    CHECK(std::isfinite(b.read + b.copy));
    CHECK(b.read > 0);
    CHECK(b.copy > 0);
    CHECK(b.best() == std::max(b.read, b.copy));
  }
  set_threads(before);
  CHECK(bandwidth_buffer_bytes() >= 16'000'000);
  CHECK(bandwidth_buffer_bytes() <= std::size_t{256} << 20);
}
