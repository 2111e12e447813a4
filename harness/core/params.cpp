#include "harness/core/params.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace subquad {

std::string_view name(ParamType type) {
  switch (type) {
    case ParamType::boolean:
      return "boolean";
    case ParamType::integer:
      return "integer";
    case ParamType::real:
      return "real";
    case ParamType::choice:
      return "choice";
    case ParamType::text:
      return "text";
  }
  return "?";
}

namespace {

std::string shortest(double value) {  // shortest round trip, locale-free
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  return std::string(buffer, end);
}

bool is_integral_bound(double x) {
  return std::isfinite(x) && x == std::floor(x) && std::fabs(x) < 1e15;
}

std::string bound(double x) {
  return is_integral_bound(x) ? fmt::format("{}", static_cast<std::int64_t>(x)) : shortest(x);
}

}  // namespace

std::string to_string(const ParamValue& value) {
  if (const bool* b = std::get_if<bool>(&value)) return *b ? "true" : "false";
  if (const Index* i = std::get_if<Index>(&value)) return fmt::format("{}", *i);
  if (const double* d = std::get_if<double>(&value)) return shortest(*d);
  return std::get<std::string>(value);
}

std::string to_string(const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings)
    text += fmt::format("{}{}={}", text.empty() ? "" : ";", key, to_string(value));
  return text;
}

std::string ParamSpec::expected() const {
  switch (type) {
    case ParamType::boolean:
      return "true or false";
    case ParamType::choice:
      return fmt::format("one of: {}", fmt::join(choices, ", "));
    case ParamType::text:
      return "a string";
    default:
      break;
  }
  const std::string what = type == ParamType::integer ? "an integer" : "a number";
  const bool low = std::isfinite(min), high = std::isfinite(max);
  if (low && high) return fmt::format("{} in [{}, {}]", what, bound(min), bound(max));
  if (low) return fmt::format("{} >= {}", what, bound(min));
  if (high) return fmt::format("{} <= {}", what, bound(max));
  return what;
}

ParamValue ParamSpec::checked(const ParamValue& value) const {
  const auto refuse = [&]() -> ParamValue {
    throw UserError(fmt::format("{}: got \"{}\", expected {}", name, to_string(value), expected()));
  };
  switch (type) {
    case ParamType::boolean:
      return std::holds_alternative<bool>(value) ? value : refuse();
    case ParamType::integer: {
      const Index* i = std::get_if<Index>(&value);
      if (i == nullptr) return refuse();
      const double d = static_cast<double>(*i);
      return d >= min && d <= max ? value : refuse();
    }
    case ParamType::real: {
      double d = 0;
      if (const Index* i = std::get_if<Index>(&value)) {
        d = static_cast<double>(*i);
      } else if (const double* r = std::get_if<double>(&value)) {
        d = *r;
      } else {
        return refuse();
      }
      return std::isfinite(d) && d >= min && d <= max ? ParamValue(d) : refuse();
    }
    case ParamType::choice: {
      const std::string* s = std::get_if<std::string>(&value);
      if (s == nullptr) return refuse();
      if (std::find(choices.begin(), choices.end(), *s) != choices.end()) return value;
      const std::string near = nearest_name(*s, choices);
      throw UserError(fmt::format("{}: got \"{}\", expected {}{}", name, *s, expected(),
                                  near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near)));
    }
    case ParamType::text:
      return std::holds_alternative<std::string>(value) ? value : refuse();
  }
  return refuse();
}

ParamValue parse(const ParamSpec& spec, const std::string& text) {
  const char* const end = text.data() + text.size();
  if (spec.type == ParamType::boolean && (text == "true" || text == "false"))
    return spec.checked(text == "true");
  if (spec.type == ParamType::integer) {
    Index value = 0;
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end) return spec.checked(value);
  }
  if (spec.type == ParamType::real) {
    double value = 0;
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc() && stop == end) return spec.checked(value);
  }
  return spec.checked(text);
}

Settings resolve(const std::string& owner, const std::vector<ParamSpec>& specs,
                 const Settings& given) {
  Settings resolved;
  for (const ParamSpec& spec : specs) resolved[spec.name] = spec.default_value;
  for (const auto& [key, value] : given) {
    const auto spec = std::find_if(specs.begin(), specs.end(),
                                   [&key = key](const ParamSpec& s) { return s.name == key; });
    if (spec == specs.end()) {
      std::vector<std::string> names;
      for (const ParamSpec& s : specs) names.push_back(s.name);
      const std::string near = nearest_name(key, names);
      throw UserError(
          fmt::format("{}: unknown parameter \"{}\"{}; it has {}", owner, key,
                      near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near),
                      names.empty() ? "no parameters" : fmt::format("{}", fmt::join(names, ", "))));
    }
    try {
      resolved[key] = spec->checked(value);
    } catch (const UserError& error) {
      throw UserError(fmt::format("{}.{}", owner, error.what()));
    }
  }
  return resolved;
}

std::string nearest_name(const std::string& text, const std::vector<std::string>& known) {
  // Edit distance with transpositions; near means at most a third of the longer word is wrong.
  const auto distance = [](const std::string& a, const std::string& b) {
    std::vector<std::vector<std::size_t>> d(a.size() + 1, std::vector<std::size_t>(b.size() + 1));
    for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
    for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i)
      for (std::size_t j = 1; j <= b.size(); ++j) {
        const std::size_t cost = a[i - 1] == b[j - 1] ? 0 : 1;
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + cost});
        if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
          d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    return d[a.size()][b.size()];
  };
  if (text.size() > 64) return "";
  std::string best;
  std::size_t best_distance = std::numeric_limits<std::size_t>::max();
  for (const std::string& candidate : known) {
    const std::size_t length = std::max(text.size(), candidate.size());
    std::size_t found = distance(text, candidate);
    if (!text.empty() && text.size() >= 3 && candidate.starts_with(text))
      found = std::min<std::size_t>(found, 1);
    if (found <= std::max<std::size_t>(1, (length + 1) / 3) && found < best_distance) {
      best = candidate;
      best_distance = found;
    }
  }
  return best;
}

}  // namespace subquad
