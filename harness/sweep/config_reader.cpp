// Reads the tree of a config into a Sweep: known keys, types, ranges, names.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <limits>

#include "harness/core/plugin.h"
#include "harness/measure/fit_data.h"
#include "harness/model/options.h"
#include "harness/sweep/config_values.h"

namespace subquad {

namespace {

const std::vector<std::string> kTopKeys{
    "name",    "description", "seed",  "seeds", "rounds",  "threads", "passes",  "problem",
    "methods", "tasks",       "train", "fit",   "measure", "error",   "plugins", "plots"};
const std::vector<std::string> kProblemKeys{"batch", "heads",    "n",      "n_kv", "d_k",
                                            "d_v",   "head_dim", "causal", "scale"};
const std::vector<std::string> kMethodKeys{"name",   "label",   "max_n",
                                           "passes", "threads", "weights"};
const std::vector<std::string> kTaskKeys{"name"};
constexpr int kMaxThreads = 1024;

class Reader : private ValueReader {
 public:
  Reader(const std::string& config_path, ConfigErrors* errors)
      : ValueReader(errors), folder_(std::filesystem::path(config_path).parent_path()) {}

  Sweep read(const YamlNode& root, const std::vector<std::string>& plugins) {
    Sweep sweep;
    sweep.plugins = plugins;
    if (root.kind == YamlNode::Kind::null) {
      errors_.add(root.place, "",
                  "the config is empty; expected a map with the keys name, problem, "
                  "methods and tasks");
      return sweep;
    }
    if (!expect_map(root, "")) return sweep;
    check_keys(root, "", kTopKeys);
    read_name(root, &sweep);
    read_one(root, "", "seed", [&](const YamlNode& node, const std::string& path) {
      if (const auto value = integer(node, path, 0, kMaxSeed))
        sweep.seed = static_cast<Seed>(*value);
    });
    read_one(root, "", "rounds", [&](const YamlNode& node, const std::string& path) {
      if (const auto value = integer(node, path, 1, 10000)) sweep.rounds = static_cast<int>(*value);
    });
    read_one(root, "", "plots", [&](const YamlNode& node, const std::string& path) {
      if (const auto value = boolean(node, path)) sweep.plots = *value;
    });
    read_one(root, "", "plugins", [&](const YamlNode& node, const std::string& path) {
      read_plugins(node, path, &sweep.plugins);
    });
    sweep.seeds =
        axis<Seed>(root, "", "seeds", sweep.seed, [&](const auto& node, const auto& path) {
          const auto value = integer(node, path, 0, kMaxSeed);
          return value ? std::optional(static_cast<Seed>(*value)) : std::nullopt;
        });
    sweep.threads = threads(root, "");
    if (sweep.threads.empty())
      sweep.threads.push_back({available_threads(), root.place, "threads"});
    sweep.passes = passes(root, "");
    if (sweep.passes.empty()) sweep.passes.push_back({Pass::forward, root.place, "passes"});
    read_problem(root, &sweep.problem);
    read_learning(root, "train", specs_of(train_fields()), &sweep.train);
    read_learning(root, "fit", specs_of(fit_fields()), &sweep.fit);
    read_options(root, "measure", measure_fields(), &sweep.measure);
    read_options(root, "error", error_fields(), &sweep.error);
    read_methods(root, &sweep.methods);
    read_tasks(root, &sweep.tasks);
    return sweep;
  }

 private:
  static constexpr Index kMaxSeed = std::numeric_limits<Index>::max();

  // ---- sections ----

  void read_name(const YamlNode& root, Sweep* sweep) {
    read_one(root, "", "description", [&](const YamlNode& node, const std::string& path) {
      if (node.kind != YamlNode::Kind::scalar) return refuse(node, path, "text");
      sweep->description = node.text;
    });
    const YamlNode* node = root.find("name");
    if (node == nullptr)
      return errors_.add(root.place, "",
                         "key \"name\" is missing; expected a name for the results, such as "
                         "name: quickstart");
    const auto allowed = [](char c) {
      return (c >= 'a' && c <= 'z') || is_digit(c) || c == '_' || c == '.' || c == '-';
    };
    const std::string& text = node->text;
    if (node->kind == YamlNode::Kind::scalar && !text.empty() && text.size() <= 64 &&
        std::all_of(text.begin(), text.end(), allowed) &&
        ((text[0] >= 'a' && text[0] <= 'z') || is_digit(text[0])) &&
        text.find("..") == std::string::npos) {
      sweep->name = text;
      return;
    }
    refuse(*node, "name",
           "a name of at most 64 characters a-z 0-9 _ . -, the first a letter or digit, without "
           "\"..\"");
  }

