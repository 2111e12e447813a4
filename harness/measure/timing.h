// Timing of a repeated call. The engine is Google Benchmark, driven through its API: it finds the
// number of iterations and takes the repetitions. Its output, its exit status, its command line
// and its BENCHMARK_* environment variables have no part in it.
#pragma once

#include <functional>
#include <limits>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

struct TimingOptions {
  double min_time_s = 0.1;  // one repetition lasts at least this long
  double warmup_s = 0;      // untimed calls before the first repetition, at least one when > 0
  int repetitions = 5;
  Index iterations = 0;  // calls per repetition; 0 = found from min_time_s. Then no warm-up.
  // While median_uncertainty of the samples is above this, as many repetitions again are taken, at
  // most three times and within about two seconds. All samples count; none is thrown away.
  double max_spread = std::numeric_limits<double>::infinity();
};

// The call, and what has to happen around it outside the timed region. Empty functions are skipped.
// `number` counts calls from 0 on over the whole measurement, warm-up included.
struct TimedCall {
  std::function<void(Index number)> call;
  // Untimed work before each single call. When given, every call is timed by itself (a clock
  // reading of about 25 ns each is part of it); otherwise a repetition is one interval.
  std::function<void(Index number)> before_call;
  std::function<void()> before_repetition;
  // The calls since before_repetition were `first` .. first + count - 1.
  std::function<void(Index first, Index count)> after_repetition;
};

struct Timing {
  std::vector<double>
      samples;           // seconds per call, one per repetition; at least options.repetitions
  Index iterations = 0;  // calls per repetition
  double wall_s = 0;     // of the whole measurement, warm-up and untimed work included
};

// An exception of one of the functions ends the measurement and is rethrown.
Timing time_calls(const TimedCall& timed, const TimingOptions& options);

}  // namespace subquad
