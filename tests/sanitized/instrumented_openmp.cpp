// The part of OpenMP's run time that this project uses, in code that the thread sanitizer sees.
//
// libgomp is not instrumented: the sanitizer knows nothing of its barriers and reports a race in
// every loop. These functions take its place in the thread sanitizer's executable. A team is made
// of threads that are started and joined, which the sanitizer understands, and which order memory
// as the start and the end of a parallel region do. Slow, and only for that: loops with the
// schedules dynamic and static.
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
  int size = 1;
  // The loop that the team works on: taken up by the first thread that reaches it.
  std::mutex mutex;
  int loops = 0;
  long next = 0, end = 0, step = 1, chunk = 1;
};

std::atomic<int> max_threads{0};  // 0: OMP_NUM_THREADS, or the processors
thread_local Team* team = nullptr;
thread_local int thread_number = 0;
thread_local int loops_entered = 0;

int processors() { return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)); }

int default_threads() {
  if (const int set = max_threads.load(); set > 0) return set;
  const char* const asked = std::getenv("OMP_NUM_THREADS");
  const int count = asked == nullptr ? 0 : std::atoi(asked);
  return count > 0 ? count : processors();
}

bool take(long* first, long* last) {
  const std::lock_guard lock(team->mutex);
  if (team->next >= team->end) return false;
  *first = team->next;
  team->next = std::min(team->end, team->next + team->chunk * team->step);
  *last = team->next;
  return true;
}

void enter_loop(long start, long end, long step, long chunk) {
  const std::lock_guard lock(team->mutex);
  if (++loops_entered == team->loops) return;
  // A second loop of a region may not start before the first one is over: nothing here does that.
  if (loops_entered != team->loops + 1 || team->next < team->end || step <= 0) std::abort();
  team->loops = loops_entered;
  team->next = start, team->end = end, team->step = step, team->chunk = chunk;
}

void run_team(Team& own, void (*body)(void*), void* data, unsigned threads) {
  const bool nested = team != nullptr && team->size > 1;
  own.size = nested ? 1 : threads > 0 ? static_cast<int>(threads) : default_threads();
  const auto work = [&](int number) {
    Team* const outer = team;
    const int outer_number = thread_number, outer_loops = loops_entered;
    team = &own, thread_number = number, loops_entered = 0;
    body(data);
    team = outer, thread_number = outer_number, loops_entered = outer_loops;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < own.size; ++i) others.emplace_back(work, i);
  work(0);
  for (std::thread& thread : others) thread.join();
}

}  // namespace

// Names and signatures are those of libgomp.
extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  Team own;
  run_team(own, body, data, threads);
}

void GOMP_parallel_loop_nonmonotonic_dynamic(void (*body)(void*), void* data, unsigned threads,
                                             long start, long end, long step, long chunk,
                                             unsigned) {
  Team own;
  own.next = start, own.end = end, own.step = step, own.chunk = chunk;
  run_team(own, body, data, threads);
}

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* first,
                                          long* last) {
  enter_loop(start, end, step, chunk);
  return take(first, last);
}
bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) { return take(first, last); }
void GOMP_loop_end_nowait() {}

int omp_get_max_threads() { return default_threads(); }
int omp_get_num_threads() { return team == nullptr ? 1 : team->size; }
int omp_get_thread_num() { return thread_number; }
int omp_get_num_procs() { return processors(); }
int omp_in_parallel() { return team != nullptr && team->size > 1 ? 1 : 0; }
void omp_set_num_threads(int count) { max_threads = count; }
void omp_set_dynamic(int) {}

}  // extern "C"
