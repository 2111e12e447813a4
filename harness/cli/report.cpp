// subquad report DIR: one HTML page with everything that a run directory holds.
#include <fmt/core.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "harness/cli/cli.h"
#include "harness/cli/python_script.h"
#include "harness/core/error.h"
#include "harness/sweep/crossover_table.h"

namespace subquad {
namespace {

struct ReportOptions {
  std::string dir, out;
  bool no_figures = false, include_unstable = false, allow_mixed = false;
};

int report(const ReportOptions& options) {
  // The page shows damaged results too, and says so; crossovers need sound ones.
  try {
    CrossoverOptions crossover;
    crossover.include_unstable = options.include_unstable;
    write_crossover_csv(options.dir, crossover);
  } catch (const StorageError& error) {
    fmt::print(stderr, "subquad: no crossovers: {}\n", error.what());
  }
  std::vector<std::string> arguments;
  if (!options.out.empty()) arguments.push_back("--out=" + options.out);
  if (options.no_figures) arguments.emplace_back("--no-figures");
  if (options.include_unstable) arguments.emplace_back("--include-unstable");
  if (options.allow_mixed) arguments.emplace_back("--allow-mixed");
  arguments.insert(arguments.end(), {"--", options.dir});
  return run_python_script("report.py", arguments);
}

}  // namespace

void add_report(CLI::App& app, int* status) {
  auto* command = app.add_subcommand("report", "Write one HTML page of a run directory");
  auto options = std::make_shared<ReportOptions>();
  command->add_option("results", options->dir, "Directory that `subquad run` has written")
      ->required();
  command->add_option("-o,--out", options->out, "File of the page (default: RESULTS/report.html)");
  command->add_flag("--no-figures", options->no_figures, "Tables and rows alone");
  command->add_flag("--include-unstable", options->include_unstable,
                    "Figures and tables also of rows whose numbers are in doubt");
  command->add_flag("--allow-mixed", options->allow_mixed,
                    "Figures and tables also of several CPU models or builds");
  command->callback([options, status] { *status = report(*options); });
}

}  // namespace subquad
