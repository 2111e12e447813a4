// Reads single values and lists of a config tree, with errors that say what was found and what is
// expected. Internal to config reading.
#pragma once

#include <fmt/core.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "harness/sweep/config_sweep.h"

namespace subquad {

// "; did you mean \"x\"?", or "".
std::string did_you_mean(const std::string& text, const std::vector<std::string>& known);

// "problem" and "n" give "problem.n"; the top level has the path "".
std::string join_path(const std::string& path, const std::string& key);

// What a node holds, for "got ...".
std::string found(const YamlNode& node);

inline bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Decimal integers only: no sign but '-', no leading zero, no base, no exponent.
std::optional<Index> integer_of(const std::string& text);

// Finite decimal reals; a number that underflows or overflows is none.
std::optional<double> real_of(const std::string& text);

bool has_control_character(const std::string& text);

// Every function that returns an optional has recorded an error when it returns nothing.
class ValueReader {
 public:
  explicit ValueReader(ConfigErrors* errors) : errors_(*errors) {}

  bool expect_map(const YamlNode& node, const std::string& path);
  void check_keys(const YamlNode& map, const std::string& path,
                  const std::vector<std::string>& known);
  // Names the nearest key, or else says what there is.
  void unknown_key(const YamlNode& key, const std::string& path,
                   const std::vector<std::string>& known, const std::string& otherwise);
  void refuse(const YamlNode& node, const std::string& path, const std::string& expected);

  std::optional<ParamValue> value_of(const YamlNode& node, const std::string& path,
                                     const ParamSpec& spec);
  std::optional<Index> integer(const YamlNode& node, const std::string& path, Index min, Index max);
  std::optional<bool> boolean(const YamlNode& node, const std::string& path);

  // Calls read(value, path) where the key is present.
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

 protected:
  ConfigErrors& errors_;

 private:
  bool check_text(const YamlNode& node, const std::string& path);
};

}  // namespace subquad
