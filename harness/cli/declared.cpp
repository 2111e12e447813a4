#include "harness/cli/declared.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace subquad {

using nlohmann::ordered_json;

namespace {

ordered_json declared(const std::vector<ParamSpec>& specs) {
  ordered_json list = ordered_json::array();
  for (const ParamSpec& spec : specs) list.push_back(subquad::declared(spec));
  return list;
}

}  // namespace

ordered_json declared(const ParamSpec& spec) {
  ordered_json json = {{"name", spec.name}, {"type", name(spec.type)}};
  std::visit([&](const auto& value) { json["default"] = value; }, spec.default_value);
  const auto bound = [&](double value) {
    return spec.type == ParamType::integer ? ordered_json(static_cast<Index>(value))
                                           : ordered_json(value);
  };
  if (std::isfinite(spec.min)) json["min"] = bound(spec.min);
  if (std::isfinite(spec.max)) json["max"] = bound(spec.max);
  if (!spec.choices.empty()) json["choices"] = spec.choices;
  json["help"] = spec.help;
  return json;
}

std::vector<std::string> pass_names(const MethodInfo& info) {
  std::vector<std::string> names;
  for (const Pass pass : kAllPasses)
    if (pass != Pass::forward_backward && info.supports(pass)) names.emplace_back(name(pass));
  return names;
}

ordered_json declared(const MethodEntry& entry) {
  const MethodInfo& info = entry.info;
  return {{"name", info.name},
          {"kind", "method"},
          {"family", info.family},
          {"source", info.source},
          {"summary", info.summary},
          {"approximates", name(info.approximates)},
          {"causality", name(info.causality)},
          {"bidirectional", info.bidirectional},
          {"cross_attention", info.cross_attention},
          {"key_padding", info.key_padding},
          {"passes", pass_names(info)},
          {"random", info.random},
          {"learned", info.learned},
          {"uses_hidden", info.uses_hidden},
          {"linear_in_v", info.linear_in_v},
          {"structure_from_v", info.structure_from_v},
          {"exact", info.exact},
          {"exact_limit", info.exact || info.exact_limit != nullptr},
          {"oracle", info.oracle},
          {"bounded_by", info.bounded_by},
          {"tolerance", info.tolerance},
          {"max_n", info.max_n},
          {"time_exponent", info.time_exponent},
          {"memory_exponent", info.memory_exponent},
          {"parameters", declared(entry.params)},
          {"notes", info.notes},
          {"file", entry.file}};
}

ordered_json declared(const TaskEntry& entry) {
  return {{"name", entry.info.name},         {"kind", "task"},
          {"source", entry.info.source},     {"summary", entry.info.summary},
          {"labelled", entry.info.labelled}, {"parameters", declared(entry.params)},
          {"notes", entry.info.notes},       {"file", entry.file}};
}

}  // namespace subquad
