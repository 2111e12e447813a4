// subquad list [methods|tasks]: everything that is registered, sorted by name.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/declared.h"
#include "harness/cli/options.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

struct Options {
  std::string what;
  std::vector<std::string> plugins;
  bool json = false, names = false;
};

const char* or_dash(const std::string& text) { return text.empty() ? "-" : text.c_str(); }

void run(const Options& options) {
  load_plugins(options.plugins);
  const bool methods = options.what != "tasks", tasks = options.what != "methods";
  const Registry& registry = Registry::instance();
  if (options.json) {
    nlohmann::ordered_json json;
    if (methods) {
      json["methods"] = nlohmann::ordered_json::array();
      for (const MethodEntry* entry : registry.methods())
        json["methods"].push_back(declared(*entry));
    }
    if (tasks) {
      json["tasks"] = nlohmann::ordered_json::array();
      for (const TaskEntry* entry : registry.tasks()) json["tasks"].push_back(declared(*entry));
    }
    fmt::print("{}\n", json.dump(2));
    return;
  }
  if (options.names) {
    if (methods)
      for (const MethodEntry* entry : registry.methods()) fmt::print("{}\n", entry->info.name);
    if (tasks)
      for (const TaskEntry* entry : registry.tasks()) fmt::print("{}\n", entry->info.name);
    return;
  }
  if (methods) {
    std::vector<std::vector<std::string>> rows = {
        {"METHOD", "FAMILY", "CAUSAL", "PASSES", "SUMMARY", "SOURCE"}};
    for (const MethodEntry* entry : registry.methods()) {
      const MethodInfo& info = entry->info;
      rows.push_back({info.name, info.family, std::string(name(info.causality)),
                      fmt::format("{}", fmt::join(pass_names(info), ",")), info.summary,
                      or_dash(info.source)});
    }
    fmt::print("{}", format_table(rows));
  }
  if (methods && tasks) fmt::print("\n");
  if (tasks) {
    std::vector<std::vector<std::string>> rows = {{"TASK", "LABELS", "SUMMARY", "SOURCE"}};
    for (const TaskEntry* entry : registry.tasks())
      rows.push_back({entry->info.name, entry->info.labelled ? "yes" : "-", entry->info.summary,
                      or_dash(entry->info.source)});
    fmt::print("{}", format_table(rows));
  }
}

}  // namespace

void add_list(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("list", "Show the methods and tasks there are");
  command->add_option("what", options->what, "methods or tasks; default: both")
      ->check(CLI::IsMember({"methods", "tasks"}));
  CLI::Option* json = command->add_flag("--json", options->json, "Everything declared, as JSON");
  command->add_flag("--names", options->names, "Names only, one a line")->excludes(json);
  add_plugin_option(command, &options->plugins);
  command->callback([options] { run(*options); });
}

}  // namespace subquad
