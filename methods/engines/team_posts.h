// How the threads of a team tell each other how far they are.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <memory>

#include "harness/core/types.h"

namespace subquad::engine {

// Before anybody pins this thread to some of them.
inline const int kProcessors = omp_get_num_procs();

// A counter per thread, in a cache line of its own: a barrier in two halves. What a thread wrote
// before post() is seen by those that saw the post. A wait spins where all threads can run, for
// then it is short, and sleeps after that.
class TeamPosts {
 public:
  static constexpr Index kBytes = 64;  // of a thread

  TeamPosts() = default;
  explicit TeamPosts(Index threads)
      : posts_(std::make_unique<Post[]>(static_cast<std::size_t>(threads))), threads_(threads) {}

  Index threads() const { return threads_; }
  // All counters to zero, while no team runs.
  void clear() {
    for (Index t = 0; t < threads_; ++t) at(t).store(0, std::memory_order_relaxed);
  }
  // Counts grow.
  void post(Index thread, Index count) {
    // In one order with the sleepers' own note that they sleep, for which notify looks.
    at(thread).store(static_cast<int>(count), std::memory_order_seq_cst);
    at(thread).notify_all();
  }
  // Until each of the first `threads` has posted `count`.
  void wait(Index threads, Index count) const {
    const Index limit = threads > kProcessors ? 0 : kSpins;
    Index spins = 0;
    for (Index t = 0; t < threads; ++t)
      for (int seen; (seen = at(t).load(std::memory_order_acquire)) < count;)
        if (spins++ < limit)
          pause();
        else
          at(t).wait(seen, std::memory_order_acquire);
  }

 private:
  static constexpr Index kSpins = 10000;  // 0.1 to 0.6 ms
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }
  struct alignas(kBytes) Post {
    std::atomic<int> count{0};  // the width that sleeps without a lock of the library's
  };
  std::atomic<int>& at(Index t) const { return posts_[static_cast<std::size_t>(t)].count; }

  std::unique_ptr<Post[]> posts_;
  Index threads_ = 0;
};

}  // namespace subquad::engine
