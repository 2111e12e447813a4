#include "harness/measure/timing.h"

#include <benchmark/benchmark.h>

#include <chrono>
#include <exception>
#include <memory>

#include "harness/core/error.h"
#include "harness/measure/statistics.h"

namespace subquad {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxMore = 3;         // times as many repetitions again
constexpr double kMaxMoreTime = 2;  // seconds for them, about

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

// Runs `repetitions` more repetitions; their samples are added to the collector.
void run_repetitions(Loop& loop, const TimingOptions& options, bool manual, Index iterations,
                     Collector& collector) {
  benchmark::ClearRegisteredBenchmarks();
  auto* const bench =
      benchmark::RegisterBenchmark("cell", [&loop](benchmark::State& state) { loop.run(state); });
  bench->Repetitions(options.repetitions)->Unit(benchmark::kSecond);
  if (iterations > 0) {
    bench->Iterations(iterations);
  } else {
    bench->MinTime(options.min_time_s);
    if (options.warmup_s > 0) bench->MinWarmUpTime(options.warmup_s);
  }
  manual ? bench->UseManualTime() : bench->UseRealTime();
  const std::size_t before = collector.timing.samples.size();
  benchmark::RunSpecifiedBenchmarks(&collector, nullptr, ".");
  benchmark::ClearRegisteredBenchmarks();
  loop.rethrow();
  const std::size_t got = collector.timing.samples.size() - before;
  SUBQUAD_CHECK(got == static_cast<std::size_t>(options.repetitions),
                "Google Benchmark gave {} of {} repetitions", got, options.repetitions);
}

}  // namespace

Timing time_calls(const TimedCall& timed, const TimingOptions& options) {
  SUBQUAD_CHECK(timed.call && options.repetitions > 0 && options.min_time_s > 0,
                "a call, repetitions and a minimum time are needed");
  neutral_flags();
  Loop loop(timed);
  Collector collector;
  Timing& timing = collector.timing;
  const bool manual = static_cast<bool>(timed.before_call);
  const auto start = Clock::now();
  run_repetitions(loop, options, manual, options.iterations, collector);
  // Few samples on a disturbed machine do not tell the median; more of them do, unless it drifts.
  const double first_s = seconds(Clock::now() - start);
  for (int more = 1; more <= kMaxMore && median_uncertainty(timing.samples) > options.max_spread &&
                     more * first_s <= kMaxMoreTime;
       ++more)
    run_repetitions(loop, options, manual, timing.iterations, collector);
  timing.wall_s = seconds(Clock::now() - start);
  return collector.timing;
}

}  // namespace subquad
