#include "harness/cli/options.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "harness/core/plugin.h"
#include "harness/core/registry.h"

namespace subquad {

void add_plugin_option(CLI::App* command, std::vector<std::string>* plugins) {
  command->add_option("--plugin", *plugins, "Shared object with further methods or tasks")
      ->type_name("FILE")
      ->allow_extra_args(false);
}

void load_plugins(const std::vector<std::string>& plugins) {
  for (const std::string& plugin : plugins) load_plugin(plugin);
}

void add_set_option(CLI::App* command, std::vector<std::string>* assignments) {
  command->add_option("--set", *assignments, "Set a parameter; see subquad describe NAME")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

Settings settings_from(const std::string& owner, const std::vector<ParamSpec>& specs,
                       const std::vector<std::string>& assignments) {
  Settings given;
  for (const std::string& text : assignments) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      throw UserError(fmt::format("--set {}: expected KEY=VALUE", text));
    const std::string key = text.substr(0, equals), value = text.substr(equals + 1);
    try {
      const auto spec = std::find_if(specs.begin(), specs.end(),
                                     [&](const ParamSpec& s) { return s.name == key; });
      const auto [place, added] =
          given.insert({key, spec == specs.end() ? ParamValue(value) : parse(*spec, value)});
      if (!added) throw UserError(fmt::format("{} was set before", key));
      resolve(owner, specs, given);  // here, so that an error is of this assignment
    } catch (const UserError& error) {
      throw UserError(fmt::format("--set {}: {}", text, error.what()));
    }
  }
  return resolve(owner, specs, given);
}

std::string format_table(const std::vector<std::vector<std::string>>& rows,
                         const std::string& indent) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line = indent;
    for (std::size_t i = 0; i < row.size(); ++i)
      line += i + 1 < row.size() ? fmt::format("{:<{}}", row[i], widths[i] + 2) : row[i];
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

void unknown_name(const std::string& name, bool tasks_too) {
  std::vector<std::string> known;
  for (const MethodEntry* entry : Registry::instance().methods()) known.push_back(entry->info.name);
  if (tasks_too)
    for (const TaskEntry* entry : Registry::instance().tasks()) known.push_back(entry->info.name);
  const std::string near = nearest_name(name, known);
  throw UserError(fmt::format("unknown {} \"{}\"{}; subquad list shows all",
                              tasks_too ? "method or task" : "method", name,
                              near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near)));
}

}  // namespace subquad
