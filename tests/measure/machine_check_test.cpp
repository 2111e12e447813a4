#include "harness/measure/machine_check.h"

#include <Eigen/Core>
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

using namespace subquad;

namespace {

DoctorFacts good_machine() {
  DoctorFacts facts;
  facts.build_type = "Release";
  facts.speed = {
      .clock_idle_mhz = 3000, .clock_load_mhz = 3000, .fma_gflops = 100, .gemm_gflops = 85};
  facts.noise.median_s = 1e-3;
  facts.noise.spread = 0.01;
  return facts;
}

bool advised(const DoctorFacts& facts, const std::string& word) {
  for (const Advice& advice : advise(facts))
    if (advice.problem.find(word) != std::string::npos) return true;
  return false;
}

}  // namespace

TEST_CASE("nothing is advised for a quiet machine with a release build", "[machine]") {
  CHECK(advise(good_machine()).empty());
}

TEST_CASE("each thing that may spoil a measurement is named with a remedy", "[machine]") {
  const auto check = [](void (*spoil)(DoctorFacts&), const char* word) {
    DoctorFacts facts = good_machine();
    spoil(facts);
    CAPTURE(word);
    CHECK(advise(facts).size() == 1);
    CHECK(advised(facts, word));
    CHECK_FALSE(advise(facts).at(0).remedy.empty());
  };
  check([](DoctorFacts& f) { f.build_type = "Debug"; }, "Debug");
  check([](DoctorFacts& f) { f.sanitized = true; }, "sanitizer");
  check([](DoctorFacts& f) { f.noise.spread = 0.2; }, "spreads by 20.0 %");
  check([](DoctorFacts& f) { f.noise.spread = NAN; }, "spreads");
  check([](DoctorFacts& f) { f.noise.slow_share = 0.1; }, "slow");
  check([](DoctorFacts& f) { f.noise.drift = -0.1; }, "-10.0 %");
  check([](DoctorFacts& f) { f.noise.runnable = 3; }, "3 other tasks");
  check([](DoctorFacts& f) { f.noise.steal_share = 0.01; }, "hypervisor took 1.00 %");
  check([](DoctorFacts& f) { f.hypervisor = true; }, "virtual machine");
  check([](DoctorFacts& f) { f.governor = "powersave"; }, "powersave");
  check([](DoctorFacts& f) { f.turbo = "on"; }, "turbo");
  check([](DoctorFacts& f) { f.smt = true; }, "hardware threads");
  check([](DoctorFacts& f) { f.huge_pages = "always"; }, "always");
  check([](DoctorFacts& f) { f.huge_pages = "never"; }, "never");
  check([](DoctorFacts& f) { f.swap = true; }, "swap");
  check([](DoctorFacts& f) { f.speed.gemm_gflops = 30; }, "30 %");
  check([](DoctorFacts& f) { f.plots = false; }, "figures");
}

TEST_CASE("what the system does not say is not complained about", "[machine]") {
  DoctorFacts facts = good_machine();
  facts.governor = facts.turbo = facts.huge_pages = "";
  CHECK(advise(facts).empty());
}

TEST_CASE("the measured speeds are those of one core", "[machine]") {
  const SpeedReport speed = measure_speed(0.2);
  CHECK(speed.clock_idle_mhz > 100);
  CHECK(speed.clock_idle_mhz < 10000);
  CHECK(speed.fma_gflops > 0);
#ifdef __FMA__
  // No core does more than two multiply-adds of the widest register in a cycle; a figure above
  // means that the compiler dropped work. Half as much again for a clock that rose meanwhile.
  const double lanes = EIGEN_MAX_ALIGN_BYTES / 4.0;
  const double mhz = std::max(speed.clock_idle_mhz, speed.clock_load_mhz);
  CHECK(speed.fma_gflops <= 1.5 * 2 * 2 * lanes * mhz * 1e-3);
#endif
}

TEST_CASE("noise is measured in consistent figures", "[machine]") {
  const NoiseReport noise = measure_noise(0.1);
  CHECK(noise.samples >= 4);
  CHECK(noise.min_s > 0);
  CHECK(noise.min_s <= noise.median_s);
  CHECK(noise.median_s <= noise.max_s);
  CHECK(noise.spread >= 0);
  CHECK(noise.slow_share >= 0);
  CHECK(noise.slow_share <= 0.5);
}
