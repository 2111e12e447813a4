#include "harness/measure/memory.h"

#include <catch2/catch.hpp>
#include <chrono>
#include <thread>

using namespace subquad;

TEST_CASE("the resident set never exceeds its high-water mark", "[memory]") {
  CHECK(vm_rss_bytes() > 1 << 20);
  CHECK(vm_rss_bytes() <= vm_hwm_bytes());
}

TEST_CASE("threads are counted while they live", "[memory]") {
  const auto before = thread_tasks();
  REQUIRE(before >= 1);
  std::atomic<bool> stop{false};
  std::thread thread([&] {
    while (!stop) std::this_thread::yield();
  });
  CHECK(thread_tasks() == before + 1);
  stop = true;
  thread.join();
}

TEST_CASE("clocks and counters go forward", "[memory]") {
  const double monotonic = monotonic_seconds(), boottime = boottime_seconds();
  const double cpu = cpu_seconds(), steal = steal_seconds();
  const auto switches = involuntary_context_switches();
  volatile double x = 1;
  for (int i = 0; i < 1000000; ++i) x = x * 1.0000001;
  CHECK(monotonic_seconds() > monotonic);
  CHECK(boottime_seconds() - boottime >= (monotonic_seconds() - monotonic) * 0.5);
  CHECK(cpu_seconds() > cpu);
  CHECK(steal_seconds() >= steal);
  CHECK(involuntary_context_switches() >= switches);
  CHECK(core0_mhz() >= 0);
  CHECK(boottime >= monotonic - 1);
}
