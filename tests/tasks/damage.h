// Files of tests: a temporary folder, and damage done to a file at random.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "harness/core/error.h"
#include "harness/core/random.h"

namespace subquad {

struct TemporaryFolder {
  std::filesystem::path dir;
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "subquad_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp: " + pattern);
    dir = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(dir, ignored);
  }
  std::string path(const std::string& name) const {
    return name.empty() ? dir.string() : (dir / name).string();
  }
  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::create_directories((dir / name).parent_path());
    std::ofstream file(dir / name, std::ios::binary);
    file << bytes;
    if (!file.flush()) throw std::runtime_error("cannot write " + path(name));
  }
};

// Damages `bytes` in `tries` ways (cut short, bytes changed, removed, repeated), writes each to
// `name` and calls read(path), which must return or throw UserError or Unsupported, with one line.
// Returns how often it was refused; anything else that is thrown ends the test.
inline int survives_damage(const std::string& bytes, const TemporaryFolder& folder,
                           const std::string& name, int tries,
                           const std::function<void(const std::string&)>& read) {
  int refused = 0;
  for (int i = 0; i < tries; ++i) {
    Random random(7, "damage", {static_cast<std::uint64_t>(i)});
    std::string damaged = bytes;
    const auto place = [&] { return random.below(std::max<std::size_t>(1, damaged.size())); };
    for (std::uint64_t hits = 1 + random.below(3); hits > 0; --hits) {
      const std::size_t at = place(), length = 1 + random.below(32);
      switch (random.below(4)) {
        case 0:
          damaged.resize(at);
          break;
        case 1:
          if (!damaged.empty()) damaged[at] = static_cast<char>(random.below(256));
          break;
        case 2:
          damaged.erase(std::min(at, damaged.size()), length);
          break;
        default:
          damaged.insert(std::min(at, damaged.size()),
                         damaged.substr(std::min(place(), damaged.size()), length));
      }
    }
    folder.write(name, damaged);
    try {
      read(folder.path(name));
    } catch (const UserError& error) {
      ++refused;
      if (std::string(error.what()).find('\n') != std::string::npos)
        throw std::runtime_error("more than one line: " + std::string(error.what()));
    } catch (const Unsupported&) {
      ++refused;
    }
  }
  return refused;
}

}  // namespace subquad
