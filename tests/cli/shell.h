// Runs the built executable (or another command) for the tests of the command line.
#pragma once

#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace subquad::test {

namespace fs = std::filesystem;

// A directory of its own that is removed at the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (fs::temp_directory_path() / "subquad_test_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Finished {
  int status = -1;  // exit status, or 128 + signal
  std::string out, err;
};

// Runs a command line of the shell.
inline Finished shell(const std::string& command) {
  const TemporaryDirectory dir;
  const int code = std::system(
      fmt::format("( {} ) >'{}' 2>'{}' </dev/null", command, dir / "out", dir / "err").c_str());
  return {WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code), contents(dir / "out"),
          contents(dir / "err")};
}

inline Finished subquad(const std::string& arguments) {
  return shell(fmt::format("'{}' {}", SUBQUAD_BINARY, arguments));
}

inline int line_count(const std::string& text) {
  int lines = 0;
  for (const char c : text) lines += c == '\n';
  return lines;
}

}  // namespace subquad::test
