#include "harness/measure/timing.h"

#include <benchmark/benchmark.h>

#include <chrono>
#include <exception>
#include <memory>

#include "harness/core/error.h"

namespace subquad {
namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// Keeps every repetition, prints nothing.
class Collector final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration || run.error_occurred || run.iterations <= 0) continue;
      timing.samples.push_back(run.real_accumulated_time / static_cast<double>(run.iterations));
      timing.iterations = static_cast<Index>(run.iterations);
    }
  }
  Timing timing;
};

// The library reads its flags from the environment when it is loaded; set every one that could
// change what is run, how often, or what is written.
void neutral_flags() {
  static const char* const kFlags[] = {"subquad",
                                       "--benchmark_list_tests=false",
                                       "--benchmark_filter=.",
                                       "--benchmark_min_time=0.5",
                                       "--benchmark_min_warmup_time=0",
                                       "--benchmark_repetitions=1",
                                       "--benchmark_enable_random_interleaving=false",
                                       "--benchmark_report_aggregates_only=false",
                                       "--benchmark_display_aggregates_only=false",
                                       "--benchmark_format=console",
                                       "--benchmark_out=",
                                       "--benchmark_out_format=json",
                                       "--benchmark_perf_counters=",
                                       "--v=0"};
  std::vector<std::string> words(std::begin(kFlags), std::end(kFlags));
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  int argc = static_cast<int>(words.size());
  benchmark::Initialize(&argc, argv.data());
  SUBQUAD_CHECK(argc == 1, "Google Benchmark does not know the option {}", argv[1]);
}

class Loop {
 public:
  explicit Loop(const TimedCall& timed) : timed_(timed) {}

  // One repetition, or one of the runs that find the number of iterations.
  void run(benchmark::State& state) {
    // After one failure all must fail: the library's statistics crash on a failed first repetition
    // before good ones (its issue 1406).
    if (error_) {
      state.SkipWithError("exception");
      return;
    }
    try {
      if (timed_.before_repetition) timed_.before_repetition();
      const Index first = next_;
      if (timed_.before_call) {
        for ([[maybe_unused]] const auto step : state) {
          timed_.before_call(next_);
          const auto start = Clock::now();
          timed_.call(next_);
          state.SetIterationTime(seconds(Clock::now() - start));
          ++next_;
        }
      } else {
        for ([[maybe_unused]] const auto step : state) timed_.call(next_++);
      }
      if (timed_.after_repetition) timed_.after_repetition(first, next_ - first);
    } catch (...) {
      // The library is not made for exceptions that pass through it.
      error_ = std::current_exception();
      state.SkipWithError("exception");
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const TimedCall& timed_;
  Index next_ = 0;
  std::exception_ptr error_;
};

}  // namespace

Timing time_calls(const TimedCall& timed, const TimingOptions& options) {
  SUBQUAD_CHECK(timed.call && options.repetitions > 0 && options.min_time_s > 0,
                "a call, repetitions and a minimum time are needed");
  neutral_flags();
  benchmark::ClearRegisteredBenchmarks();
  Loop loop(timed);
  auto* const bench =
      benchmark::RegisterBenchmark("cell", [&loop](benchmark::State& state) { loop.run(state); });
  bench->Repetitions(options.repetitions)->Unit(benchmark::kSecond);
  if (options.iterations > 0) {
    bench->Iterations(options.iterations);
  } else {
    bench->MinTime(options.min_time_s);
    if (options.warmup_s > 0) bench->MinWarmUpTime(options.warmup_s);
  }
  timed.before_call ? bench->UseManualTime() : bench->UseRealTime();

  Collector collector;
  const auto start = Clock::now();
  benchmark::RunSpecifiedBenchmarks(&collector, nullptr, ".");
  collector.timing.wall_s = seconds(Clock::now() - start);
  benchmark::ClearRegisteredBenchmarks();
  loop.rethrow();
  SUBQUAD_CHECK(collector.timing.samples.size() == static_cast<std::size_t>(options.repetitions),
                "Google Benchmark gave {} of {} repetitions", collector.timing.samples.size(),
                options.repetitions);
  return collector.timing;
}

}  // namespace subquad
