#include "harness/core/data_path.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "harness/core/error.h"

namespace subquad {

std::string data_path(const std::string& name) {
  namespace fs = std::filesystem;
  std::vector<fs::path> places;
  if (const char* chosen = std::getenv("SUBQUAD_DATA"); chosen != nullptr && *chosen != '\0')
    places.emplace_back(chosen);
#ifdef SUBQUAD_SOURCE_DIR
  places.push_back(fs::path(SUBQUAD_SOURCE_DIR) / "tasks" / "data");
#endif
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  if (!error) places.push_back(executable.parent_path().parent_path() / "share" / "subquad");

  std::vector<std::string> looked;
  for (const fs::path& place : places) {
    const fs::path candidate = place / name;
    if (fs::is_regular_file(candidate, error)) return candidate.string();
    looked.push_back(candidate.string());
  }
  throw UserError(
      fmt::format("data file \"{}\" not found, looked for {}; set SUBQUAD_DATA to the directory "
                  "that holds it",
                  name, fmt::join(looked, ", ")));
}

}  // namespace subquad
