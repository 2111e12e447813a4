#include "harness/measure/noise.h"

#include <catch2/catch.hpp>
#include <limits>

using namespace subquad;

namespace {

const std::vector<double> kSteady{1.00, 1.01, 0.99, 1.00, 1.02};

Noise quiet() {
  Noise noise;
  noise.wall_s = 10;
  noise.cpu_s = 10;
  noise.calibration_before = noise.calibration_after = 50;
  noise.cores = 2;
  return noise;
}

// Flags of the doubts; a '!' marks those that make a row unstable.
std::string flags(const std::vector<double>& samples, const Noise& noise, Index iterations = 1) {
  std::string text;
  for (const Doubt& d : doubts(samples, iterations, 0.1, noise, 1))
    text += d.flag + (d.unstable ? "! " : " ");
  return text;
}

}  // namespace

TEST_CASE("a quiet measurement raises no doubt", "[noise]") {
  CHECK(flags(kSteady, quiet()) == "");
}

TEST_CASE("the calibration leaves Eigen on one thread, as the methods need it", "[noise]") {
  CHECK(calibrate() > 0);
  CHECK(Eigen::nbThreads() == 1);
}

TEST_CASE("each disturbance raises its own doubt", "[noise]") {
  // from 1 to 2, median 1.5
  CHECK(flags({1, 1, 1.5, 2, 2}, quiet()) == "spread! ");
  CHECK(doubts({1, 1, 1.5, 2, 2}, 1, 0.1, quiet(), 1)[0].reason ==
        "the samples tell the median to within 33.3 %, limit 10 %");
  CHECK(flags({1, std::numeric_limits<double>::quiet_NaN(), 1}, quiet()).starts_with("spread!"));

  Noise noise = quiet();
  noise.suspended_s = 1.5;
  CHECK(flags(kSteady, noise) == "suspended! ");
  noise = quiet();
  noise.steal_s = 0.9;  // of 2 x 10 s: 4.5 %
  CHECK(flags(kSteady, noise) == "");
  noise.steal_s = 1.1;
  CHECK(flags(kSteady, noise) == "steal! ");
  noise = quiet();
  noise.cpu_s = 15;
  CHECK(flags(kSteady, noise) == "extra_threads! ");
  noise = quiet();
  noise.context_switches = 5000;
  CHECK(flags(kSteady, noise) == "context_switches ");
  noise = quiet();
  noise.waited_s = 0.9;  // of 10 s
  CHECK(flags(kSteady, noise) == "");
  noise.waited_s = 1.1;
  CHECK(flags(kSteady, noise) == "waited! ");
  noise.cpu_s = 30;
  CHECK(doubts(kSteady, 1, 0.1, noise, 4).empty());  // of 4 x 10 s
  noise.waited_s = 4.4;
  CHECK(doubts(kSteady, 1, 0.1, noise, 4).at(0).reason ==
        "its threads waited for a processor for 11.0 % of the time, limit 10 %");
  noise = quiet();
  noise.calibration_after = 44;
  CHECK(flags(kSteady, noise) == "frequency ");
  noise.calibration_after = 46;
  CHECK(flags(kSteady, noise) == "");
  CHECK(flags({1e-5, 1e-5}, quiet(), 50) == "short_samples ");
  CHECK(flags({1e-5, 1e-5}, quiet(), 200) == "");
}

TEST_CASE("the difference of two snapshots is what happened between", "[noise]") {
  NoiseSnapshot before, after;
  before = {10, 100, 1, 5, 7};
  after = {12, 105, 2.5, 5.5, 9};
  const Noise noise = noise_between(before, after);
  CHECK(noise.wall_s == 2);
  CHECK(noise.suspended_s == 3);
  CHECK(noise.cpu_s == 1.5);
  CHECK(noise.steal_s == 0.5);
  CHECK(noise.context_switches == 2);
  CHECK(noise.cores >= 1);
  CHECK(calibrate() > 0.01);
}
