#include "harness/measure/noise.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "harness/measure/memory.h"
#include "harness/measure/statistics.h"

namespace subquad {
namespace {

constexpr double kMaxSuspended = 1;      // seconds
constexpr double kMaxStealShare = 0.05;  // of all cores' time
constexpr double kMaxFrequencyChange = 0.1;
constexpr double kMaxSwitchesPerSecond = 100;
constexpr double kMinSample = 1e-3;  // seconds; pyperf's limit for one raw value
constexpr double kMaxExtraCpu = 1.15;
// Our choice, as for other shares: short interruptions fall on few samples, and the median stays;
// one neighbour on the same core makes it 30 to 50 %.
constexpr double kMaxWaited = 0.1;  // of the wall time

}  // namespace

double calibrate() {
  constexpr Index kSize = 96;
  const Matrix a = Matrix::Constant(kSize, kSize, 1.f), b = Matrix::Constant(kSize, kSize, 0.5f);
  Matrix c(kSize, kSize);
  double best = 0;
  const double end = monotonic_seconds() + 0.5e-3;
  for (double now = monotonic_seconds(); now < end || best == 0;) {
    c.noalias() = a * b;
    asm volatile("" : : "g"(c.data()) : "memory");  // the product must not be optimised away
    const double after = monotonic_seconds();
    if (after > now) best = std::max(best, 2e-9 * kSize * kSize * kSize / (after - now));
    now = after;
  }
  return best;
}

NoiseSnapshot noise_snapshot() {
  return {monotonic_seconds(),
          boottime_seconds(),
          cpu_seconds(),
          steal_seconds(),
          involuntary_context_switches(),
          waiting_seconds()};
}

Noise noise_between(const NoiseSnapshot& before, const NoiseSnapshot& after) {
  Noise noise;
  noise.wall_s = after.monotonic_s - before.monotonic_s;
  noise.suspended_s = (after.boottime_s - before.boottime_s) - noise.wall_s;
  noise.steal_s = after.steal_s - before.steal_s;
  noise.cpu_s = after.cpu_s - before.cpu_s;
  noise.context_switches = after.context_switches - before.context_switches;
  // Threads that have ended take their part with them.
  noise.waited_s = std::max(0.0, after.waiting_s - before.waiting_s);
  noise.cores = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  return noise;
}

std::vector<Doubt> doubts(const std::vector<double>& samples, Index iterations, double max_spread,
                          const Noise& noise, int threads) {
  std::vector<Doubt> list;
  if (!samples.empty()) {
    const double middle = median(samples);
    const double uncertainty = median_uncertainty(samples);
    if (!(uncertainty <= max_spread))
      list.push_back({"spread",
                      fmt::format("the samples tell the median to within {:.3g} %, limit {:.3g} %",
                                  100 * uncertainty, 100 * max_spread),
                      true});
    const double sample_s = middle * static_cast<double>(iterations);
    if (!(sample_s >= kMinSample))
      list.push_back({"short_samples", fmt::format("a sample lasts {:.2g} s", sample_s), false});
  }
  if (!(std::fabs(noise.suspended_s) <= kMaxSuspended))
    list.push_back({"suspended",
                    fmt::format("the machine was suspended for {:.1f} s", noise.suspended_s),
                    true});
  const double capacity = noise.wall_s * noise.cores;
  if (noise.steal_s > kMaxStealShare * capacity)
    list.push_back(
        {"steal",
         fmt::format("the hypervisor took {:.1f} % of the processor time, limit {:.0f} %",
                     100 * noise.steal_s / capacity, 100 * kMaxStealShare),
         true});
  if (noise.cpu_s > kMaxExtraCpu * threads * noise.wall_s + 0.05)
    list.push_back(
        {"extra_threads",
         fmt::format("used {:.2f} processors, {} granted", noise.cpu_s / noise.wall_s, threads),
         true});
  if (static_cast<double>(noise.context_switches) > 20 + kMaxSwitchesPerSecond * noise.wall_s)
    list.push_back({"context_switches",
                    fmt::format("{} involuntary context switches in {:.2f} s",
                                noise.context_switches, noise.wall_s),
                    false});
  const double granted = threads * noise.wall_s;
  if (noise.waited_s > kMaxWaited * granted)
    list.push_back({"waited",
                    fmt::format("its threads waited for a processor for {:.1f} % of the time, "
                                "limit {:.0f} %",
                                100 * noise.waited_s / granted, 100 * kMaxWaited),
                    true});
  const double ratio = noise.calibration_after / noise.calibration_before;
  if (noise.calibration_before > 0 && !(std::fabs(ratio - 1) <= kMaxFrequencyChange))
    list.push_back(
        {"frequency", fmt::format("calibration changed by a factor {:.3g}", ratio), false});
  return list;
}

}  // namespace subquad
