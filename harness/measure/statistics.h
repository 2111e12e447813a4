// Statistics of samples: pure functions, no state.
#pragma once

#include <vector>

namespace subquad {

double median(std::vector<double> samples);  // requires a sample
double quantile(std::vector<double> samples,
                double fraction);  // linear interpolation, fraction in [0, 1]

// How well the samples tell the median: half the width of its 95 % interval, over the median. The
// interval lies between order statistics (sign test) and assumes no distribution: outliers do not
// widen it, two groups of samples do, and more samples narrow it. Below six samples it is all of
// their range, which holds the median with a probability of 94 % (five) or 75 % (three).
double median_uncertainty(std::vector<double> samples);

}  // namespace subquad
