#include "harness/measure/statistics.h"

#include <algorithm>
#include <cmath>

#include "harness/core/error.h"

namespace subquad {

double median(std::vector<double> samples) { return quantile(std::move(samples), 0.5); }

double quantile(std::vector<double> samples, double fraction) {
  SUBQUAD_CHECK(!samples.empty(), "quantile of no samples");
  std::sort(samples.begin(), samples.end());
  const double place = fraction * static_cast<double>(samples.size() - 1);
  const auto low = static_cast<std::size_t>(place);
  const std::size_t high = std::min(low + 1, samples.size() - 1);
  return samples[low] + (place - std::floor(place)) * (samples[high] - samples[low]);
}

double relative_spread(const std::vector<double>& samples) {
  return (quantile(samples, 0.75) - quantile(samples, 0.25)) / median(samples);
}

}  // namespace subquad
