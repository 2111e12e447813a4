#include "harness/sweep/config_values.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace subquad {
namespace {

constexpr std::size_t kLongestText = 4096;

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

}  // namespace

std::string did_you_mean(const std::string& text, const std::vector<std::string>& known) {
  const std::string near = nearest_name(text, known);
  return near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near);
}

std::string join_path(const std::string& path, const std::string& key) {
  return path.empty() ? key : path + "." + key;
}

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

std::optional<double> real_of(const std::string& text) {
  const std::size_t start = text.starts_with('-') ? 1 : 0;
  if (text.find_first_not_of("0123456789.eE+-") != std::string::npos) return std::nullopt;
  if (text.size() > start + 1 && text[start] == '0' && is_digit(text[start + 1]))
    return std::nullopt;
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  return value == 0 ? 0.0 : value;  // -0 and 0 are one setting
}

bool has_control_character(const std::string& text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

bool ValueReader::expect_map(const YamlNode& node, const std::string& path) {
  if (node.kind == YamlNode::Kind::map) return true;
  errors_.add(node.place, path, fmt::format("got {}, expected a map of keys", found(node)));
  return false;
}

void ValueReader::check_keys(const YamlNode& map, const std::string& path,
                             const std::vector<std::string>& known) {
  for (const auto& [key, value] : map.entries)
    if (std::find(known.begin(), known.end(), key.text) == known.end())
      unknown_key(key, path, known, fmt::format("known: {}", fmt::join(known, ", ")));
}

void ValueReader::unknown_key(const YamlNode& key, const std::string& path,
                              const std::vector<std::string>& known, const std::string& otherwise) {
  const std::string near = did_you_mean(key.text, known);
  errors_.add(key.place, path,
              fmt::format("unknown key {}{}", quoted_for_message(key.text),
                          near.empty() ? "; " + otherwise : near));
}

void ValueReader::refuse(const YamlNode& node, const std::string& path,
                         const std::string& expected) {
  const std::string hint = node.kind == YamlNode::Kind::scalar ? number_hint(node.text) : "";
  errors_.add(node.place, path, fmt::format("got {}, expected {}{}", found(node), expected, hint));
}

std::optional<ParamValue> ValueReader::value_of(const YamlNode& node, const std::string& path,
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
bool ValueReader::check_text(const YamlNode& node, const std::string& path) {
  if (node.text.size() <= kLongestText && !has_control_character(node.text) &&
      node.text.find(';') == std::string::npos)
    return true;
  refuse(node, path, fmt::format("one line of at most {} bytes without ';'", kLongestText));
  return false;
}

std::optional<Index> ValueReader::integer(const YamlNode& node, const std::string& path, Index min,
                                          Index max) {
  if (node.kind == YamlNode::Kind::scalar && !node.quoted)
    if (const auto value = integer_of(node.text); value && *value >= min && *value <= max)
      return value;
  refuse(node, path, fmt::format("an integer in [{}, {}]", min, max));
  return std::nullopt;
}

std::optional<bool> ValueReader::boolean(const YamlNode& node, const std::string& path) {
  const auto value = value_of(node, path, {.name = "", .type = ParamType::boolean, .help = ""});
  return value ? std::optional(std::get<bool>(*value)) : std::nullopt;
}

}  // namespace subquad
