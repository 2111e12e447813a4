// One worker process: started, fed, watched and ended, with everything that it may have started
// itself. The answer is whatever it wrote to descriptor 4.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "harness/sweep/stop_signal.h"

namespace subquad {

struct ProcessSpec {
  std::vector<std::string> command;      // an absolute path and its arguments
  std::vector<std::string> environment;  // "NAME=value"
  std::string input;                     // read by the worker from descriptor 3 until end of file
  double timeout_s = 120;                // on the monotonic clock
  double grace_s = 2;                    // from SIGTERM to SIGKILL
  double stop_grace_s = 0.5;             // the same after a stop request
  std::int64_t address_space_bytes = 0;  // 0 = no limit
  std::int64_t answer_limit_bytes = std::int64_t{64} << 20;
  const StopRequest* stop = nullptr;  // may be null
};

struct ProcessEnd {
  bool timed_out = false;     // the deadline passed before the process ended or answered
  bool stopped = false;       // ended because of the stop request
  bool answer_limit = false;  // ended because it wrote too much to descriptor 4
  bool killed_by_us = false;  // SIGKILL came from here
  int signal = 0;             // that ended it, 0 = it exited
  int exit_status = 0;
  int left_processes = 0;  // children of its own that were still there and had to be killed
  double wall_s = 0;
  bool suspended = false;  // the machine slept for more than a second meanwhile
  std::string answer;
  std::string log;  // its stdout and stderr: the first 16 KiB and the last 8 KiB
};

// Runs it to its end. When this returns no process of its group is alive and none that it started,
// not even one in a session of its own. When the calling process dies, the worker dies with it.
// InternalError when the process cannot be started or cannot be killed.
ProcessEnd run_process(const ProcessSpec& spec);

// What the allocator of a measuring process is told: freed memory is kept for the next call instead
// of being unmapped and faulted in anew, and large blocks ask for huge pages
// (harness/measure/README.md has the effect of each).
std::vector<std::string> allocator_environment();

// Starts this program again with these variables, unless they are set already: the allocator reads
// them once, at the start. For benchmarks that are not started by the runner.
void restart_with(const std::vector<std::string>& environment, char** argv);

// The environment of a worker: of the caller's only what a program needs to start (PATH, HOME,
// TMPDIR, LD_*, OMP_*, GOMP_*, sanitizer options), LANG=C, the number of OpenMP threads, and
// allocator_environment().
std::vector<std::string> worker_environment(int threads);

// One answer is "SQ1 <decimal length>\n<JSON>\n". `body` is the JSON of the first whole frame.
struct Frame {
  enum class State { none, whole, followed_by_more } state = State::none;
  std::string body;
};
Frame parse_frame(const std::string& bytes);

}  // namespace subquad
