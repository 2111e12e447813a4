#include "harness/sweep/stop_signal.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "harness/core/error.h"

namespace subquad {
namespace {

// A signal handler can reach nothing but globals.
volatile sig_atomic_t g_signal = 0;
int g_pipe[2] = {-1, -1};
constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
struct sigaction g_before[3];

void handle(int number) {
  const int saved = errno;
  if (g_signal != 0) _exit(128 + number);
  g_signal = number;
  (void)!write(g_pipe[1], "s", 1);
  errno = saved;
}

}  // namespace

StopSignals::StopSignals() {
  SUBQUAD_CHECK(g_pipe[0] < 0, "two StopSignals at a time");
  g_signal = 0;
  if (pipe2(g_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
    throw InternalError(fmt::format("pipe2: {}", std::strerror(errno)));
  struct sigaction action {};
  action.sa_handler = handle;
  sigemptyset(&action.sa_mask);
  for (int i = 0; i < 3; ++i) {
    sigaction(kSignals[i], nullptr, &g_before[i]);
    // Under nohup the end of the terminal is to be ignored, and stays so.
    if (kSignals[i] == SIGHUP && g_before[i].sa_handler == SIG_IGN) continue;
    sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignals::~StopSignals() {
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &g_before[i], nullptr);
  for (int& end : g_pipe) {
    close(end);
    end = -1;
  }
}

int StopSignals::signal() const { return g_signal; }
int StopSignals::fd() const { return g_pipe[0]; }

}  // namespace subquad
