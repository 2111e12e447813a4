// Options that several commands share.
#pragma once

#include <string>
#include <vector>

#include "harness/cli/cli.h"
#include "harness/core/params.h"

namespace subquad {

// --plugin FILE, repeatable; load_plugins() loads them when the command runs.
void add_plugin_option(CLI::App* command, std::vector<std::string>* plugins);
void load_plugins(const std::vector<std::string>& plugins);

// --set KEY=VALUE, repeatable.
void add_set_option(CLI::App* command, std::vector<std::string>* assignments);
// The assignments as resolved settings. UserError that begins with the assignment at fault.
Settings settings_from(const std::string& owner, const std::vector<ParamSpec>& specs,
                       const std::vector<std::string>& assignments);

// Rows as columns that line up, two spaces apart; the last column is not padded.
std::string format_table(const std::vector<std::vector<std::string>>& rows,
                         const std::string& indent = "");

// UserError for a name that no method and no task has, with the nearest one.
[[noreturn]] void unknown_name(const std::string& name, bool tasks_too);

}  // namespace subquad
