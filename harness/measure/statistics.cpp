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

double median_uncertainty(std::vector<double> samples) {
  SUBQUAD_CHECK(!samples.empty(), "the median of no samples");
  std::sort(samples.begin(), samples.end());
  const std::size_t count = samples.size();
  // The median lies below the sample of rank r (from 0) with the probability that at most r of
  // `count` fair coins show heads: the largest rank for which that is at most 2.5 %.
  std::size_t rank = 0;
  double term = std::pow(0.5, static_cast<double>(count)), below = term;
  while (2 * (rank + 1) < count) {
    term *= static_cast<double>(count - rank) / static_cast<double>(rank + 1);
    if (!(below + term <= 0.025)) break;
    below += term;
    ++rank;
  }
  return (samples[count - 1 - rank] - samples[rank]) / 2 / median(samples);
}

}  // namespace subquad
