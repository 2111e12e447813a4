#include "harness/cli/python_script.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "harness/core/error.h"

extern char** environ;

namespace subquad {
namespace {

namespace fs = std::filesystem;

// The words as C wants them; they live as long as `command`.
std::vector<char*> arguments_of(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  argv.reserve(command.size() + 1);
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  return argv;
}

// Runs a program to its end. `quiet` sends its output to /dev/null. 127 when it cannot be started.
int run_program(const std::vector<std::string>& command, bool quiet) {
  const std::vector<char*> argv = arguments_of(command);
  posix_spawn_file_actions_t actions;
  if (posix_spawn_file_actions_init(&actions) != 0) throw std::bad_alloc();
  if (quiet) {
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  }
  pid_t child = 0;
  const int failure = posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failure != 0) return 127;
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR)
      throw InternalError(fmt::format("waiting for {}: {}", command[0], std::strerror(errno)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::string plots_folder() {
  std::vector<fs::path> places;
  // An explicit wish is not replaced by a guess.
  if (const char* wish = std::getenv("SUBQUAD_PLOTS"); wish != nullptr && *wish != '\0') {
    places.emplace_back(wish);
  } else {
    std::error_code error;
    const fs::path self = fs::read_symlink("/proc/self/exe", error);
    places.emplace_back(SUBQUAD_PLOTS_DIR);
    if (!error) places.push_back(self.parent_path().parent_path() / "share/subquad/plots");
  }
  std::string searched;
  for (const fs::path& place : places) {
    std::error_code error;
    if (fs::is_regular_file(place / "plot.py", error)) return place.string();
    searched += (searched.empty() ? "" : ", ") + place.string();
  }
  throw UserError(fmt::format(
      "plots: no plot.py in {}; set SUBQUAD_PLOTS to the folder plots/ of the project", searched));
}

std::string plotting_python() {
  for (const char* python : {"/usr/bin/python3", "python3"})
    if (run_program({python, "-c", "import matplotlib, pandas"}, true) == 0) return python;
  throw UserError(
      "plots: no python3 with matplotlib and pandas; install the Debian packages "
      "python3-matplotlib and python3-pandas");
}

namespace {

std::vector<std::string> script_command(const std::string& script,
                                        const std::vector<std::string>& arguments) {
  const fs::path path = fs::path(plots_folder()) / script;
  std::vector<std::string> command = {plotting_python(), path.string()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

}  // namespace

int run_python_script(const std::string& script, const std::vector<std::string>& arguments) {
  return run_program(script_command(script, arguments), false);
}

void become_python_script(const std::string& script, const std::vector<std::string>& arguments) {
  const std::vector<std::string> command = script_command(script, arguments);
  execvp(command[0].c_str(), arguments_of(command).data());
  throw UserError(fmt::format("{}: {}", command[0], std::strerror(errno)));
}

}  // namespace subquad
