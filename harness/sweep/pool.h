// Several runners on one machine: as many at once as there are sets of processors for them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "harness/sweep/stop_signal.h"

namespace subquad {

// Logical processors as the kernel lists them: "0-3,8". "" for none.
std::string processor_list(const std::vector<int>& processors);
std::vector<int> usable_processor_list();  // of this process, ascending

// `jobs` sets of whole cores (hardware threads of one core stay together) out of `processors`, as
// equal as they can be. UserError when a set would have fewer than `threads` processors.
std::vector<std::vector<int>> processor_sets(const std::vector<int>& processors, int jobs,
                                             int threads);

struct PoolTask {
  std::vector<std::string> command;
  std::string log;  // its stdout and stderr, appended
};

struct PoolReport {
  std::vector<int> status;  // by task: exit status, 128 + signal, -1 = not started
  int signal = 0;           // that stopped the pool
};

// Runs every task to its end, never two on one set of processors. After a stop request the running
// ones get SIGTERM, no more are started. They die with this process. `ended` is called after each.
PoolReport run_pool(const std::vector<PoolTask>& tasks,
                    const std::vector<std::vector<int>>& processor_sets, const StopRequest& stop,
                    const std::function<void(std::size_t task, int status)>& ended);

}  // namespace subquad
