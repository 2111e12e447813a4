// Threads that tell each other how far they are.
#include "methods/engines/team_posts.h"

#include <omp.h>

#include <catch2/catch.hpp>
#include <vector>

using namespace subquad;
using engine::TeamPosts;

TEST_CASE("what a thread wrote before its post is seen behind the wait", "[methods][threads]") {
  // Two turns of slots: a thread writes the next turn while others read the last one. The larger
  // teams have more threads than most machines have processors, so that waits sleep.
  const Index threads = GENERATE(2, 3, 16), turns = threads == 2 ? 20'000 : 500;
  CAPTURE(threads);
  TeamPosts posts(threads);
  CHECK(posts.threads() == threads);
  for (int again = 0; again < 2; ++again) {
    posts.clear();
    std::vector<Index> slots(static_cast<std::size_t>(2 * threads), -1);
    std::vector<Index> wrong(static_cast<std::size_t>(threads), 0);
#pragma omp parallel num_threads(static_cast <int>(threads))
    {
      const Index thread = omp_get_thread_num(), team = omp_get_num_threads();
      for (Index turn = 0; turn < turns; ++turn) {
        const auto slot = [&](Index t) { return static_cast<std::size_t>(turn % 2 * threads + t); };
        slots[slot(thread)] = turn * threads + thread;
        posts.post(thread, turn + 1);
        posts.wait(team, turn + 1);
        for (Index t = 0; t < team; ++t)
          wrong[static_cast<std::size_t>(thread)] += slots[slot(t)] != turn * threads + t;
      }
    }
    CHECK(wrong == std::vector<Index>(static_cast<std::size_t>(threads), 0));
  }
}
