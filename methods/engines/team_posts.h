// How the threads of a team tell each other how far they are.
#pragma once

#include <omp.h>

#include <atomic>
#include <memory>

#include "harness/core/types.h"

namespace subquad::engine {

// A counter per thread, in a cache line of its own: a barrier in two halves. What a thread wrote
// before post() is seen by those that saw the post. A wait spins, for it is short where all threads
// run, and then sleeps.
class TeamPosts {
 public:
  TeamPosts() = default;
  explicit TeamPosts(Index threads)
      : posts_(std::make_unique<Post[]>(static_cast<std::size_t>(threads))),
        threads_(threads),
        spins_(threads > omp_get_num_procs() ? 0 : kSpins) {}

  Index threads() const { return threads_; }
  // All counters to zero, while no team runs.
  void clear() {
    for (Index t = 0; t < threads_; ++t) at(t).store(0, std::memory_order_relaxed);
  }
  void post(Index thread, Index count) {
    at(thread).store(count, std::memory_order_release);
    at(thread).notify_all();
  }
  // Until each of the first `threads` has posted `count`.
  void wait(Index threads, Index count) const {
    Index spins = 0;
    for (Index t = 0; t < threads; ++t)
      for (Index seen; (seen = at(t).load(std::memory_order_acquire)) < count;)
        if (spins++ < spins_)
          pause();
        else
          at(t).wait(seen, std::memory_order_acquire);
  }

 private:
  static constexpr Index kSpins = 10000;  // some 100 us
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }
  struct alignas(64) Post {
    std::atomic<Index> count{0};
  };
  std::atomic<Index>& at(Index t) const { return posts_[static_cast<std::size_t>(t)].count; }

  std::unique_ptr<Post[]> posts_;
  Index threads_ = 0;
  Index spins_ = 0;
};

}  // namespace subquad::engine
