#include <memory>
#include <string>
#include <vector>

#include "harness/cli/cli.h"
#include "harness/cli/python_script.h"

namespace subquad {
namespace {

struct TableOptions {
  std::string dir;
  std::string format, rows, columns, value, spread;
  std::vector<std::string> tasks, passes;
  bool best = false;
  bool include_unstable = false;
  bool allow_mixed = false;
};

int print_table(const TableOptions& options) {
  std::vector<std::string> arguments;
  auto add = [&](const std::string& option, const std::string& value) {
    if (!value.empty()) arguments.push_back(option + "=" + value);
  };
  add("--format", options.format);
  add("--rows", options.rows);
  add("--columns", options.columns);
  add("--value", options.value);
  add("--spread", options.spread);
  for (const std::string& task : options.tasks) add("--task", task);
  for (const std::string& pass : options.passes) add("--pass", pass);
  if (options.best) arguments.emplace_back("--best");
  if (options.include_unstable) arguments.emplace_back("--include-unstable");
  if (options.allow_mixed) arguments.emplace_back("--allow-mixed");
  arguments.insert(arguments.end(), {"--", options.dir});
  return run_python_script("table.py", arguments);
}

}  // namespace

void add_table(CLI::App& app, int* status) {
  auto* command = app.add_subcommand("table", "Print pivot tables of a run directory");
  auto options = std::make_shared<TableOptions>();
  command->add_option("results", options->dir, "Directory that `subquad run` has written")
      ->required();
  command->add_option("--format", options->format, "markdown (default), latex or csv")
      ->check(CLI::IsMember({"markdown", "latex", "csv"}));
  command->add_option("--rows", options->rows, "Column that makes the rows (default: label)");
  command->add_option("--columns", options->columns, "Column that makes the columns (default: n)");
  command->add_option(
      "--value", options->value,
      "time_s (default), speedup, peak_bytes, rel_error, accuracy or another column "
      "with numbers");
  command->add_option("--spread", options->spread, "none (default), plusminus or range")
      ->check(CLI::IsMember({"none", "plusminus", "range"}));
  command->add_option("--task", options->tasks, "Only these tasks")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--pass", options->passes, "Only these passes")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_flag("--best", options->best, "Best number of each column in bold");
  command->add_flag("--include-unstable", options->include_unstable,
                    "Also rows whose numbers are in doubt");
  command->add_flag("--allow-mixed", options->allow_mixed,
                    "Also rows of several CPU models or builds in one table");
  command->callback([options, status] { *status = print_table(*options); });
}

}  // namespace subquad
