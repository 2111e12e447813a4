// Threads that tell each other how far they are.
#include "methods/engines/team_posts.h"

#include <omp.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <thread>
#include <vector>

using namespace subquad;
using engine::TeamPosts;

TEST_CASE("what a thread wrote before its post is seen behind the wait", "[methods][threads]") {
  // Two turns of slots: a thread writes the next turn while others read the last one. Where there
  // are more threads than processors waits sleep at once; in a team of two the first thread is late
  // now and then, so that the other has spun enough.
  const int threads = GENERATE(2, 3, 16);
  const Index team = threads, turns = threads == 2 ? 20'000 : 500;
  CAPTURE(threads);
  TeamPosts posts(team);
  REQUIRE(posts.threads() == team);
  for (int again = 0; again < 2; ++again) {
    posts.clear();
    std::vector<Index> slots(static_cast<std::size_t>(2 * team), -1);
    std::vector<Index> wrong(static_cast<std::size_t>(team), -1);  // per thread
#pragma omp parallel num_threads(threads)
    {
      const Index thread = omp_get_thread_num();
      Index wrong_here = omp_get_num_threads() == threads ? 0 : turns;
      for (Index turn = 0; turn < turns && wrong_here < turns; ++turn) {
        const auto slot = [&](Index t) { return static_cast<std::size_t>(turn % 2 * team + t); };
        if (threads == 2 && thread == 0 && turn % 5'000 == 0)
          std::this_thread::sleep_for(std::chrono::milliseconds(3));
        slots[slot(thread)] = turn * team + thread;
        posts.post(thread, turn + 1);
        posts.wait(team, turn + 1);
        for (Index t = 0; t < team; ++t) wrong_here += slots[slot(t)] != turn * team + t;
      }
      wrong[static_cast<std::size_t>(thread)] = wrong_here;
    }
    CHECK(wrong == std::vector<Index>(static_cast<std::size_t>(team), 0));
  }
}
