// How steady this machine is right now, and how fast it could be: for `subquad doctor`.
#pragma once

#include <string>
#include <vector>

namespace subquad {

// A fixed small kernel, repeated; all times in seconds.
struct NoiseReport {
  int samples = 0;
  double median_s = 0, min_s = 0, max_s = 0;
  double spread = 0;       // (q75 - q25) / median
  double slow_share = 0;   // share of samples more than 10 % above the median
  double drift = 0;        // median of the second half / median of the first half - 1
  double steal_share = 0;  // processor time that the hypervisor took, of all cores
  long involuntary_switches = 0;
  int runnable = 0;  // largest number of other runnable tasks that was seen
};

// Repeats the kernel for about `seconds` on one thread.
NoiseReport measure_noise(double seconds);

struct SpeedReport {
  double clock_idle_mhz = 0;  // from a chain of dependent integer operations, at the start
  double clock_load_mhz = 0;  // the same right after the floating-point load
  double fma_gflops = 0;      // independent multiply-adds in registers: the peak of one core
  double gemm_gflops = 0;     // Eigen's product of 512 x 512 float matrices on one core
  double gemm_share() const { return fma_gflops > 0 ? gemm_gflops / fma_gflops : 0; }
};

// Takes about `seconds`, on one thread.
SpeedReport measure_speed(double seconds);

// What the advice below looks at.
struct DoctorFacts {
  NoiseReport noise;
  SpeedReport speed;
  std::string build_type, governor, turbo, huge_pages;  // "" = the system does not say
  bool sanitized = false, hypervisor = false, smt = false, swap = false, plots = true;
};

// Something that may spoil a measurement: what, and what to do about it.
struct Advice {
  std::string problem;
  std::string remedy;
};
std::vector<Advice> advise(const DoctorFacts& facts);

}  // namespace subquad
