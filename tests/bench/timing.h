// Wall time of a call, for the benchmarks that time by themselves.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <utility>
#include <vector>

namespace subquad::bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of a non-empty list; the upper one of two in the middle.
inline double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

// Median seconds of at least five calls and half a second, after one that is not counted.
template <class Call>
double time_of(Call&& call) {
  call();
  std::vector<double> samples;
  const double start = now();
  while (samples.size() < 5 || now() - start < 0.5) {
    const double before = now();
    call();
    samples.push_back(now() - before);
  }
  return median(std::move(samples));
}

}  // namespace subquad::bench
