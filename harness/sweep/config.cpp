// load_config: file, overrides and plugins -> checked sweep -> cells.
#include "harness/sweep/config.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <tuple>

#include "harness/core/plugin.h"
#include "harness/sweep/config_sweep.h"

namespace subquad {

void ConfigErrors::name_source(int source, std::string text) {
  sources_.emplace_back(source, std::move(text));
}

std::string ConfigErrors::at(const YamlPlace& place) const {
  if (place.source == 0) return fmt::format("{}:{}", place.line, place.column);
  for (const auto& [source, text] : sources_)
    if (source == place.source) return text;
  return "?";
}

void ConfigErrors::add(const YamlPlace& place, const std::string& path,
                       const std::string& message) {
  const std::string where = place.source == 0 ? fmt::format("{}:{}", file_, at(place)) : at(place);
  lines_.push_back({place, printable(fmt::format("{}: {}{}{}", where, path,
                                                 path.empty() ? "" : ": ", message))});
}

void ConfigErrors::throw_if_any() const {
  if (lines_.empty()) return;
  constexpr std::size_t kShown = 100;
  std::vector<Line> sorted = lines_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Line& a, const Line& b) {
    return std::tie(a.place.source, a.place.line, a.place.column) <
           std::tie(b.place.source, b.place.line, b.place.column);
  });
  std::string text;
  for (std::size_t i = 0; i < std::min(kShown, sorted.size()); ++i)
    text += (i == 0 ? "" : "\n") + sorted[i].text;
  if (sorted.size() > kShown)
    text += fmt::format("\n{}: {} more errors", file_, sorted.size() - kShown);
  throw ConfigError(text);
}

namespace {

constexpr std::size_t kMaxFileBytes = 1 << 20;

// One step of a dotted key: "methods[2]" is the key "methods" and the subscript 2.
struct Step {
  std::string key;
  std::vector<std::size_t> subscripts;
};

// Throws UserError on a malformed key.
std::vector<Step> steps_of(const std::string& key) {
  const auto malformed = [&]() -> std::size_t {
    throw UserError(
        fmt::format("{} is no key; expected KEY=VALUE with a key such as problem.n or "
                    "methods[0].window",
                    quoted_for_message(key)));
  };
  std::vector<Step> steps;
  for (std::size_t start = 0; start <= key.size();) {
    const std::size_t end = std::min(key.find('.', start), key.size());
    std::string part = key.substr(start, end - start);
    Step step;
    while (part.ends_with(']')) {
      const std::size_t open = part.rfind('[');
      if (open == std::string::npos) malformed();
      std::size_t subscript = 0;
      const char* const last = part.data() + part.size() - 1;
      const auto [stop, error] = std::from_chars(part.data() + open + 1, last, subscript);
      if (error != std::errc() || stop != last) malformed();
      step.subscripts.insert(step.subscripts.begin(), subscript);
      part.resize(open);
    }
    if (part.empty() || part.find_first_of("[] \t\n") != std::string::npos || steps.size() >= 8)
      malformed();
    step.key = std::move(part);
    steps.push_back(std::move(step));
    start = end + 1;
  }
  return steps;
}

YamlNode key_node(const std::string& text, const YamlPlace& place) {
  YamlNode node;
  node.kind = YamlNode::Kind::scalar;
  node.text = text;
  node.place = place;
  return node;
}

// Puts `value` at the key, making the maps on the way. Throws UserError where the key leads through
// something that is no map or list.
void put(YamlNode* root, const std::string& key, YamlNode value) {
  const YamlPlace place = value.place;
  YamlNode* node = root;
  std::string path;
  for (const Step& step : steps_of(key)) {
    if (node->kind == YamlNode::Kind::null) {
      node->kind = YamlNode::Kind::map;
      node->place = place;
    }
    if (node->kind != YamlNode::Kind::map)
      throw UserError(
          fmt::format("{} is not a map, so it has no key {}", path, quoted_for_message(step.key)));
    path += (path.empty() ? "" : ".") + step.key;
    auto entry = std::find_if(node->entries.begin(), node->entries.end(),
                              [&](const auto& e) { return e.first.text == step.key; });
    if (entry == node->entries.end()) {
      node->entries.emplace_back(key_node(step.key, place), YamlNode());
      entry = std::prev(node->entries.end());
      entry->second.place = place;
    }
    node = &entry->second;
    for (const std::size_t subscript : step.subscripts) {
      if (node->kind != YamlNode::Kind::sequence || subscript >= node->items.size())
        throw UserError(
            fmt::format("{} has no element {}; it has {}", path, subscript, node->items.size()));
      node = &node->items[subscript];
      path += fmt::format("[{}]", subscript);
    }
  }
  *node = std::move(value);
}

void apply_override(const std::string& text, int source, YamlNode* root, ConfigErrors* errors) {
  errors->name_source(source, "--set " + text);
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos)
    return errors->add({source}, "",
                       "has no \"=\"; expected KEY=VALUE, such as problem.n=[256,512]");
  std::vector<YamlProblem> problems;
  try {
    YamlNode value = parse_yaml(text.substr(equals + 1), source, &problems);
    if (value.kind == YamlNode::Kind::null) value.place = {source};
    put(root, text.substr(0, equals), std::move(value));
  } catch (const std::runtime_error& error) {  // YamlError, UserError
    errors->add({source}, "", error.what());
  }
  for (const YamlProblem& problem : problems) errors->add(problem);
}

std::vector<std::string> load_plugins(const std::vector<std::string>& paths, ConfigErrors* errors) {
  std::vector<std::string> loaded;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const int source = -static_cast<int>(i) - 1;
    errors->name_source(source, "--plugin " + paths[i]);
    try {
      if (std::filesystem::is_directory(paths[i]))
        throw UserError(fmt::format("plugin {}: is a directory", paths[i]));
      load_plugin(paths[i]);
      const std::string full = std::filesystem::canonical(paths[i]).string();
      if (std::find(loaded.begin(), loaded.end(), full) == loaded.end()) loaded.push_back(full);
    } catch (const std::exception& error) {
      errors->add({source}, "", error.what());
    }
  }
  return loaded;
}

}  // namespace

Config load_config(const std::string& path, const std::vector<std::string>& overrides,
                   const std::vector<std::string>& plugins) {
  ConfigErrors errors(path);
  std::string text;
  try {
    text = read_text_file(path, kMaxFileBytes);
  } catch (const UserError& error) {
    throw ConfigError(printable(error.what()));
  }
  std::vector<YamlProblem> problems;
  YamlNode root;
  try {
    root = parse_yaml(text, 0, &problems);
  } catch (const YamlError& error) {
    errors.add(error.place, "", error.what());
    errors.throw_if_any();
  }
  for (const YamlProblem& problem : problems) errors.add(problem);
  const std::vector<std::string> loaded = load_plugins(plugins, &errors);
  if (root.kind == YamlNode::Kind::map)
    for (std::size_t i = 0; i < overrides.size(); ++i)
      apply_override(overrides[i], static_cast<int>(i) + 1, &root, &errors);

  const Sweep sweep = read_sweep(root, path, loaded, &errors);
  Config config;
  config.cells = expand(sweep, &errors);
  errors.throw_if_any();
  config.name = sweep.name;
  config.path = path;
  config.seed = sweep.seed;
  config.rounds = sweep.rounds;
  config.plots = sweep.plots;
  config.plugins = sweep.plugins;
  config.resolved_yaml = resolved_yaml(sweep);
  return config;
}

}  // namespace subquad
