// filter_cells: expressions such as "method=dense|linear,n<=4096,window=64".
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <optional>
#include <set>

#include "harness/core/registry.h"
#include "harness/sweep/config.h"
#include "harness/sweep/yaml_reader.h"

namespace subquad {
namespace {

enum class Operator { equal, not_equal, less, less_equal, greater, greater_equal };

struct Condition {
  std::string key;
  Operator op = Operator::equal;
  std::vector<std::string> alternatives;
};

[[noreturn]] void refuse(const std::string& expression, const std::string& what) {
  throw UserError(fmt::format("--filter {}: {}", quoted_for_message(expression), what));
}

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(' ');
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

// Splits at `separator` outside of double quotes.
std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts{""};
  bool quoted = false;
  for (const char c : text) {
    if (c == '"') quoted = !quoted;
    if (c == separator && !quoted) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

Condition parse_condition(const std::string& expression, const std::string& text) {
  const std::size_t at = text.find_first_of("=!<>");
  if (at == std::string::npos)
    refuse(expression, fmt::format("{} is no condition; expected KEY=VALUE, with = != < <= > or >=",
                                   quoted_for_message(trimmed(text))));
  static const std::pair<const char*, Operator> kOperators[] = {
      {"!=", Operator::not_equal}, {"<=", Operator::less_equal}, {">=", Operator::greater_equal},
      {"=", Operator::equal},      {"<", Operator::less},        {">", Operator::greater}};
  const auto* const found =
      std::find_if(std::begin(kOperators), std::end(kOperators), [&](const auto& candidate) {
        return text.compare(at, std::string_view(candidate.first).size(), candidate.first) == 0;
      });
  if (found == std::end(kOperators))
    refuse(expression, fmt::format("{}: \"!\" alone is no operator; expected != for \"is not\"",
                                   quoted_for_message(trimmed(text))));
  Condition condition{trimmed(text.substr(0, at)), found->second, {}};
  if (condition.key.empty())
    refuse(expression,
           fmt::format("{} has no key before its operator", quoted_for_message(trimmed(text))));
  const std::string values = text.substr(at + std::string_view(found->first).size());
  for (const std::string& part : split(values, '|')) {
    std::string value = trimmed(part);
    if (value.size() >= 2 && value.starts_with('"') && value.ends_with('"')) {
      value = value.substr(1, value.size() - 2);
    } else if (value.empty() || value.find_first_of("=!<>\"") != std::string::npos) {
      refuse(expression,
             fmt::format("{}: got {}, expected a value (in double quotes if it contains "
                         "= ! < > , or |)",
                         condition.key, quoted_for_message(value)));
    }
    condition.alternatives.push_back(value);
  }
  if (condition.alternatives.size() > 1 && condition.op != Operator::equal &&
      condition.op != Operator::not_equal)
    refuse(expression,
           fmt::format("{}: \"|\" works with = and != only", quoted_for_message(trimmed(text))));
  return condition;
}

// The value of a cell under a key; nothing where the cell has no such parameter.
using Getter = std::function<std::optional<ParamValue>(const Cell&)>;

const std::vector<std::pair<std::string, Getter>>& getters() {
  const auto size = [](Index Problem::*member) {
    return [member](const Cell& c) { return std::optional<ParamValue>(c.problem.*member); };
  };
  static const std::vector<std::pair<std::string, Getter>> kGetters{
      {"cell", [](const Cell& c) { return c.id(); }},
      {"method", [](const Cell& c) { return c.method; }},
      {"label", [](const Cell& c) { return c.label; }},
      {"task", [](const Cell& c) { return c.task; }},
      {"pass", [](const Cell& c) { return std::string(name(c.pass)); }},
      {"batch", size(&Problem::batch)},
      {"heads", size(&Problem::heads)},
      {"n", size(&Problem::n)},
      {"n_kv", size(&Problem::n_kv)},
      {"d_k", size(&Problem::d_k)},
      {"d_v", size(&Problem::d_v)},
      {"causal", [](const Cell& c) { return c.problem.causal; }},
      {"scale", [](const Cell& c) { return c.problem.logit_scale(); }},
      {"threads", [](const Cell& c) { return Index{c.threads}; }},
      {"seed", [](const Cell& c) { return static_cast<Index>(c.seed); }}};
  return kGetters;
}

template <class T>
std::optional<T> number_of(const std::string& text) {
  T value{};
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || value != value)
    return std::nullopt;
  return value;
}

bool ordered(Operator op) { return op != Operator::equal && op != Operator::not_equal; }

// -1, 0, 1; nothing when the text is no value of that type.
std::optional<int> compare(const ParamValue& value, const std::string& text) {
  const auto sign = [](const auto& a, const auto& b) { return a < b ? -1 : (b < a ? 1 : 0); };
  if (const bool* truth = std::get_if<bool>(&value)) {
    if (text == "true" || text == "1") return *truth ? 0 : -1;
    if (text == "false" || text == "0") return *truth ? 1 : 0;
    return std::nullopt;
  }
  if (const Index* integer = std::get_if<Index>(&value)) {
    if (const auto exact = number_of<Index>(text)) return sign(*integer, *exact);
    const auto real = number_of<double>(text);
    return real ? std::optional(sign(static_cast<double>(*integer), *real)) : std::nullopt;
  }
  if (const double* real = std::get_if<double>(&value)) {
    const auto other = number_of<double>(text);
    return other ? std::optional(sign(*real, *other)) : std::nullopt;
  }
  return sign(std::get<std::string>(value), text);
}

bool holds(Operator op, int sign) {
  switch (op) {
    case Operator::equal:
      return sign == 0;
    case Operator::not_equal:
      return sign != 0;
    case Operator::less:
      return sign < 0;
    case Operator::less_equal:
      return sign <= 0;
    case Operator::greater:
      return sign > 0;
    case Operator::greater_equal:
      return sign >= 0;
  }
  return false;
}

// A filter with a mistyped name would silently keep nothing.
void check_names(const std::string& expression, const Condition& condition,
                 const std::vector<Cell>& cells) {
  if (ordered(condition.op)) return;  // refused later
  std::set<std::string> known;
  if (condition.key == "method") {
    for (const Cell& cell : cells) known.insert(cell.method);
    for (const MethodEntry* entry : Registry::instance().methods()) known.insert(entry->info.name);
  } else if (condition.key == "task") {
    for (const Cell& cell : cells) known.insert(cell.task);
    for (const TaskEntry* entry : Registry::instance().tasks()) known.insert(entry->info.name);
  } else if (condition.key == "pass") {
    for (const Pass pass : kAllPasses) known.emplace(name(pass));
  } else {
    return;
  }
  for (const std::string& value : condition.alternatives) {
    if (known.contains(value)) continue;
    const std::string near = nearest_name(value, {known.begin(), known.end()});
    refuse(expression,
           fmt::format("unknown {} {}{}", condition.key, quoted_for_message(value),
                       near.empty() ? "" : fmt::format("; did you mean \"{}\"?", near)));
  }
}

Getter getter_of(const std::string& expression, const std::string& key,
                 const std::vector<Cell>& cells) {
  std::vector<std::string> known;
  for (const auto& [name, getter] : getters()) {
    if (name == key) return getter;
    known.push_back(name);
  }
  std::set<std::string> params;
  for (const Cell& cell : cells)
    for (const Settings* settings :
         {&cell.method_settings, &cell.task_settings, &cell.train, &cell.fit})
      for (const auto& [name, value] : *settings) params.insert(name);
  if (!params.contains(key)) {
    known.insert(known.end(), params.begin(), params.end());
    const std::string near = nearest_name(key, known);
    refuse(expression, fmt::format("unknown key {}; {}", quoted_for_message(key),
                                   near.empty() ? fmt::format("known: {}", fmt::join(known, ", "))
                                                : fmt::format("did you mean \"{}\"?", near)));
  }
  return [key](const Cell& cell) -> std::optional<ParamValue> {
    for (const Settings* settings :
         {&cell.method_settings, &cell.task_settings, &cell.train, &cell.fit})
      if (const auto found = settings->find(key); found != settings->end()) return found->second;
    return std::nullopt;
  };
}

}  // namespace

std::vector<Cell> filter_cells(const std::vector<Cell>& cells, const std::string& expression) {
  if (trimmed(expression).empty()) return cells;
  std::vector<Cell> kept = cells;
  for (const std::string& part : split(expression, ',')) {
    const Condition condition = parse_condition(expression, part);
    const Getter get = getter_of(expression, condition.key, cells);
    check_names(expression, condition, cells);
    const auto matches = [&](const Cell& cell) {
      const std::optional<ParamValue> value = get(cell);
      if (!value) return false;
      if (ordered(condition.op) && !std::holds_alternative<Index>(*value) &&
          !std::holds_alternative<double>(*value))
        refuse(expression, fmt::format("{} is no number; expected = or !=", condition.key));
      bool any = false, none = true;
      for (const std::string& text : condition.alternatives) {
        const std::optional<int> sign = compare(*value, text);
        if (!sign)
          refuse(expression,
                 fmt::format("{}: got {}, expected {}", condition.key, quoted_for_message(text),
                             std::holds_alternative<bool>(*value) ? "true or false" : "a number"));
        const bool held = holds(condition.op, *sign);
        any = any || held;
        none = none && held;
      }
      return condition.op == Operator::not_equal ? none : any;
    };
    std::erase_if(kept, [&](const Cell& cell) { return !matches(cell); });
  }
  return kept;
}

}  // namespace subquad
