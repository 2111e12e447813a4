// Parameters of methods and tasks: values, schemas (type, default, range, help) and the binding of
// a schema to the fields of a plain struct. Config reading, help texts, docs and tests all follow
// from the schema; a plugin writes one line per parameter.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "harness/core/error.h"
#include "harness/core/types.h"

namespace subquad {

enum class ParamType { boolean, integer, real, choice, text };
std::string_view name(ParamType type);

using ParamValue = std::variant<bool, Index, double, std::string>;

// Shortest text that reads back as the same value; this is what identities are hashed from.
std::string to_string(const ParamValue& value);

// Settings by parameter name. Sorted, so that equal settings have equal text.
using Settings = std::map<std::string, ParamValue>;
std::string to_string(const Settings& settings);  // "a=1;b=0.5"

struct ParamSpec {
  std::string name;  // [a-z][a-z0-9_]*, the same word in YAML, CSV and help
  ParamType type = ParamType::integer;
  ParamValue default_value = {};
  double min = -std::numeric_limits<double>::infinity();  // integer and real
  double max = std::numeric_limits<double>::infinity();
  std::vector<std::string> choices = {};  // choice
  std::string help;                       // one line
  // Any parameter may be given as a list in a config: the sweep is the product of the lists.

  std::string expected() const;  // "an integer in [1, 4096]", "one of: a, b"
  // The value converted to this type (an integer where a real is wanted), or UserError that says
  // what was got and what is expected.
  ParamValue checked(const ParamValue& value) const;
};

// Parses text (of a command line) as a value of this type; UserError says what is expected.
ParamValue parse(const ParamSpec& spec, const std::string& text);

// Every parameter of `specs`, those missing from `given` at their default. UserError on an unknown
// name (with the nearest one) or a bad value. `owner` is the method or task, for the message.
Settings resolve(const std::string& owner, const std::vector<ParamSpec>& specs,
                 const Settings& given);

// The known name nearest to `text`, or "" when none is near.
std::string nearest_name(const std::string& text, const std::vector<std::string>& known);

// ---- binding to a struct ----

template <class P>
struct Field {
  ParamSpec spec;
  std::function<void(P&, const ParamValue&)> set;
};

struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};

// param("window", &Params::window, {1, 1e6}, "keys that a query sees"): the default is the one in
// the struct. Members may be bool, integral, floating or std::string.
template <class P, class T>
Field<P> param(std::string name, T P::*member, Range range, std::string help) {
  const P defaults{};
  ParamSpec spec{
      .name = std::move(name), .min = range.min, .max = range.max, .help = std::move(help)};
  if constexpr (std::is_same_v<T, bool>) {
    spec.type = ParamType::boolean;
    spec.default_value = defaults.*member;
  } else if constexpr (std::is_integral_v<T>) {
    spec.type = ParamType::integer;
    spec.default_value = static_cast<Index>(defaults.*member);
  } else if constexpr (std::is_floating_point_v<T>) {
    spec.type = ParamType::real;
    spec.default_value = static_cast<double>(defaults.*member);
  } else {
    static_assert(std::is_same_v<T, std::string>, "a parameter is a bool, a number or a string");
    spec.type = ParamType::text;
    spec.default_value = defaults.*member;
  }
  return {spec, [member](P& params, const ParamValue& value) {
            if constexpr (std::is_same_v<T, bool>) {
              params.*member = std::get<bool>(value);
            } else if constexpr (std::is_integral_v<T>) {
              params.*member = static_cast<T>(std::get<Index>(value));
            } else if constexpr (std::is_floating_point_v<T>) {
              params.*member = static_cast<T>(std::get<double>(value));
            } else {
              params.*member = std::get<std::string>(value);
            }
          }};
}

template <class P, class T>
Field<P> param(std::string name, T P::*member, std::string help) {
  return param(std::move(name), member, Range{}, std::move(help));
}

// A string parameter that is one of `choices`.
template <class P>
Field<P> choice(std::string name, std::string P::*member, std::vector<std::string> choices,
                std::string help) {
  Field<P> field = param(std::move(name), member, Range{}, std::move(help));
  field.spec.type = ParamType::choice;
  field.spec.choices = std::move(choices);
  return field;
}

// The struct with every field set from resolved settings.
template <class P>
P bind(const std::vector<Field<P>>& fields, const Settings& settings) {
  P params{};
  for (const Field<P>& field : fields) field.set(params, settings.at(field.spec.name));
  return params;
}

template <class P>
std::vector<ParamSpec> specs_of(const std::vector<Field<P>>& fields) {
  std::vector<ParamSpec> specs;
  for (const Field<P>& field : fields) specs.push_back(field.spec);
  return specs;
}

struct NoParams {};

}  // namespace subquad
