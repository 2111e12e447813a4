#include "harness/core/settings_json.h"

#include <nlohmann/json.hpp>

namespace subquad {

nlohmann::json settings_to_json(const Settings& settings) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [key, value] : settings)
    std::visit([&, &key = key](const auto& v) { json[key] = v; }, value);
  return json;
}

Settings settings_from_json(const nlohmann::json& json) {
  Settings settings;
  for (const auto& [key, value] : json.items()) {
    if (value.is_boolean()) {
      settings[key] = value.get<bool>();
    } else if (value.is_number_integer()) {
      settings[key] = value.get<Index>();
    } else if (value.is_number()) {
      settings[key] = value.get<double>();
    } else {
      settings[key] = value.get<std::string>();
    }
  }
  return settings;
}

}  // namespace subquad
