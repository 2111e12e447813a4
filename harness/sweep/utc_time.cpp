#include "harness/sweep/utc_time.h"

#include <ctime>

namespace subquad {
namespace {

std::string formatted(const char* format) {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  return std::string(text, std::strftime(text, sizeof text, format, &parts));
}

}  // namespace

std::string utc_time() { return formatted("%Y-%m-%dT%H:%M:%SZ"); }
std::string utc_time_compact() { return formatted("%Y%m%dT%H%M%SZ"); }

}  // namespace subquad
