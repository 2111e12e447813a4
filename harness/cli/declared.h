// What methods and tasks declare about themselves, as JSON: for `list --json` and `describe
// --json`.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "harness/core/method.h"
#include "harness/core/task.h"

namespace subquad {

nlohmann::ordered_json declared(const ParamSpec& spec);
nlohmann::ordered_json declared(const MethodEntry& entry);
nlohmann::ordered_json declared(const TaskEntry& entry);

// The passes by name; decode and backward as declared, in the order of kAllPasses.
std::vector<std::string> pass_names(const MethodInfo& info);

}  // namespace subquad