  void read_plugins(const YamlNode& node, const std::string& path,
                    std::vector<std::string>* plugins) {
    const auto load = [&](const YamlNode& item,
                          const std::string& item_path) -> std::optional<std::string> {
      if (item.kind != YamlNode::Kind::scalar || item.text.empty()) {
        refuse(item, item_path, "the path of a shared object");
        return std::nullopt;
      }
      const std::filesystem::path full = folder_ / item.text;
      std::error_code error;
      try {
        if (std::filesystem::is_directory(full, error))
          throw UserError(fmt::format("plugin {}: is a directory", full.string()));
        load_plugin(full.string());
        return std::filesystem::canonical(full).string();
      } catch (const std::exception& problem) {
        errors_.add(item.place, item_path, problem.what());
        plugin_failed_ = true;
        return std::nullopt;
      }
    };
    if (node.kind == YamlNode::Kind::sequence && node.items.empty()) return;  // none: harmless
    for (const auto& choice : values<std::string>(node, path, load))
      if (std::find(plugins->begin(), plugins->end(), choice.value) == plugins->end())
        plugins->push_back(choice.value);
  }

  Axis<Pass> passes(const YamlNode& map, const std::string& path) {
    std::vector<std::string> names;
    for (const Pass pass : kAllPasses) names.emplace_back(subquad::name(pass));
    const YamlNode* node = map.find("passes");
    if (node == nullptr) return {};
    return values<Pass>(*node, join_path(path, "passes"),
                        [&](const YamlNode& item, const std::string& item_path) {
                          std::optional<Pass> pass;
                          if (item.kind == YamlNode::Kind::scalar) pass = pass_from_name(item.text);
                          if (!pass)
                            refuse(item, item_path,
                                   fmt::format("one of: {}{}", fmt::join(names, ", "),
                                               did_you_mean(item.text, names)));
                          return pass;
                        });
  }

  Axis<int> threads(const YamlNode& map, const std::string& path) {
    const YamlNode* node = map.find("threads");
    if (node == nullptr) return {};
    std::optional<Choice<int>> all;
    Axis<int> list = values<int>(
        *node, join_path(path, "threads"),
        [&](const YamlNode& item, const std::string& item_path) -> std::optional<int> {
          if (item.kind == YamlNode::Kind::scalar) {
            if (item.text == "all" && !all) {
              all = {available_threads(), item.place, item_path};
              return std::nullopt;
            }
            const auto count = integer_of(item.text);
            if (!item.quoted && count && *count >= 1 && *count <= kMaxThreads)
              return static_cast<int>(*count);
          }
          refuse(item, item_path, fmt::format("an integer in [1, {}], or all (once)", kMaxThreads));
          return std::nullopt;
        });
    // [1, 2, all] on two processors: "all" adds nothing, and is no mistake either.
    if (all && std::none_of(list.begin(), list.end(),
                            [&](const Choice<int>& c) { return c.value == all->value; }))
      list.push_back(*all);
    return list;
  }

  void read_problem(const YamlNode& root, ProblemSweep* problem) {
    static const YamlNode kNone = [] {
      YamlNode node;
      node.kind = YamlNode::Kind::map;
      return node;
    }();
    const YamlNode* node = root.find("problem");
    problem->place = node == nullptr ? root.place : node->place;
    if (node != nullptr) {
      if (!expect_map(*node, "problem")) return;
      check_keys(*node, "problem", kProblemKeys);
    } else {
      node = &kNone;
    }
    // The limits are those of invalid_reason(): every size is tried in an otherwise tiny problem.
    const auto size = [&](Index Problem::*member) {
      return [this, member](const YamlNode& item, const std::string& path) -> std::optional<Index> {
        const bool plain = item.kind == YamlNode::Kind::scalar && !item.quoted;
        const std::optional<Index> value = plain ? integer_of(item.text) : std::nullopt;
        if (!value) {
          refuse(item, path, "a positive integer");
          return std::nullopt;
        }
        Problem probe{.n = 1, .n_kv = 1, .d_k = 1, .d_v = 1};
        probe.*member = *value;
        const std::string reason = invalid_reason(probe);
        if (reason.empty()) return value;
        errors_.add(item.place, path, reason);
        return std::nullopt;
      };
    };
    const Problem defaults;
    problem->batch = axis(*node, "problem", "batch", defaults.batch, size(&Problem::batch));
    problem->heads = axis(*node, "problem", "heads", defaults.heads, size(&Problem::heads));
    problem->n = axis(*node, "problem", "n", Index{0}, size(&Problem::n));
    problem->n_kv = axis(
        *node, "problem", "n_kv", Index{0}, [&](const YamlNode& item, const std::string& path) {
          if (item.kind == YamlNode::Kind::scalar && item.text == "same")
            return std::optional(Index{0});
          if (item.kind == YamlNode::Kind::scalar && !item.quoted && integer_of(item.text))
            return size(&Problem::n_kv)(item, path);
          refuse(item, path, "\"same\" or a positive integer");
          return std::optional<Index>();
        });
    if (const YamlNode* both = node->find("head_dim")) {
      for (const char* key : {"d_k", "d_v"})
        if (const YamlNode* other = node->find(key))
          errors_.add(other->place, join_path("problem", key),
                      fmt::format("head_dim (at {}) sets d_k and d_v together; give either it or "
                                  "them",
                                  errors_.at(both->place)));
      problem->paired = true;
      problem->d_k = axis(*node, "problem", "head_dim", defaults.d_k, size(&Problem::d_k));
      problem->d_v = problem->d_k;
    } else {
      problem->d_k = axis(*node, "problem", "d_k", defaults.d_k, size(&Problem::d_k));
      problem->d_v = axis(*node, "problem", "d_v", defaults.d_v, size(&Problem::d_v));
    }
    problem->causal = axis(*node, "problem", "causal", defaults.causal,
                           [&](const auto& item, const auto& path) { return boolean(item, path); });
    problem->scale = axis(*node, "problem", "scale", defaults.scale,
                          [&](const YamlNode& item, const std::string& path) {
                            if (item.kind == YamlNode::Kind::scalar) {
                              if (item.text == "auto") return std::optional(0.0);
                              const auto value = real_of(item.text);
                              if (!item.quoted && value && *value >= 1e-6 && *value <= 1e6)
                                return value;
                            }
                            refuse(item, path, "auto or a number in [1e-06, 1e+06]");
                            return std::optional<double>();
                          });
  }

