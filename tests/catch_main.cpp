// Catch's own handler of fatal signals allocates: in a heap that is broken it would wait forever,
// and the crash would look like a test that takes too long. This one names the test and lets it
// die.
#define CATCH_CONFIG_MAIN
#define CATCH_CONFIG_NO_POSIX_SIGNALS
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>

namespace {

char running[256] = "no test case";

[[maybe_unused]] void say(int signal) {
  constexpr char kStart[] = "\ncrashed in: ";
  // What cannot be written is lost; there is nobody left to tell.
  [[maybe_unused]] auto ignored = write(STDERR_FILENO, kStart, sizeof kStart - 1);
  ignored = write(STDERR_FILENO, running, std::strlen(running));
  ignored = write(STDERR_FILENO, "\n", 1);
  raise(signal);  // SA_RESETHAND: now for real
}

struct CrashNames final : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;

  void testRunStarting(const Catch::TestRunInfo& info) override {
    TestEventListenerBase::testRunStarting(info);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    struct sigaction action {};
    action.sa_handler = say;
    action.sa_flags = SA_RESETHAND | SA_NODEFER;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT})
      sigaction(signal, &action, nullptr);
#endif
  }
  void testCaseStarting(const Catch::TestCaseInfo& info) override {
    TestEventListenerBase::testCaseStarting(info);
    std::strncpy(running, info.name.c_str(), sizeof running - 1);
  }
  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    TestEventListenerBase::testCaseEnded(stats);
    std::strncpy(running, "no test case", sizeof running - 1);
  }
};

CATCH_REGISTER_LISTENER(CrashNames)

}  // namespace
