#include "harness/sweep/process.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <limits>
#include <set>
#include <string_view>
#include <thread>

#include "harness/core/error.h"

extern char** environ;

namespace subquad {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLogHead = 16 << 10, kLogTail = 8 << 10;

[[noreturn]] void fail(const char* what) {
  throw InternalError(fmt::format("{}: {}", what, std::strerror(errno)));
}

// A descriptor that is closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { reset(); }
  int get() const { return fd_; }
  void reset(int fd = -1) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_;
};

// Above the numbers that the worker gets, so that none of them is overwritten while it is copied.
int moved_high(int fd) {
  const int high = fcntl(fd, F_DUPFD_CLOEXEC, 10);
  const int reason = errno;
  close(fd);
  errno = reason;
  if (high < 0) fail("fcntl(F_DUPFD_CLOEXEC)");
  return high;
}

void make_pipe(Descriptor& read_end, Descriptor& write_end) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) fail("pipe2");
  read_end.reset(ends[0]);
  write_end.reset(moved_high(ends[1]));
}

// Orphaned descendants of a worker become our children, where they can be found and killed.
class Subreaper {
 public:
  Subreaper() {
    prctl(PR_GET_CHILD_SUBREAPER, &before_);
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) fail("prctl(PR_SET_CHILD_SUBREAPER)");
  }
  Subreaper(const Subreaper&) = delete;
  Subreaper& operator=(const Subreaper&) = delete;
  ~Subreaper() { prctl(PR_SET_CHILD_SUBREAPER, before_); }

 private:
  int before_ = 0;
};

// Parent of a process by its /proc entry, 0 when it is gone.
pid_t parent_of(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string line;
  std::getline(file, line);
  const std::size_t name_end = line.rfind(')');  // the name may hold anything, also parentheses
  int parent = 0;
  char state = 0;
  if (name_end == std::string::npos ||
      std::sscanf(line.c_str() + name_end + 1, " %c %d", &state, &parent) != 2)
    return 0;
  return parent;
}

std::vector<std::string> entries(const char* directory) {
  std::vector<std::string> names;
  DIR* stream = opendir(directory);
  if (stream == nullptr) return names;
  while (const dirent* entry = readdir(stream))
    if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') names.emplace_back(entry->d_name);
  closedir(stream);
  return names;
}

std::set<pid_t> own_children() {
  std::set<pid_t> children;
  bool listed = false;
  for (const std::string& thread : entries("/proc/self/task")) {
    std::ifstream file("/proc/self/task/" + thread + "/children");
    if (!file) continue;
    listed = true;
    for (pid_t child = 0; file >> child;) children.insert(child);
  }
  if (listed) return children;
  for (const std::string& pid : entries("/proc"))  // a kernel without that file
    if (parent_of(pid) == getpid()) children.insert(std::atoi(pid.c_str()));
  return children;
}

