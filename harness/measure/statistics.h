// Statistics of samples: pure functions, no state.
#pragma once

#include <vector>

namespace subquad {

double median(std::vector<double> samples);  // requires a sample
double quantile(std::vector<double> samples,
                double fraction);  // linear interpolation, fraction in [0, 1]
double relative_spread(const std::vector<double>& samples);  // interquartile range over the median

}  // namespace subquad
