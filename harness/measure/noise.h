// What may have disturbed a measurement: a snapshot before and after it, a fixed calibration
// loop, and the verdict.
#pragma once

#include <string>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

// GFLOP/s of a fixed small matrix product on one thread: the best of several runs within about
// 0.5 ms. Its ratio before and after a measurement shows a change of the clock.
double calibrate();

// The state of clocks and counters at one moment.
struct NoiseSnapshot {
  double monotonic_s = 0, boottime_s = 0, cpu_s = 0, steal_s = 0;
  std::int64_t context_switches = 0;  // involuntary
  double waiting_s = 0;               // of all threads, runnable without a processor
};
NoiseSnapshot noise_snapshot();

// What happened between two snapshots, with the calibrations around them.
struct Noise {
  double wall_s = 0;
  double suspended_s = 0;
  double steal_s = 0;  // all cores
  double cpu_s = 0;    // of this process
  std::int64_t context_switches = 0;
  double waited_s = 0;  // all threads together
  double calibration_before = 0, calibration_after = 0;
  int cores = 1;  // of the machine
};
Noise noise_between(const NoiseSnapshot& before, const NoiseSnapshot& after);

// One doubt about a number. `unstable` ones take the row out of tables; others are only noted.
struct Doubt {
  std::string flag;    // "spread", "steal", ...
  std::string reason;  // with the figure and the limit
  bool unstable = false;
};

// Doubts from samples (seconds per call, of `iterations` calls each) and noise; `threads` is what
// the cell was granted.
std::vector<Doubt> doubts(const std::vector<double>& samples, Index iterations, double max_spread,
                          const Noise& noise, int threads);

}  // namespace subquad