// Kills and reaps every child that is not in `before`, and theirs, which then become ours. Returns
// how many were alive, that is, died of a SIGKILL.
int kill_adopted(const std::set<pid_t>& before) {
  int killed = 0;
  const Clock::time_point limit = Clock::now() + std::chrono::seconds(30);
  while (true) {
    bool any = false;
    for (const pid_t child : own_children()) {
      if (before.contains(child)) continue;
      any = true;
      kill(child, SIGKILL);
      int status = 0;
      if (waitpid(child, &status, WNOHANG) == child && WIFSIGNALED(status) &&
          WTERMSIG(status) == SIGKILL)
        ++killed;
    }
    if (!any) return killed;
    if (Clock::now() > limit)
      throw InternalError("processes that a worker left behind cannot be killed");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// In the child, between fork and exec: system calls only.
struct ChildSetup {
  const char* path;
  char* const* argv;
  char* const* envp;
  int input, answer, log, null, failure;
  pid_t parent;
  rlim_t address_space, cpu_seconds;
};

void limit(int resource, rlim_t value) {
  rlimit old{};
  if (getrlimit(static_cast<__rlimit_resource_t>(resource), &old) != 0) return;
  const rlim_t bound = std::min(value, old.rlim_max);  // an unprivileged process only lowers it
  const rlimit wanted{bound, bound};
  setrlimit(static_cast<__rlimit_resource_t>(resource), &wanted);
}

[[noreturn]] void become_worker(const ChildSetup& setup) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != setup.parent) _exit(127);  // the parent died before the line above
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD, SIGXFSZ})
    signal(number, SIG_DFL);
  if (dup2(setup.null, 0) >= 0 && dup2(setup.log, 1) >= 0 && dup2(setup.log, 2) >= 0 &&
      dup2(setup.input, 3) >= 0 && dup2(setup.answer, 4) >= 0) {
#ifdef SYS_close_range
    syscall(SYS_close_range, 5u, ~0u, 4u);  // 4: CLOSE_RANGE_CLOEXEC
#endif
    if (setup.address_space > 0) limit(RLIMIT_AS, setup.address_space);
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_CPU, setup.cpu_seconds);
    // When memory runs out the kernel shall take the worker, not the runner.
    const int adjust = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (adjust >= 0) {
      (void)!write(adjust, "1000", 4);
      close(adjust);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    execve(setup.path, setup.argv, setup.envp);
  }
  const int reason = errno;
  (void)!write(setup.failure, &reason, sizeof reason);
  _exit(127);
}

std::vector<char*> pointers(const std::vector<std::string>& texts) {
  std::vector<char*> list;
  for (const std::string& text : texts) list.push_back(const_cast<char*>(text.c_str()));
  list.push_back(nullptr);
  return list;
}

// Keeps the beginning and the end of what a worker prints, however much that is.
class Log {
 public:
  void add(const char* data, std::size_t size) {
    const std::size_t into_head = std::min(size, kLogHead - head_.size());
    head_.append(data, into_head);
    tail_.append(data + into_head, size - into_head);
    if (tail_.size() > 16 * kLogTail) cut();
  }
  std::string text() {
    cut();
    return cut_ > 0 ? fmt::format("{}\n... {} bytes left out ...\n{}", head_, cut_, tail_)
                    : head_ + tail_;
  }

 private:
  void cut() {
    if (tail_.size() <= kLogTail) return;
    cut_ += tail_.size() - kLogTail;
    tail_.erase(0, tail_.size() - kLogTail);
  }
  std::string head_, tail_;
  std::size_t cut_ = 0;
};

double seconds_of(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

Clock::duration to_duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::min(seconds, 1e8)));
}

}  // namespace

