#include "harness/measure/processors.h"

#include <fmt/core.h>
#include <omp.h>
#include <sched.h>

#include <vector>

#include "harness/core/error.h"

namespace subquad {
namespace {

std::vector<int> usable() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::vector<int> list;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return list;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &allowed)) list.push_back(core);
  return list;
}

}  // namespace

void set_threads(int threads) {
  omp_set_dynamic(0);
  omp_set_num_threads(threads);
}

int usable_processors() { return omp_get_num_procs(); }

void pin_threads(int threads) {
  const std::vector<int> cores = usable();
  if (static_cast<std::size_t>(threads) > cores.size())
    throw UserError(fmt::format("pin: threads={} but this process may use {} processors", threads,
                                cores.size()));
  int failures = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failures)
  {
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cores[static_cast<std::size_t>(omp_get_thread_num())], &own);
    failures += sched_setaffinity(0, sizeof own, &own) != 0;
  }
  if (failures > 0) throw UserError("pin: a thread could not be bound to its processor");
}

}  // namespace subquad
