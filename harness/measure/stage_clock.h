// The clock behind a StageProbe: seconds of each stage, summed over threads.
#pragma once

#include <array>
#include <vector>

#include "harness/core/method.h"
#include "harness/core/stage_probe.h"
#include "harness/measure/memory.h"

namespace subquad {

class StageClock final : public StageProbe {
 public:
  StageClock(int threads, std::size_t stages)
      : threads_(static_cast<std::size_t>(threads)), stages_(stages) {
    for (Thread& t : threads_) t.seconds.assign(stages, 0.0);
  }
  void start(int thread) override {
    threads_[static_cast<std::size_t>(thread)].last = monotonic_seconds();
  }
  void lap(int thread, int stage) override {
    Thread& t = threads_[static_cast<std::size_t>(thread)];
    const double now = monotonic_seconds();
    t.seconds[static_cast<std::size_t>(stage)] += now - t.last;
    t.last = now;
  }

  // share_NAME of each stage; they add up to one.
  std::vector<Metric> shares(const std::vector<std::string>& names) const {
    std::vector<double> sums(stages_, 0.0);
    double all = 0;
    for (const Thread& t : threads_)
      for (std::size_t s = 0; s < stages_; ++s) sums[s] += t.seconds[s], all += t.seconds[s];
    std::vector<Metric> metrics;
    for (std::size_t s = 0; s < stages_; ++s)
      metrics.push_back({"share_" + names[s], all > 0 ? sums[s] / all : 0});
    return metrics;
  }

 private:
  struct alignas(64) Thread {  // a cache line each
    double last = 0;
    std::vector<double> seconds;
  };
  std::vector<Thread> threads_;
  std::size_t stages_;
};

}  // namespace subquad
