// Settings as JSON and back, for jobs and checkpoints. Every double keeps its bits.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "harness/core/params.h"

namespace subquad {

nlohmann::json settings_to_json(const Settings& settings);
Settings settings_from_json(const nlohmann::json& json);

}  // namespace subquad
