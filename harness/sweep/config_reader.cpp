// Reads the tree of a config into a Sweep: known keys, types, ranges, names.
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <thread>

#include "harness/core/plugin.h"
#include "harness/sweep/config_sweep.h"

namespace subquad {

const std::vector<Field<MeasureOptions>>& measure_fields() {
  using M = MeasureOptions;
  static const std::vector<Field<M>> fields{
      param("min_time_s", &M::min_time_s, {1e-6, 3600}, "one repetition lasts at least this long"),
      param("repetitions", &M::repetitions, {1, 10000}, "samples per round"),
      param("warmup_s", &M::warmup_s, {0, 3600}, "untimed calls before the first sample"),
      param("input_sets", &M::input_sets, {1, 64}, "pre-made inputs that timed calls rotate over"),
      param("decode_tokens", &M::decode_tokens, {1, 1 << 24}, "decode: tokens timed at the end"),
      param("max_spread", &M::max_spread, {0, 1000}, "spread above which a row is unstable"),
      param("timeout_s", &M::timeout_s, {0.001, 1e7}, "wall time of the whole worker"),
      param("memory_limit_mb", &M::memory_limit_mb, {0, 1 << 30},
            "address space of the worker; 0 = 90 % of the free memory"),
      param("pin", &M::pin, "bind the worker's threads to cores 0 .. threads-1")};
  return fields;
}

const std::vector<Field<ErrorOptions>>& error_fields() {
  using E = ErrorOptions;
  static const std::vector<Field<E>> fields{
      param("max_gflop", &E::max_gflop, {0, 1e9},
            "above this cost of the exact reference rows are sampled"),
      param("rows", &E::rows, {1, 1 << 24}, "query rows per batch and head sampled then"),
      param("matrix_rows", &E::matrix_rows, {0, 1 << 24},
            "rows of the attention matrix for KL and top-k mass; 0 = off"),
      param("top_k", &E::top_k, {1, 1 << 24}, "k of the top-k mass")};
  return fields;
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

namespace {

const std::vector<std::string> kTopKeys{"name",    "description", "seed",    "seeds",   "rounds",
                                        "threads", "passes",      "problem", "methods", "tasks",
                                        "measure", "error",       "plugins", "plots"};
const std::vector<std::string> kProblemKeys{"batch", "heads",    "n",      "n_kv", "d_k",
                                            "d_v",   "head_dim", "causal", "scale"};
const std::vector<std::string> kMethodKeys{"name", "label", "max_n", "passes", "threads"};
const std::vector<std::string> kTaskKeys{"name", "passes"};
constexpr int kMaxThreads = 1024;
constexpr std::size_t kLongestText = 4096;

std::string did_you_mean(const std::string& text, const std::vector<std::string>& known) {
  const std::string near = nearest_name(text, known);
  return near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near);
}

std::string join_path(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

// What a node holds, for "got ...".
std::string found(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::null:
      return "nothing";
    case YamlNode::Kind::sequence:
      return node.items.empty() ? "an empty list" : "a list";
    case YamlNode::Kind::map:
      return "a map";
    case YamlNode::Kind::scalar:
      break;
  }
  return (node.quoted ? "the text " : "") + quoted_for_message(node.text);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Decimal integers only: no sign but '-', no leading zero, no base, no exponent.
std::optional<Index> integer_of(const std::string& text) {
  const std::size_t start = text.starts_with('-') ? 1 : 0;
  if (text.size() == start) return std::nullopt;
  if (!std::all_of(text.begin() + static_cast<std::ptrdiff_t>(start), text.end(), is_digit))
    return std::nullopt;
  if (text[start] == '0' && text.size() > start + 1) return std::nullopt;
  Index value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  return value;
}

// Finite decimal reals; a number that underflows or overflows is none.
std::optional<double> real_of(const std::string& text) {
  const std::size_t start = text.starts_with('-') ? 1 : 0;
  if (text.find_first_not_of("0123456789.eE+-") != std::string::npos) return std::nullopt;
  if (text.size() > start + 1 && text[start] == '0' && is_digit(text[start + 1]))
    return std::nullopt;
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  return value;
}

// A hint for scalars that other YAML readers would have taken.
std::string number_hint(const std::string& text) {
  const bool sign = text.starts_with('-') || text.starts_with('+');
  const std::string digits = sign ? text.substr(1) : text;
  if (digits.empty() || !is_digit(digits[0])) return "";
  if (text[0] == '+' || digits.starts_with("0x") || digits.starts_with("0o") ||
      (digits.size() > 1 && digits[0] == '0' && is_digit(digits[1])))
    return " (decimal, without +, leading zeros or 0x)";
  return "";
}

bool has_control_character(const std::string& text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

class Reader {
 public:
  Reader(const std::string& config_path, ConfigErrors* errors)
      : folder_(std::filesystem::path(config_path).parent_path()), errors_(*errors) {}

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
    read_options(root, "measure", measure_fields(), &sweep.measure);
    read_options(root, "error", error_fields(), &sweep.error);
    read_methods(root, &sweep.methods);
    read_tasks(root, &sweep.tasks);
    return sweep;
  }

 private:
  static constexpr Index kMaxSeed = std::numeric_limits<Index>::max();

  // ---- structure ----

  bool expect_map(const YamlNode& node, const std::string& path) {
    if (node.kind == YamlNode::Kind::map) return true;
    errors_.add(node.place, path, fmt::format("got {}, expected a map of keys", found(node)));
    return false;
  }

  void check_keys(const YamlNode& map, const std::string& path,
                  const std::vector<std::string>& known) {
    for (const auto& [key, value] : map.entries)
      if (std::find(known.begin(), known.end(), key.text) == known.end())
        unknown_key(key, path, known, fmt::format("known: {}", fmt::join(known, ", ")));
  }

  // The nearest key, or else what there is.
  void unknown_key(const YamlNode& key, const std::string& path,
                   const std::vector<std::string>& known, const std::string& otherwise) {
    const std::string near = did_you_mean(key.text, known);
    errors_.add(key.place, path,
                fmt::format("unknown key {}{}", quoted_for_message(key.text),
                            near.empty() ? "; " + otherwise : near));
  }

  template <class Read>
  void read_one(const YamlNode& map, const std::string& path, const std::string& key,
                const Read& read) {
    if (const YamlNode* node = map.find(key)) read(*node, join_path(path, key));
  }

  // A scalar or a non-empty list of distinct scalars.
  template <class T, class Read>
  Axis<T> values(const YamlNode& node, const std::string& path, const Read& read) {
    Axis<T> list;
    std::map<T, YamlPlace> seen;
    const auto take = [&](const YamlNode& item, const std::string& item_path) {
      const std::optional<T> value = read(item, item_path);
      if (!value) return;
      if (const auto [first, added] = seen.emplace(*value, item.place); added) {
        list.push_back({*value, item.place, item_path});
      } else {
        errors_.add(item.place, item_path,
                    fmt::format("got {} again (first at {}); a value may stand once in a list",
                                quoted_for_message(item.text), errors_.at(first->second)));
      }
    };
    if (node.kind != YamlNode::Kind::sequence) {
      take(node, path);
      return list;
    }
    if (node.items.empty())
      errors_.add(node.place, path, "got an empty list, expected at least one value");
    for (std::size_t i = 0; i < node.items.size(); ++i)
      take(node.items[i], fmt::format("{}[{}]", path, i));
    return list;
  }

  // values() of a key, or the default when the key is missing.
  template <class T, class Read>
  Axis<T> axis(const YamlNode& map, const std::string& path, const std::string& key,
               const T& fallback, const Read& read) {
    const std::string key_path = join_path(path, key);
    const YamlNode* node = map.find(key);
    if (node == nullptr) return {{fallback, map.place, key_path}};
    return values<T>(*node, key_path, read);
  }

  // ---- scalars ----

  void refuse(const YamlNode& node, const std::string& path, const std::string& expected) {
    const std::string hint = node.kind == YamlNode::Kind::scalar ? number_hint(node.text) : "";
    errors_.add(node.place, path,
                fmt::format("got {}, expected {}{}", found(node), expected, hint));
  }

  std::optional<ParamValue> value_of(const YamlNode& node, const std::string& path,
                                     const ParamSpec& spec) {
    const bool scalar = node.kind == YamlNode::Kind::scalar, plain = scalar && !node.quoted;
    std::optional<ParamValue> value;
    if (spec.type == ParamType::boolean && plain && (node.text == "true" || node.text == "false")) {
      value = node.text == "true";
    } else if (spec.type == ParamType::integer && plain) {
      if (const auto number = integer_of(node.text)) value = *number;
    } else if (spec.type == ParamType::real && plain) {
      if (const auto number = real_of(node.text)) value = *number;
    } else if ((spec.type == ParamType::text || spec.type == ParamType::choice) && scalar) {
      if (!check_text(node, path)) return std::nullopt;
      value = node.text;
    }
    if (value) {
      try {
        return spec.checked(*value);
      } catch (const UserError&) {
        if (spec.type == ParamType::choice) {
          refuse(node, path, spec.expected() + did_you_mean(node.text, spec.choices));
          return std::nullopt;
        }
      }
    }
    refuse(node, path, spec.expected());
    return std::nullopt;
  }

  // Text that may stand in a row: one line, and no ';', which separates settings there.
  bool check_text(const YamlNode& node, const std::string& path) {
    if (node.text.size() <= kLongestText && !has_control_character(node.text) &&
        node.text.find(';') == std::string::npos)
      return true;
    refuse(node, path, fmt::format("one line of at most {} bytes without ';'", kLongestText));
    return false;
  }

  std::optional<Index> integer(const YamlNode& node, const std::string& path, Index min,
                               Index max) {
    if (node.kind == YamlNode::Kind::scalar && !node.quoted)
      if (const auto value = integer_of(node.text); value && *value >= min && *value <= max)
        return value;
    refuse(node, path, fmt::format("an integer in [{}, {}]", min, max));
    return std::nullopt;
  }

  std::optional<bool> boolean(const YamlNode& node, const std::string& path) {
    const auto value = value_of(node, path, {.name = "", .type = ParamType::boolean, .help = ""});
    return value ? std::optional(std::get<bool>(*value)) : std::nullopt;
  }

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
          task.passes = passes(item, path);
          tasks->push_back(std::move(task));
        });
  }

  std::filesystem::path folder_;  // of the config
  ConfigErrors& errors_;
  bool plugin_failed_ = false;
};

}  // namespace

Sweep read_sweep(const YamlNode& root, const std::string& config_path,
                 const std::vector<std::string>& plugins, ConfigErrors* errors) {
  return Reader(config_path, errors).read(root, plugins);
}

}  // namespace subquad
