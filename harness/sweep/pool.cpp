#include "harness/sweep/pool.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>

#include "harness/core/error.h"

namespace subquad {
namespace {

// What identifies the core of a processor: its list of hardware threads.
std::string core_of(int processor) {
  std::ifstream file(
      fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", processor));
  std::string siblings;
  return file >> siblings ? siblings : std::to_string(processor);
}

pid_t start(const PoolTask& task, const std::vector<int>& processors) {
  std::vector<char*> argv;
  for (const std::string& word : task.command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int processor : processors) CPU_SET(processor, &set);
  const int log = open(task.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0)
    throw StorageError(fmt::format("{}: cannot be opened: {}", task.log, std::strerror(errno)));
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    // A group of its own: Ctrl-C of the terminal comes from us, once.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) signal(number, SIG_DFL);
    dup2(log, 1);
    dup2(log, 2);
    if (sched_setaffinity(0, sizeof set, &set) == 0) execv(argv[0], argv.data());
    _exit(127);
  }
  close(log);
  if (child < 0) throw InternalError(fmt::format("fork failed: {}", std::strerror(errno)));
  return child;
}

}  // namespace

std::string processor_list(const std::vector<int>& processors) {
  std::string text;
  for (std::size_t first = 0, last = 0; first < processors.size(); first = ++last) {
    while (last + 1 < processors.size() && processors[last + 1] == processors[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : ",", processors[first]);
    if (last > first) text += fmt::format("-{}", processors[last]);
  }
  return text;
}

std::vector<int> usable_processor_list() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  std::vector<int> list;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return list;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &allowed)) list.push_back(i);
  return list;
}

std::vector<std::vector<int>> processor_sets(const std::vector<int>& processors, int jobs,
                                             int threads) {
  std::vector<std::vector<int>> cores;
  std::map<std::string, std::size_t> known;
  for (const int processor : processors) {
    const auto [place, fresh] = known.emplace(core_of(processor), cores.size());
    if (fresh) cores.emplace_back();
    cores[place->second].push_back(processor);
  }
  const auto count = static_cast<std::size_t>(jobs);
  std::vector<std::vector<int>> sets(count);
  for (std::size_t job = 0; job < count; ++job) {
    for (std::size_t core = job * cores.size() / count; core < (job + 1) * cores.size() / count;
         ++core)
      sets[job].insert(sets[job].end(), cores[core].begin(), cores[core].end());
    std::sort(sets[job].begin(), sets[job].end());
    if (sets[job].size() < static_cast<std::size_t>(threads))
      throw UserError(fmt::format(
          "--jobs {}: cells use up to {} threads, and measurements that run at once need cores of "
          "their own; there are {} cores with {} processors. Take fewer jobs or fewer threads",
          jobs, threads, cores.size(), processors.size()));
  }
  return sets;
}

PoolReport run_pool(const std::vector<PoolTask>& tasks,
                    const std::vector<std::vector<int>>& processor_sets, const StopRequest& stop,
                    const std::function<void(std::size_t task, int status)>& ended) {
  struct Running {
    pid_t pid = 0;  // 0 = idle
    std::size_t task = 0;
  };
  // Inherited as ignored, it would let the kernel forget how runners ended.
  signal(SIGCHLD, SIG_DFL);
  PoolReport report;
  report.status.assign(tasks.size(), -1);
  std::vector<Running> slots(processor_sets.size());
  std::size_t next = 0;
  while (true) {
    if (report.signal == 0 && stop.signal() != 0) {
      report.signal = stop.signal();
      for (const Running& slot : slots)
        if (slot.pid > 0) kill(slot.pid, SIGTERM);
    }
    bool any = false;
    for (std::size_t i = 0; i < slots.size(); ++i) {
      Running& slot = slots[i];
      if (slot.pid > 0) {
        int status = 0;
        const pid_t done = waitpid(slot.pid, &status, WNOHANG);
        if (done < 0 && errno != EINTR)
          throw InternalError(fmt::format("waiting for a runner: {}", std::strerror(errno)));
        if (done == slot.pid) {
          report.status[slot.task] =
              WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
          slot.pid = 0;
          ended(slot.task, report.status[slot.task]);
        }
      }
      if (slot.pid == 0 && next < tasks.size() && report.signal == 0) {
        slot.task = next++;
        slot.pid = start(tasks[slot.task], processor_sets[i]);
      }
      any |= slot.pid > 0;
    }
    if (!any) return report;
    usleep(50000);  // what waits here must not disturb what is measured
  }
}

}  // namespace subquad
