// subquad new method|task NAME: a commented starting file that compiles, runs and passes its tests.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>

#include "harness/cli/options.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

// The files of harness/cli/templates by their path there; the build puts them into the executable.
const std::map<std::string, std::string> kTemplates = {
#include "templates.inc"
};

struct Options {
  std::string name, family = "custom", source = SUBQUAD_SOURCE_DIR, standalone;
};

using Words = std::map<std::string, std::string>;  // {{KEY}} -> text

std::string filled(const std::string& file, const Words& words) {
  const auto found = kTemplates.find(file);
  SUBQUAD_CHECK(found != kTemplates.end(), "no template {}", file);
  std::string text = found->second;
  for (const auto& [key, value] : words) {
    const std::string mark = "{{" + key + "}}";
    for (std::size_t at = 0; (at = text.find(mark, at)) != std::string::npos; at += value.size())
      text.replace(at, mark.size(), value);
  }
  return text;
}

void check_word(const char* what, const std::string& text) {
  const bool good = !text.empty() && text.size() <= 64 && text[0] >= 'a' && text[0] <= 'z' &&
                    std::all_of(text.begin(), text.end(), [](char c) {
                      return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
                    });
  if (!good)
    throw UserError(fmt::format(
        "{} \"{}\": expected small letters, digits and _, beginning with a letter, at most 64",
        what, text));
}

// "windowed_mean" -> "WindowedMean"
std::string class_name(const std::string& name) {
  std::string text;
  bool upper = true;
  for (const char c : name) {
    if (c != '_') text += upper ? static_cast<char>(std::toupper(c)) : c;
    upper = c == '_';
  }
  return text;
}

void write(const fs::path& path, const std::string& text) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) throw UserError(fmt::format("{}: {}", path.parent_path().string(), error.message()));
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file)
    throw UserError(fmt::format("{}: cannot be written: {}", path.string(), std::strerror(errno)));
  fmt::print("{}\n", path.string());
}

void check_free(const std::vector<fs::path>& paths) {
  std::error_code error;
  for (const fs::path& path : paths)
    if (fs::exists(fs::symlink_status(path, error)))
      throw UserError(fmt::format("{} exists and is left alone", path.string()));
}

void run(bool method, const Options& options) {
  const char* kind = method ? "method" : "task";
  const std::string& name = options.name;
  check_word(kind, name);
  if (method) check_word("family", options.family);
  const Registry& registry = Registry::instance();
  if (const MethodEntry* entry = registry.find_method(name))
    throw UserError(fmt::format("method \"{}\" exists: {}", name, entry->file));
  if (const TaskEntry* entry = registry.find_task(name))
    throw UserError(fmt::format("task \"{}\" exists: {}", name, entry->file));

  const bool standalone = !options.standalone.empty();
  const std::string cpp = fmt::format("{}.cpp.in", kind);
  Words words = {{"NAME", name},
                 {"CLASS", class_name(name)},
                 {"KIND", kind},
                 {"FAMILY", options.family},
                 {"VERSION", SUBQUAD_VERSION},
                 {"INCLUDE", standalone ? "#include \"harness/core/plugin.h\"\n" : ""},
                 {"PLUGIN", standalone ? "SUBQUAD_PLUGIN();  // once per shared object\n\n" : ""},
                 {"TEST_COMMAND", (method ? "test " : "sample --qkv ") + name},
                 {"METHODS", method ? fmt::format("[dense, {{name: {}, window: [16, 64]}}]", name)
                                    : std::string("[dense]")},
                 {"TASKS", method ? std::string("[gaussian]")
                                  : fmt::format("[{{name: {}, shared: [0, 1]}}]", name)}};
  if (standalone) {
    const fs::path dir = options.standalone;
    const std::map<fs::path, std::string> files = {
        {dir / (name + ".cpp"), cpp},
        {dir / "CMakeLists.txt", "standalone/CMakeLists.txt.in"},
        {dir / "README.md", "standalone/README.md.in"},
        {dir / "example.yaml", "standalone/example.yaml.in"}};
    std::vector<fs::path> paths;
    for (const auto& file : files) paths.push_back(file.first);
    check_free(paths);
    for (const auto& [path, from] : files) write(path, filled(from, words));
    fmt::print(stderr, "next: cd {} and follow README.md\n", dir.string());
    return;
  }
  const fs::path source = options.source;
  if (!fs::is_regular_file(source / "harness/core/method.h"))
    throw UserError(fmt::format(
        "{} is no source tree of subquad; name one with --source, or use --standalone DIR",
        source.string()));
  const fs::path path = method ? source / "methods" / options.family / (name + ".cpp")
                               : source / "tasks" / (name + ".cpp");
  check_free({path});
  write(path, filled(cpp, words));
  fmt::print(stderr, "next: ./subquad {}\n", method ? "test " + name : "sample " + name);
}

void add(CLI::App* parent, bool method) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      parent->add_subcommand(method ? "method" : "task", method ? "A new method" : "A new task");
  command->add_option("name", options->name, "Its registered name, [a-z][a-z0-9_]*")->required();
  if (method)
    command->add_option("--family", options->family, "Folder below methods/; default custom");
  CLI::Option* source =
      command->add_option("--source", options->source, "Source tree that the file goes to");
  command
      ->add_option(
          "--standalone", options->standalone,
          "Write a project of its own to this directory: a plugin for an installed subquad")
      ->excludes(source);
  command->callback([options, method] { run(method, *options); });
}

}  // namespace

void add_new(CLI::App& app, int*) {
  CLI::App* command = app.add_subcommand("new", "Write the starting file of a method or task");
  command->require_subcommand(1);
  add(command, true);
  add(command, false);
}

}  // namespace subquad
