#include "harness/measure/memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <charconv>
#include <string>
#include <string_view>

namespace subquad {
namespace {

// The first 16 KiB of a file of /proc or /sys, "" when it cannot be read.
std::string head_of(const char* path) {
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return "";
  std::string text(16384, '\0');
  std::size_t used = 0;
  while (used < text.size()) {
    const ssize_t got = read(file, text.data() + used, text.size() - used);
    if (got <= 0) break;
    used += static_cast<std::size_t>(got);
  }
  close(file);
  text.resize(used);
  return text;
}

// The number at the start of a text, whatever the locale; 0 when there is none.
double number(std::string_view text) {
  double value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// The number after `key` at the start of a line (blanks and a colon skipped), or 0.
double number_after(const std::string& text, std::string_view key) {
  std::size_t place = 0;
  while ((place = text.find(key, place)) != std::string::npos) {
    if (place == 0 || text[place - 1] == '\n') {
      place = text.find_first_not_of(" \t:", place + key.size());
      return place == std::string::npos ? 0 : number(std::string_view(text).substr(place));
    }
    place += key.size();
  }
  return 0;
}

std::int64_t status_value(std::string_view key) {
  return static_cast<std::int64_t>(number_after(head_of("/proc/self/status"), key));
}

double clock_seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

std::int64_t vm_hwm_bytes() { return 1024 * status_value("VmHWM"); }
std::int64_t vm_rss_bytes() { return 1024 * status_value("VmRSS"); }
std::int64_t thread_tasks() { return status_value("Threads"); }

std::int64_t involuntary_context_switches() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_nivcsw;
}

double waiting_seconds() {
  // schedstat of a thread: time on a processor and time waiting for one in ns, time slices
  double nanoseconds = 0;
  DIR* const threads = opendir("/proc/self/task");
  if (threads == nullptr) return 0;
  while (const dirent* thread = readdir(threads)) {
    if (thread->d_name[0] == '.') continue;
    const std::string path = std::string("/proc/self/task/") + thread->d_name + "/schedstat";
    const std::string text = head_of(path.c_str());
    const std::size_t space = text.find(' ');
    if (space != std::string::npos) nanoseconds += number(std::string_view(text).substr(space + 1));
  }
  closedir(threads);
  return 1e-9 * nanoseconds;
}

double cpu_seconds() { return clock_seconds(CLOCK_PROCESS_CPUTIME_ID); }

double steal_seconds() {
  // "cpu  user nice system idle iowait irq softirq steal ..." in ticks
  const std::string text = head_of("/proc/stat");
  if (!text.starts_with("cpu ")) return 0;
  std::size_t place = 3;
  for (int field = 0; field < 8 && place < text.size(); ++field)
    place = text.find_first_not_of(' ', text.find(' ', place));
  if (place >= text.size()) return 0;
  const double value = number(std::string_view(text).substr(place));
  return value / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double core0_mhz() {
  const std::string khz = head_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq");
  if (!khz.empty()) return number(khz) / 1000;
  return number_after(head_of("/proc/cpuinfo"), "cpu MHz");
}

double monotonic_seconds() { return clock_seconds(CLOCK_MONOTONIC); }
double boottime_seconds() { return clock_seconds(CLOCK_BOOTTIME); }

}  // namespace subquad
