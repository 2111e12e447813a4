#include "harness/measure/timing.h"

#include <benchmark/benchmark.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "harness/core/error.h"

using namespace subquad;

namespace {

volatile double sink = 1;
void spin(int steps) {
  for (int i = 0; i < steps; ++i) sink = sink * 1.0000001;
}

struct Record {
  Index calls = 0, before = 0, after = 0, between = 0;
  bool in_order = true;
  Index expected_first = 0;
};

TimedCall recorded(Record& r) {
  TimedCall timed;
  timed.call = [&r](Index number) {
    r.in_order = r.in_order && number == r.calls;
    ++r.calls;
    spin(2000);
  };
  timed.before_repetition = [&r] { ++r.before; };
  timed.after_repetition = [&r](Index first, Index count) {
    ++r.after;
    r.in_order = r.in_order && first == r.expected_first && first + count == r.calls;
    r.expected_first = first + count;
  };
  return timed;
}

}  // namespace

TEST_CASE("every repetition is captured and lasts at least the minimum time", "[timing]") {
  Record record;
  const Timing timing =
      time_calls(recorded(record), {.min_time_s = 0.005, .warmup_s = 0.002, .repetitions = 4});
  REQUIRE(timing.samples.size() == 4);
  CHECK(timing.iterations >= 1);
  // The first repetition is the one that the search for the iterations ended with.
  CHECK(timing.samples[0] * static_cast<double>(timing.iterations) >= 0.005);
  for (const double sample : timing.samples) CHECK(sample > 0);
  CHECK(record.in_order);
  CHECK(record.before == record.after);
  CHECK(record.before >= 5);  // four repetitions and a warm-up
  CHECK(record.calls >= 4 * timing.iterations);
  CHECK(timing.wall_s > 0);
}

TEST_CASE("a fixed number of iterations is kept, with untimed work before each call", "[timing]") {
  Record record;
  TimedCall timed = recorded(record);
  Index prepared = 0;
  timed.before_call = [&](Index number) {
    CHECK(number == record.calls);
    ++prepared;
    spin(200000);  // a hundred times the call
  };
  const Timing timing = time_calls(timed, {.min_time_s = 1, .repetitions = 3, .iterations = 7});
  CHECK(timing.iterations == 7);
  CHECK(timing.samples.size() == 3);
  CHECK(record.calls == 21);
  CHECK(prepared == 21);
  // Were the untimed work part of the samples, they would add up to the wall time.
  double total = 0;
  for (const double sample : timing.samples) total += sample * 7;
  CHECK(total < 0.5 * timing.wall_s);
}

TEST_CASE("samples that are spread get company, and those that are not do not", "[timing]") {
  // Every other repetition is thirty times as slow: no number of samples makes that narrow.
  Record record;
  TimedCall timed = recorded(record);
  timed.call = [&record](Index) {
    ++record.calls;
    spin(record.before % 2 == 0 ? 2000 : 60000);
  };
  timed.after_repetition = nullptr;
  TimingOptions options{.min_time_s = 1e-4, .repetitions = 4, .iterations = 5};
  options.max_spread = 0.2;
  Timing timing = time_calls(timed, options);
  CHECK(timing.samples.size() == 16);
  CHECK(record.calls == 80);
  CHECK(timing.iterations == 5);
  options.max_spread = 1e9;
  CHECK(time_calls(timed, options).samples.size() == 4);
  // The first two are slow and none after them: more samples outweigh them.
  record = Record();
  timed.call = [&record](Index) {
    ++record.calls;
    spin(record.before <= 2 ? 60000 : 2000);
  };
  options.max_spread = 0.5;
  timing = time_calls(timed, options);
  CHECK(timing.samples.size() > 4);
  CHECK(timing.samples.size() % 4 == 0);
  CHECK(record.calls == 5 * static_cast<Index>(timing.samples.size()));
  // No more than about two seconds are spent on it.
  Record slow;
  TimedCall long_calls = recorded(slow);
  long_calls.call = [&slow](Index) { spin(slow.calls++ == 0 ? 200000 : 2000); };
  long_calls.after_repetition = nullptr;
  long_calls.before_repetition = [] {
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  };
  CHECK(time_calls(long_calls, {.repetitions = 2, .iterations = 1, .max_spread = 0.01})
            .samples.size() == 2);
}

TEST_CASE("an exception of the call ends the measurement and comes through", "[timing]") {
  for (const Index at : {0, 3, 500}) {
    TimedCall timed;
    timed.call = [at](Index number) {
      if (number == at) throw std::runtime_error("from the call");
      spin(100);
    };
    CHECK_THROWS_WITH(time_calls(timed, {.min_time_s = 0.002, .repetitions = 3}), "from the call");
  }
  TimedCall odd;
  odd.call = [](Index) { throw 7; };
  CHECK_THROWS_AS(time_calls(odd, {.min_time_s = 0.001}), int);
  TimedCall late;
  late.call = [](Index) { spin(100); };
  late.after_repetition = [](Index, Index) { throw std::logic_error("judged wrong"); };
  CHECK_THROWS_WITH(time_calls(late, {.min_time_s = 0.001}), "judged wrong");
  // And the next measurement is not disturbed by it.
  Record record;
  CHECK(time_calls(recorded(record), {.min_time_s = 0.001, .repetitions = 2}).samples.size() == 2);
}

TEST_CASE("the timing engine writes nothing and obeys no setting but ours", "[timing]") {
  // What BENCHMARK_* variables do: they set these flags when the library is loaded.
  std::string words[] = {"x",
                         "--benchmark_list_tests=true",
                         "--benchmark_repetitions=9",
                         "--benchmark_report_aggregates_only=true",
                         "--benchmark_enable_random_interleaving=true",
                         "--benchmark_min_warmup_time=3",
                         "--benchmark_out=/nowhere/at/all"};
  char* argv[8] = {};
  for (int i = 0; i < 7; ++i) argv[i] = words[i].data();
  int argc = 7;
  benchmark::Initialize(&argc, argv);
  std::ostringstream out, err;
  std::streambuf* const old_out = std::cout.rdbuf(out.rdbuf());
  std::streambuf* const old_err = std::cerr.rdbuf(err.rdbuf());
  Record record;
  const Timing timing = time_calls(recorded(record), {.min_time_s = 0.002, .repetitions = 2});
  std::cout.rdbuf(old_out);
  std::cerr.rdbuf(old_err);
  CHECK(timing.samples.size() == 2);
  CHECK(out.str().empty());
  CHECK(err.str().empty());
  CHECK_THROWS_AS(time_calls({}, {}), InternalError);
}
