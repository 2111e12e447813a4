#include "harness/cli/plot.h"

#include <memory>

#include "harness/cli/cli.h"
#include "harness/cli/options.h"
#include "harness/cli/plot_attention.h"
#include "harness/cli/python_script.h"
#include "harness/sweep/crossover_table.h"

namespace subquad {
namespace {

void append_all(std::vector<std::string>& arguments, const std::string& option,
                const std::vector<std::string>& values) {
  for (const std::string& value : values) arguments.push_back(option + "=" + value);
}

}  // namespace

int plot_results(const std::string& dir, const PlotOptions& options) {
  CrossoverOptions crossover;
  crossover.include_unstable = options.include_unstable;
  write_crossover_csv(dir, crossover);

  std::vector<std::string> arguments;
  if (!options.out.empty()) arguments.push_back("--out=" + options.out);
  append_all(arguments, "--format", options.formats);
  append_all(arguments, "--task", options.tasks);
  append_all(arguments, "--pass", options.passes);
  if (options.include_unstable) arguments.push_back("--include-unstable");
  if (options.allow_mixed) arguments.push_back("--allow-mixed");
  arguments.insert(arguments.end(), {"--", dir});
  return run_python_script("plot.py", arguments);
}

void add_plot(CLI::App& app, int* status) {
  auto* command = app.add_subcommand(
      "plot", "Draw the figures of a run directory, or the attention of a trained model");
  auto dir = std::make_shared<std::string>();
  auto options = std::make_shared<PlotOptions>();
  auto attention = std::make_shared<AttentionPlotOptions>();
  CLI::Option* results =
      command->add_option("results", *dir, "Directory that `subquad run` has written")->required();
  CLI::Option* checkpoint = command->add_flag(
      "--attention", attention->wanted,
      "Attention matrices instead: RESULTS is a checkpoint of training; dense attention, what its "
      "method estimates, and what it weighs with, as files and side by side");
  results->description("Directory that `subquad run` has written; a checkpoint with --attention");
  command->add_option("--layer", attention->layer, "With --attention: number of the layer")
      ->needs(checkpoint)
      ->check(CLI::Range(Index{0}, Index{1} << 20));
  command->add_option("--head", attention->head, "With --attention: number of the head")
      ->needs(checkpoint)
      ->check(CLI::Range(Index{0}, Index{1} << 20));
  command->add_option("--example", attention->example, "With --attention: of the test split")
      ->needs(checkpoint)
      ->check(CLI::Range(Index{0}, Index{1} << 40));
  command->add_flag("--csv", attention->csv, "With --attention: the matrices as text too")
      ->needs(checkpoint);
  add_plugin_option(command, &attention->plugins);
  command->add_option("-o,--out", options->out, "Where the figures go (default: RESULTS/figures)");
  command->add_option("--format", options->formats, "png, svg or pdf (default: png and svg)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->check(CLI::IsMember({"png", "svg", "pdf"}));
  command->add_option("--task", options->tasks, "Only these tasks")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--pass", options->passes, "Only these passes")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_flag("--include-unstable", options->include_unstable,
                    "Also rows whose numbers are in doubt");
  command->add_flag("--allow-mixed", options->allow_mixed,
                    "Also rows of several CPU models or builds in one figure");
  command->callback([dir, options, attention, status] {
    if (!attention->wanted) {
      *status = plot_results(*dir, *options);
      return;
    }
    attention->out = options->out;
    attention->formats = options->formats;
    *status = plot_attention(*dir, *attention);
  });
}

}  // namespace subquad
