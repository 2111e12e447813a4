// The length from which a method beats the baseline for good, with a confidence interval.
//
// At every measured length the log-ratio of method to baseline is formed within each round (so
// that drift of the machine falls on both alike) and the median over the rounds is taken. Between
// lengths it is interpolated linearly in log n, that is, both costs are taken to follow a power of
// n there. The crossover is where this curve becomes negative for the last time.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "harness/core/random.h"

namespace subquad {

// What one round measured for the method and for the baseline, in one unit (seconds, bytes): one
// or more samples each, all finite and > 0.
struct RoundPair {
  std::vector<double> method;
  std::vector<double> baseline;
};

// All rounds of one length.
struct LengthPairs {
  double n = 0;  // > 0
  std::vector<RoundPair> rounds;
};

enum class CrossoverOutcome {
  crossover,   // at `n`, between two measured lengths
  always,      // below already at the smallest length measured
  not_reached  // not below at the largest length measured, whatever happened before
};
std::string_view name(CrossoverOutcome outcome);

// Bounds of a confidence interval of the crossover length.
struct CrossoverInterval {
  double low = 0;   // 0: below the smallest length measured
  double high = 0;  // infinity: beyond the largest length measured
};

struct Crossover {
  CrossoverOutcome outcome = CrossoverOutcome::not_reached;
  double n = 0;                               // only for CrossoverOutcome::crossover
  std::optional<CrossoverInterval> interval;  // none where there is nothing to resample
  double share = 1;                           // of the resamples that end with the same outcome
  double ratio_at_min_n = 1;                  // baseline / method at the ends of the curve
  double ratio_at_max_n = 1;
  double min_n = 0, max_n = 0;
};

struct BootstrapOptions {
  int resamples = 2000;
  double confidence = 0.95;  // in (0, 1)
  Seed seed = 1;
};

// log(method / baseline) of one length: median over its rounds of the log-ratio of the medians of
// their samples.
double log_ratio(const LengthPairs& length);

// The crossover of a curve of log-ratios [(n, log_ratio)], ascending in n, without interval.
Crossover crossover_of_curve(const std::vector<double>& n, const std::vector<double>& log_ratios);

// The crossover of measured lengths (any order, at least one, no length twice). The interval is a
// percentile bootstrap: at each length the rounds are drawn with replacement, and within a drawn
// round the samples of either side. With three rounds it is narrower than its nominal confidence.
Crossover crossover_length(std::vector<LengthPairs> lengths, const BootstrapOptions& options = {});

// One line: "813 [640, 1024]", "always (from 256)", "not reached (up to 8192)"; bounds that are
// open read "<256" and ">8192".
std::string str(const Crossover& crossover);

}  // namespace subquad