  template <class Options>
  void read_options(const YamlNode& root, const std::string& section,
                    const std::vector<Field<Options>>& fields, Options* options) {
    const YamlNode* node = root.find(section);
    if (node == nullptr || !expect_map(*node, section)) return;
    std::vector<std::string> names;
    for (const Field<Options>& field : fields) names.push_back(field.spec.name);
    check_keys(*node, section, names);
    for (const Field<Options>& field : fields)
      read_one(*node, section, field.spec.name, [&](const YamlNode& item, const std::string& path) {
        if (const auto value = value_of(item, path, field.spec)) field.set(*options, *value);
      });
  }

  // The options of the train or fit pass; any of them may be a list.
  void read_learning(const YamlNode& root, const std::string& section,
                     const std::vector<ParamSpec>& specs, std::vector<ParamAxis>* options) {
    YamlNode none;
    none.kind = YamlNode::Kind::map;
    none.place = root.place;
    const YamlNode* node = root.find(section);
    if (node != nullptr && !expect_map(*node, section)) node = nullptr;
    *options = read_params(node == nullptr ? none : *node, section, section, specs, {});
  }

  // ---- methods and tasks ----

  // Calls read(name, place, map or null, path) for every entry of a list of names or maps.
  template <class Read>
  void read_entries(const YamlNode& root, const std::string& section, const Read& read) {
    const std::string one = section.substr(0, section.size() - 1);
    const YamlNode* node = root.find(section);
    if (node == nullptr)
      return errors_.add(
          root.place, "",
          fmt::format("key \"{}\" is missing; expected a list with at least one {}", section, one));
    if (node->kind != YamlNode::Kind::sequence || node->items.empty())
      return errors_.add(
          node->place, section,
          fmt::format("got {}, expected a list with at least one {}", found(*node), one));
    for (std::size_t i = 0; i < node->items.size(); ++i) {
      const YamlNode& item = node->items[i];
      const std::string path = fmt::format("{}[{}]", section, i);
      const YamlNode* name = item.kind == YamlNode::Kind::map ? item.find("name") : &item;
      if (name == nullptr) {
        errors_.add(item.place, path,
                    fmt::format("key \"name\" is missing; expected the name of a {}", one));
      } else if (name->kind != YamlNode::Kind::scalar) {
        errors_.add(name->place, path,
                    fmt::format("got {}, expected the name of a {}, or a map such as {{name: "
                                "NAME, PARAMETER: VALUE}}",
                                found(*name), one));
      } else {
        read(item, *name, path);
      }
    }
  }

  template <class Entry>
  void unknown_name(const YamlNode& name, const std::string& path, const char* what,
                    const std::vector<const Entry*>& entries) {
    if (plugin_failed_) return;  // it may have been there
    std::vector<std::string> known;
    for (const Entry* entry : entries) known.push_back(entry->info.name);
    errors_.add(name.place, path,
                fmt::format("unknown {} {}{}; see `subquad list {}s`", what,
                            quoted_for_message(name.text), did_you_mean(name.text, known), what));
  }

