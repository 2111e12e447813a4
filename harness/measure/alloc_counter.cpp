#include "harness/measure/alloc_counter.h"

#include <atomic>
#include <cstdlib>

namespace subquad {
namespace {

// Constant-initialised: allocations arrive before any constructor has run.
constinit std::atomic<std::int64_t> live{0};
constinit std::atomic<std::int64_t> peak{0};
constinit std::atomic<std::uint64_t> calls{0};

void add(std::int64_t bytes) noexcept {
  const std::int64_t now = live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  std::int64_t highest = peak.load(std::memory_order_relaxed);
  while (now > highest && !peak.compare_exchange_weak(highest, now, std::memory_order_relaxed)) {
  }
}

}  // namespace

std::int64_t live_bytes() { return live.load(std::memory_order_relaxed); }
std::int64_t peak_bytes() { return peak.load(std::memory_order_relaxed); }
std::uint64_t alloc_calls() { return calls.load(std::memory_order_relaxed); }
void reset_peak() { peak.store(live_bytes(), std::memory_order_relaxed); }

bool hooks_active() {
  const std::uint64_t before = alloc_calls();
  void* volatile probe = std::malloc(1);  // volatile: the pair must not be optimised away
  std::free(probe);
  return alloc_calls() != before;
}

namespace detail {

void count_alloc(std::size_t bytes) noexcept {
  calls.fetch_add(1, std::memory_order_relaxed);
  add(static_cast<std::int64_t>(bytes));
}

void count_free(std::size_t bytes) noexcept {
  live.fetch_sub(static_cast<std::int64_t>(bytes), std::memory_order_relaxed);
}

void count_resize(std::size_t before, std::size_t after) noexcept {
  calls.fetch_add(1, std::memory_order_relaxed);
  add(static_cast<std::int64_t>(after) - static_cast<std::int64_t>(before));
}

}  // namespace detail
}  // namespace subquad
