#include "harness/core/plugin.h"

#include <dlfcn.h>
#include <fmt/core.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

namespace subquad {
namespace {

// Written out in pieces, so that the search does not find its own pattern in our executable.
const std::string kPrefix = std::string("@subquad") + "-plugin@";

// "eigen=3.4.0 align=64": the words of the stamp that differ, for the message.
std::string differences(const std::string& theirs, const std::string& ours) {
  const auto words = [](const std::string& text) {
    std::vector<std::string> list;
    std::string word;
    for (const char c : text + " ") {
      if (c != ' ') {
        word += c;
      } else if (!word.empty()) {
        list.push_back(word);
        word.clear();
      }
    }
    return list;
  };
  const std::vector<std::string> a = words(theirs), b = words(ours);
  std::string text;
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const std::string left = i < a.size() ? a[i] : "nothing",
                      right = i < b.size() ? b[i] : "nothing";
    if (left != right)
      text +=
          fmt::format("{}it has {}, this subquad has {}", text.empty() ? "" : ", ", left, right);
  }
  return text;
}

std::string stamp_of(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw UserError(fmt::format("plugin {}: not a file", path));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError(fmt::format("plugin {}: cannot be read", path));
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  if (!bytes.starts_with("\x7f"
                         "ELF"))
    throw UserError(fmt::format("plugin {}: not a shared object (expected an ELF file)", path));
  const std::size_t start = bytes.find(kPrefix);
  const std::size_t end =
      start == std::string::npos ? start : bytes.find('@', start + kPrefix.size());
  if (end == std::string::npos || end - start > 256)
    throw UserError(fmt::format(
        "plugin {}: it has no interface stamp; put SUBQUAD_PLUGIN(); into one of its files", path));
  return bytes.substr(start + kPrefix.size(), end - start - kPrefix.size());
}

}  // namespace

void load_plugin(const std::string& path) {
  static std::set<std::string> loaded;
  std::error_code error;
  const std::string full = std::filesystem::canonical(path, error).string();
  if (error) throw UserError(fmt::format("plugin {}: {}", path, error.message()));
  if (loaded.contains(full)) return;

  static const char kOwnStamp[] = SUBQUAD_STAMP;
  const std::string own =
      std::string(kOwnStamp).substr(kPrefix.size(), sizeof kOwnStamp - 2 - kPrefix.size());
  const std::string theirs = stamp_of(full);
  if (theirs != own)
    throw UserError(
        fmt::format("plugin {}: built for another subquad: {}; rebuild it against this one", path,
                    differences(theirs, own)));
  const std::size_t before =
      Registry::instance().methods().size() + Registry::instance().tasks().size();
  if (dlopen(full.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr)
    throw UserError(fmt::format("plugin {}: {}", path, dlerror()));
  Registry::instance().check();
  if (Registry::instance().methods().size() + Registry::instance().tasks().size() == before)
    throw UserError(fmt::format("plugin {}: it registers no method and no task", path));
  loaded.insert(full);
}

}  // namespace subquad