ProcessEnd run_process(const ProcessSpec& spec) {
  ProcessEnd end;
  const Clock::time_point start = Clock::now();
  const double asleep = seconds_of(CLOCK_BOOTTIME) - seconds_of(CLOCK_MONOTONIC);
  const Subreaper subreaper;
  const std::set<pid_t> others = own_children();

  Descriptor input(memfd_create("subquad-job", MFD_CLOEXEC));
  if (input.get() < 0) fail("memfd_create");
  input.reset(fcntl(input.get(), F_DUPFD_CLOEXEC, 10));
  for (std::size_t done = 0; done < spec.input.size();) {
    const ssize_t count = write(input.get(), spec.input.data() + done, spec.input.size() - done);
    if (count < 0 && errno != EINTR) fail("write to the job's memory file");
    if (count > 0) done += static_cast<std::size_t>(count);
  }
  if (lseek(input.get(), 0, SEEK_SET) != 0) fail("lseek");
  Descriptor answer, answer_end, log, log_end, failure, failure_end, null;
  make_pipe(answer, answer_end);
  make_pipe(log, log_end);
  make_pipe(failure, failure_end);
  const int null_low = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null_low < 0) fail("/dev/null");
  null.reset(moved_high(null_low));

  const std::vector<char*> argv = pointers(spec.command), envp = pointers(spec.environment);
  // Kills what survives a kill -9 of the runner: the limit is inherited by processes that a worker
  // started, which the death of their grandparent does not reach.
  const double cpu_seconds =
      std::min(1e9, spec.timeout_s * static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN)) + 30);
  const ChildSetup setup{spec.command.at(0).c_str(),
                         argv.data(),
                         envp.data(),
                         input.get(),
                         answer_end.get(),
                         log_end.get(),
                         null.get(),
                         failure_end.get(),
                         getpid(),
                         static_cast<rlim_t>(spec.address_space_bytes),
                         static_cast<rlim_t>(cpu_seconds)};
  sigset_t all, before;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &before);  // no handler of ours may run in the child
  const pid_t pid = fork();
  const int fork_error = errno;
  if (pid == 0) become_worker(setup);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  errno = fork_error;
  if (pid < 0) fail("fork");
  setpgid(pid, pid);  // also here: we may be first
  input.reset(), answer_end.reset(), log_end.reset(), failure_end.reset();

  int reason = 0;
  ssize_t got = 0;
  do got = read(failure.get(), &reason, sizeof reason);
  while (got < 0 && errno == EINTR);
  if (got == sizeof reason) {
    waitpid(pid, nullptr, 0);
    throw InternalError(fmt::format("cannot start {}: {}", spec.command[0], std::strerror(reason)));
  }
  fcntl(answer.get(), F_SETFL, O_NONBLOCK);
  fcntl(log.get(), F_SETFL, O_NONBLOCK);
  const Descriptor ended(static_cast<int>(syscall(SYS_pidfd_open, pid, 0u)));

  Log log_text;
  std::vector<char> buffer(1 << 16);
  const auto drain = [&](const Descriptor& from, auto&& take) {
    while (true) {
      const ssize_t count = read(from.get(), buffer.data(), buffer.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return count == 0;  // true: every writer is gone
      take(buffer.data(), static_cast<std::size_t>(count));
      if (end.answer_limit) return true;
    }
  };
  bool answer_open = true, log_open = true;
  const auto drain_answer = [&] {
    if (answer_open)
      answer_open = !drain(answer, [&](const char* data, std::size_t size) {
        end.answer.append(data, size);
        // Room for the frame's own few bytes.
        if (static_cast<std::int64_t>(end.answer.size()) > spec.answer_limit_bytes + 64)
          end.answer_limit = true;
      });
  };
  const auto drain_log = [&] {
    if (log_open)
      log_open = !drain(log, [&](const char* data, std::size_t size) { log_text.add(data, size); });
  };

  Clock::time_point deadline = start + to_duration(spec.timeout_s);
  enum class Stage { running, answered, terminating, killed } stage = Stage::running;
  const auto terminate = [&](double grace_s) {
    kill(-pid, SIGTERM);
    stage = Stage::terminating;
    deadline = Clock::now() + to_duration(grace_s);
  };
  const auto kill_now = [&] {
    kill(-pid, SIGKILL);
    end.killed_by_us = true;
    stage = Stage::killed;
  };
  while (true) {
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        info.si_pid == pid)
      break;
    if (spec.stop != nullptr && spec.stop->signal() != 0 && !end.stopped &&
        stage != Stage::killed) {
      end.stopped = true;
      terminate(spec.stop_grace_s);
    }
    const Clock::time_point now = Clock::now();
    if (stage != Stage::killed && now >= deadline) {
      if (stage == Stage::running) {
        end.timed_out = true;
        terminate(spec.grace_s);
      } else if (stage == Stage::answered) {
        terminate(spec.grace_s);
      } else {
        kill_now();
      }
      continue;
    }
    double wait_s =
        stage == Stage::killed ? 1.0 : std::chrono::duration<double>(deadline - now).count();
    if (ended.get() < 0) wait_s = std::min(wait_s, 0.005);  // a kernel without pidfd_open: look
    pollfd polled[4] = {{answer_open ? answer.get() : -1, POLLIN, 0},
                        {log_open ? log.get() : -1, POLLIN, 0},
                        {ended.get(), POLLIN, 0},
                        {spec.stop != nullptr && !end.stopped ? spec.stop->fd() : -1, POLLIN, 0}};
    poll(polled, 4, static_cast<int>(std::clamp(wait_s * 1000 + 1, 1.0, 3.6e6)));
    if (polled[0].revents != 0) {
      drain_answer();
      if (end.answer_limit && stage != Stage::killed) kill_now();
      if (stage == Stage::running && parse_frame(end.answer).state != Frame::State::none) {
        // It has said all it had to say; what is left is to exit.
        stage = Stage::answered;
        deadline = std::min(deadline, Clock::now() + to_duration(spec.grace_s));
      }
    }
    if (polled[1].revents != 0) drain_log();
  }
  // Its zombie still holds the process group's number: nobody else's group can be hit.
  kill(-pid, SIGKILL);
  drain_answer();
  drain_log();
  int status = 0;
  waitpid(pid, &status, 0);
  end.wall_s = std::chrono::duration<double>(Clock::now() - start).count();
  end.left_processes = kill_adopted(others);
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  if (WIFEXITED(status)) end.exit_status = WEXITSTATUS(status);
  end.log = log_text.text();
  end.suspended = seconds_of(CLOCK_BOOTTIME) - seconds_of(CLOCK_MONOTONIC) - asleep > 1;
  return end;
}

