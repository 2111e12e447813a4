#include "harness/sweep/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace subquad {
namespace {

// The number behind the word `key` in a file of "key number" lines, or -1.
std::int64_t number_after(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    std::int64_t value = 0;
    if (word == key && file >> value) return value;
  }
  return -1;
}

std::int64_t first_number(const std::string& path) {  // -1 for "max" or no file
  std::ifstream file(path);
  std::int64_t value = 0;
  return file >> value ? value : -1;
}

}  // namespace

std::int64_t available_memory_bytes() {
  const std::int64_t kib = number_after("/proc/meminfo", "MemAvailable:");
  std::int64_t available = kib < 0 ? 0 : kib * 1024;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    if (!line.starts_with("0::")) continue;  // version 2 only
    std::string path = line.substr(3);
    while (true) {  // limits of the ancestors hold as well
      const std::string group = "/sys/fs/cgroup" + (path == "/" ? "" : path);
      const std::int64_t limit = first_number(group + "/memory.max");
      const std::int64_t used = first_number(group + "/memory.current");
      if (limit >= 0 && used >= 0)
        available = std::min(available, std::max<std::int64_t>(limit - used, 0));
      if (path.empty() || path == "/") break;
      path = path.substr(0, path.rfind('/'));
    }
  }
  return available;
}

std::int64_t swapped_out_pages() {
  return std::max<std::int64_t>(number_after("/proc/vmstat", "pswpout"), 0);
}

}  // namespace subquad
