// Description of the machine and the build, for machine.json, for rows and for `doctor`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace subquad {

// Processor, caches, memory, kernel, governor, compiler, flags, library versions, git revision.
nlohmann::json machine_description();

std::string cpu_model();  // "AMD EPYC 9654", or "unknown"
std::string host_name();
std::string build_description();  // "Release <hash of the compile flags>"
// 16 hex digits over the bytes of the running executable: rows of another build are recognised.
std::string build_id();

}  // namespace subquad
