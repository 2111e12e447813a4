#include "harness/measure/machine_check.h"

#include <benchmark/benchmark.h>
#include <fmt/core.h>
#include <sys/resource.h>

#include <Eigen/Core>
#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>

#include "harness/core/types.h"
#include "harness/measure/statistics.h"

namespace subquad {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct CpuTime {
  double total = 0, steal = 0;  // clock ticks over all cores
};

CpuTime cpu_time() {
  std::ifstream file("/proc/stat");
  std::string label;
  file >> label;
  CpuTime time;
  double ticks = 0;
  for (int i = 0; i < 8 && file >> ticks; ++i) {  // user nice system idle iowait irq softirq steal
    time.total += ticks;
    if (i == 7) time.steal = ticks;
  }
  return time;
}

// Tasks that want to run at this instant beside this one. The load average lags by a minute.
int other_runnable() {
  std::ifstream file("/proc/loadavg");
  std::string one, five, fifteen;
  int runnable = 1;
  file >> one >> five >> fifteen >> runnable;
  return std::max(0, runnable - 1);
}

// A chain in which every step waits for the one before: 3 cycles for the product and 1 for the sum
// on every x86-64 core since 2013, and on most others.
double clock_mhz(double seconds) {
  constexpr int kSteps = 100000, kCyclesPerStep = 4;
  double best = 0;
  std::uint64_t x = 1;
  for (const double start = now_s(); now_s() - start < seconds;) {
    const double before = now_s();
    for (int i = 0; i < kSteps; ++i) x = x * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
    benchmark::DoNotOptimize(x);
    best = std::max(best, kSteps * kCyclesPerStep / (now_s() - before));
  }
  return best * 1e-6;
}

// The widest registers that the build may use.
using Lanes =
    float __attribute__((vector_size(EIGEN_MAX_ALIGN_BYTES > 16 ? EIGEN_MAX_ALIGN_BYTES : 16)));

double fma_gflops(double seconds) {
  constexpr int kChains = 12;  // more than latency x ports of any core, fewer than 16 registers
  constexpr int kSteps = 10000;
  constexpr double kFlops = 2.0 * kSteps * kChains * (sizeof(Lanes) / sizeof(float));
  // Distinct values from memory that the compiler cannot look into: equal chains would be merged.
  static volatile float first = 0.25f;
  Lanes chains[kChains];
  for (int i = 0; i < kChains; ++i) chains[i] = Lanes{} + first * static_cast<float>(i + 1);
  const Lanes factor = Lanes{} + 0.5f, term = Lanes{} + 1.0f;
  double best = 0;
  for (const double start = now_s(); now_s() - start < seconds;) {
    const double before = now_s();
    for (int i = 0; i < kSteps; ++i)
      for (Lanes& chain : chains) chain = chain * factor + term;
    float sum = 0;
    for (const Lanes& chain : chains) sum += chain[0];
    benchmark::DoNotOptimize(sum);
    best = std::max(best, kFlops / (now_s() - before));
  }
  return best * 1e-9;
}

double gemm_gflops(double seconds) {
  constexpr Index kSize = 512;
  const Matrix a = Matrix::Constant(kSize, kSize, 0.5f), b = Matrix::Constant(kSize, kSize, 0.25f);
  Matrix c(kSize, kSize);
  double best = 0;
  for (const double start = now_s(); now_s() - start < seconds;) {
    const double before = now_s();
    c.noalias() = a * b;
    benchmark::DoNotOptimize(c(0, 0));
    best = std::max(best, 2.0 * kSize * kSize * kSize / (now_s() - before));
  }
  return best * 1e-9;
}

// Eigen uses all threads in a product unless told otherwise; restored at the end.
class OneThread {
 public:
  OneThread() : before_(Eigen::nbThreads()) { Eigen::setNbThreads(1); }
  ~OneThread() { Eigen::setNbThreads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

}  // namespace

NoiseReport measure_noise(double seconds) {
  const OneThread one;
  constexpr Index kSize = 192;  // fits a second-level cache; about a millisecond
  const Matrix a = Matrix::Constant(kSize, kSize, 0.5f), b = Matrix::Constant(kSize, kSize, 0.25f);
  Matrix c(kSize, kSize);
  for (int i = 0; i < 10; ++i) c.noalias() = a * b;

  NoiseReport report;
  std::vector<double> samples;
  rusage usage_before{}, usage_after{};
  getrusage(RUSAGE_THREAD, &usage_before);
  const CpuTime time_before = cpu_time();
  double next_look = 0;
  for (const double start = now_s(); now_s() - start < seconds || samples.size() < 4;) {
    const double before = now_s();
    for (int i = 0; i < 8; ++i) c.noalias() = a * b;
    benchmark::DoNotOptimize(c(0, 0));
    samples.push_back(now_s() - before);
    if (before >= next_look) {
      report.runnable = std::max(report.runnable, other_runnable());
      next_look = before + 0.05;
    }
  }
  const CpuTime time_after = cpu_time();
  getrusage(RUSAGE_THREAD, &usage_after);

  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  report.samples = static_cast<int>(samples.size());
  report.median_s = median(samples);
  report.min_s = *std::min_element(samples.begin(), samples.end());
  report.max_s = *std::max_element(samples.begin(), samples.end());
  report.spread = (quantile(samples, 0.75) - quantile(samples, 0.25)) / report.median_s;
  report.slow_share =
      static_cast<double>(std::count_if(samples.begin(), samples.end(),
                                        [&](double s) { return s > 1.1 * report.median_s; })) /
      static_cast<double>(samples.size());
  report.drift = median({middle, samples.end()}) / median({samples.begin(), middle}) - 1;
  if (time_after.total > time_before.total)
    report.steal_share =
        (time_after.steal - time_before.steal) / (time_after.total - time_before.total);
  report.involuntary_switches = usage_after.ru_nivcsw - usage_before.ru_nivcsw;
  return report;
}

SpeedReport measure_speed(double seconds) {
  const OneThread one;
  SpeedReport report;
  report.clock_idle_mhz = clock_mhz(seconds / 8);
  report.fma_gflops = fma_gflops(seconds / 4);
  report.gemm_gflops = gemm_gflops(seconds / 2);
  report.clock_load_mhz = clock_mhz(seconds / 8);
  return report;
}

std::vector<Advice> advise(const DoctorFacts& f) {
  std::vector<Advice> list;
  const auto add = [&](bool applies, std::string problem, std::string remedy) {
    if (applies) list.push_back({std::move(problem), std::move(remedy)});
  };
  // Thresholds follow pyperf: a tenth of the median is where samples stop being comparable.
  add(f.build_type != "Release", fmt::format("build type is {}", f.build_type),
      "build with -DCMAKE_BUILD_TYPE=Release before timing anything");
  add(f.sanitized, "the build has a sanitizer", "use a build without SUBQUAD_SANITIZE for timing");
  add(!(f.noise.spread <= 0.05),
      fmt::format("a fixed kernel spreads by {:.1f} %", 100 * f.noise.spread),
      "close other programs, raise rounds and repetitions");
  add(!(f.noise.slow_share <= 0.05),
      fmt::format("{:.1f} % of the samples are over 10 % slow", 100 * f.noise.slow_share),
      "trust medians, not means; raise repetitions");
  add(!(f.noise.drift <= 0.05 && f.noise.drift >= -0.05),
      fmt::format("speed drifted by {:+.1f} % while measuring", 100 * f.noise.drift),
      "let the machine warm up; more rounds, since rounds interleave the cells");
  add(f.noise.runnable > 0, fmt::format("up to {} other tasks wanted to run", f.noise.runnable),
      "wait until the machine is idle, or set `threads` below the number of cores");
  add(!(f.noise.steal_share <= 0.001),
      fmt::format("the hypervisor took {:.2f} % of the processor time", 100 * f.noise.steal_share),
      "use a machine of your own, or more rounds; such rows are flagged `steal`");
  add(f.hypervisor, "virtual machine: neighbours and the host's clock are invisible",
      "compare methods within one run only, never numbers of different days");
  add(!f.governor.empty() && f.governor != "performance",
      fmt::format("frequency governor is {}", f.governor),
      "cpupower frequency-set -g performance (as root)");
  add(f.turbo == "on", "turbo is on: the clock depends on load and temperature",
      "switch it off for steady numbers, or state that it was on");
  add(f.smt, "hardware threads share cores",
      "use at most one thread per core: set `threads` and `pin: true`");
  add(f.huge_pages == "always",
      "transparent huge pages are `always`: memory is rounded up to 2 MiB",
      "compare peak_bytes (allocations), not vm_hwm_bytes");
  add(f.huge_pages == "never",
      "transparent huge pages are `never`: large tensors pay for page walks",
      "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)");
  add(f.swap, "swap is on: a cell near the memory limit gets slow instead of failing",
      "swapoff -a, or set measure.memory_limit_mb below the free memory");
  add(!(f.speed.gemm_share() >= 0.6),
      fmt::format("matrix products reach {:.0f} % of the multiply-add peak",
                  100 * f.speed.gemm_share()),
      "check the flags (-march=native -mtune=generic) and that the machine is idle");
  add(!f.plots, "figures cannot be drawn",
      "apt-get install python3-matplotlib python3-pandas (or pip install matplotlib pandas)");
  return list;
}

}  // namespace subquad
