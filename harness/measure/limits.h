// What the machine can do at most, measured beside the timed calls: the rate of fused multiply-adds
// that stay in registers, and the rate at which memory can be read or copied. A time divided by
// these says how close to the limit a method is, whatever the clock does meanwhile.
#pragma once

#include <cstddef>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

// GFLOP/s of float32 multiply-adds (two operations each) on all threads of the team together: the
// best of a few chunks of about 0.1 ms. Touches no memory beyond the stack.
double fma_burst_gflops();

// Bursts spread over a measurement, so that drift of the clock falls on the limit as on the calls.
class PeakMeter {
 public:
  // One burst, unless the last one is less than kInterval ago.
  void sample();
  // Median over the bursts, 0 without any.
  double gflops() const;
  std::size_t bursts() const { return bursts_.size(); }

  // Our choice: bursts of about 0.4 ms take 1.5 % of the time at most.
  static constexpr double kInterval = 0.025;  // seconds

 private:
  std::vector<double> bursts_;
  double last_ = 0;  // monotonic seconds
};

// GB/s (1e9 bytes) over a buffer far beyond what a cache holds, on all threads of the team.
struct Bandwidth {
  double read = 0;  // bytes read
  double copy = 0;  // bytes read and written, half of them each

  double best() const { return read > copy ? read : copy; }
};

// Medians of several passes over `bytes` of memory each way. Takes about 0.3 s at 256 MiB.
Bandwidth memory_bandwidth(std::size_t bytes);

// 256 MiB, or an eighth of the free memory where that is less. Caches of one core's cluster are
// 16 to 128 MiB; what the system reports as L3 is often that of the whole host.
std::size_t bandwidth_buffer_bytes();

}  // namespace subquad