  // Every parameter of the schema, from the entry's map or at its default.
  std::vector<ParamAxis> read_params(const YamlNode& item, const std::string& path,
                                     const std::string& owner, const std::vector<ParamSpec>& specs,
                                     const std::vector<std::string>& reserved) {
    std::vector<std::string> names, keys = reserved;
    for (const ParamSpec& spec : specs) {
      names.push_back(spec.name);
      if (std::find(reserved.begin(), reserved.end(), spec.name) != reserved.end())
        errors_.add(item.place, path,
                    fmt::format("{} has a parameter named \"{}\", which is a key of the config; "
                                "rename it in its source",
                                owner, spec.name));
    }
    keys.insert(keys.end(), names.begin(), names.end());
    for (const auto& [key, value] : item.entries)
      if (std::find(keys.begin(), keys.end(), key.text) == keys.end())
        unknown_key(
            key, path, keys,
            fmt::format("{} has {}", owner,
                        names.empty() ? "no parameters"
                                      : fmt::format("the parameters {}", fmt::join(names, ", "))));
    std::vector<ParamAxis> params;
    for (const ParamSpec& spec : specs)
      params.push_back({spec.name, axis(item, path, spec.name, spec.default_value,
                                        [&](const YamlNode& node, const std::string& key_path) {
                                          return value_of(node, key_path, spec);
                                        })});
    return params;
  }

  void read_methods(const YamlNode& root, std::vector<MethodSweep>* methods) {
    read_entries(
        root, "methods", [&](const YamlNode& item, const YamlNode& name, const std::string& path) {
          MethodSweep method;
          method.place = item.place;
          method.path = path;
          method.entry = Registry::instance().find_method(name.text);
          if (method.entry == nullptr)
            return unknown_name(name, path, "method", Registry::instance().methods());
          method.params =
              read_params(item, path, method.entry->info.name, method.entry->params, kMethodKeys);
          read_one(item, path, "max_n", [&](const YamlNode& node, const std::string& key_path) {
            method.max_n = integer(node, key_path, 1, Index{1} << 24).value_or(0);
          });
          read_one(item, path, "weights", [&](const YamlNode& node, const std::string& key_path) {
            if (node.kind != YamlNode::Kind::scalar || node.text.empty())
              return refuse(node, key_path, "the path of a file of learned parameters");
            if (!method.entry->info.learned)
              return errors_.add(
                  node.place, key_path,
                  fmt::format("{} has no learned parameters", method.entry->info.name));
            method.weights = node.text;
          });
          method.passes = passes(item, path);
          method.threads = threads(item, path);
          read_one(item, path, "label", [&](const YamlNode& node, const std::string& key_path) {
            read_label(node, key_path, &method);
          });
          methods->push_back(std::move(method));
        });
  }

  void read_label(const YamlNode& node, const std::string& path, MethodSweep* method) {
    if (node.kind != YamlNode::Kind::scalar || node.text.empty() || node.text.size() > 200 ||
        has_control_character(node.text))
      return refuse(node, path, "one line of text, at most 200 bytes");
    std::vector<std::string> names;
    for (const ParamSpec& spec : method->entry->params) names.push_back(spec.name);
    for (std::size_t at = node.text.find_first_of("{}"); at != std::string::npos;
         at = node.text.find_first_of("{}", at)) {
      const std::size_t end = node.text.find_first_of("{}", at + 1);
      if (node.text[at] == '}' || end == std::string::npos || node.text[end] == '{')
        return refuse(node, path, "a text in which every brace belongs to a {parameter}");
      const std::string name = node.text.substr(at + 1, end - at - 1);
      if (std::find(names.begin(), names.end(), name) == names.end())
        return errors_.add(
            node.place, path,
            fmt::format("{{{}}} is no parameter of {}{}; it has {}", name, method->entry->info.name,
                        did_you_mean(name, names),
                        names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))));
      at = end + 1;
    }
    method->label = node.text;
    method->label_place = node.place;
  }

  void read_tasks(const YamlNode& root, std::vector<TaskSweep>* tasks) {
    read_entries(
        root, "tasks", [&](const YamlNode& item, const YamlNode& name, const std::string& path) {
          TaskSweep task;
          task.place = item.place;
          task.path = path;
          task.entry = Registry::instance().find_task(name.text);
          if (task.entry == nullptr)
            return unknown_name(name, path, "task", Registry::instance().tasks());
          task.params =
              read_params(item, path, task.entry->info.name, task.entry->params, kTaskKeys);
          tasks->push_back(std::move(task));
        });
  }

  std::filesystem::path folder_;  // of the config
  bool plugin_failed_ = false;
};

}  // namespace

Sweep read_sweep(const YamlNode& root, const std::string& config_path,
                 const std::vector<std::string>& plugins, ConfigErrors* errors) {
  return Reader(config_path, errors).read(root, plugins);
}

}  // namespace subquad