std::vector<std::string> allocator_environment() {
  // 16 GiB: above every block that a call may want for itself.
  return {"MALLOC_MMAP_THRESHOLD_=17179869184", "MALLOC_TRIM_THRESHOLD_=17179869184",
          "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"};
}

void restart_with(const std::vector<std::string>& environment, char** argv) {
  bool set = true;
  for (const std::string& entry : environment) {
    const std::size_t equal = entry.find('=');
    const std::string name = entry.substr(0, equal), value = entry.substr(equal + 1);
    const char* const present = std::getenv(name.c_str());
    set = set && present != nullptr && value == present;
    setenv(name.c_str(), value.c_str(), 1);
  }
  if (set) return;
  execv("/proc/self/exe", argv);
  fail("cannot start this program again");
}

std::vector<std::string> worker_environment(int threads) {
  std::vector<std::string> environment = {
      "LANG=C", "LC_ALL=C", fmt::format("OMP_NUM_THREADS={}", threads), "OMP_DYNAMIC=false"};
  for (std::string& entry : allocator_environment()) environment.push_back(std::move(entry));
  constexpr std::string_view kKept[] = {
      "PATH=",         "HOME=",          "TMPDIR=",       "LD_",           "OMP_",    "GOMP_",
      "ASAN_OPTIONS=", "UBSAN_OPTIONS=", "LSAN_OPTIONS=", "TSAN_OPTIONS=", "SUBQUAD_"};
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    if (text.starts_with("OMP_NUM_THREADS=") || text.starts_with("OMP_DYNAMIC=")) continue;
    if (std::any_of(std::begin(kKept), std::end(kKept),
                    [&](std::string_view prefix) { return text.starts_with(prefix); }))
      environment.emplace_back(text);
  }
  return environment;
}

Frame parse_frame(const std::string& bytes) {
  constexpr std::string_view kMark = "SQ1 ";
  if (!bytes.starts_with(kMark)) return {};
  std::size_t length = 0, i = kMark.size();
  for (; i < bytes.size() && bytes[i] >= '0' && bytes[i] <= '9' && i < kMark.size() + 12; ++i)
    length = 10 * length + static_cast<std::size_t>(bytes[i] - '0');
  if (i == kMark.size() || i >= bytes.size() || bytes[i] != '\n') return {};
  const std::size_t start = i + 1;
  if (bytes.size() < start + length + 1 || bytes[start + length] != '\n') return {};
  return {bytes.size() > start + length + 1 ? Frame::State::followed_by_more : Frame::State::whole,
          bytes.substr(start, length)};
}

}  // namespace subquad
