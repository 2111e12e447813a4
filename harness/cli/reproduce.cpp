// subquad reproduce PAPER[/TABLE]: runs the configs of papers' tables and judges what came out.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "harness/cli/cli.h"
#include "harness/cli/python_script.h"
#include "harness/sweep/crossover_table.h"

namespace subquad {
namespace {

struct ReproduceOptions {
  std::string what, scale, out, results, crossover;
  int rounds = 0;  // 0 = those of the config
  bool list = false, check = false, page = false, publish = false, no_plots = false,
       include_unstable = false, allow_mixed = false;
};

int reproduce(const ReproduceOptions& options) {
  if (!options.crossover.empty()) {  // the script asks for the statistics that it does not have
    write_crossover_csv(options.crossover);
    return kExitOk;
  }
  std::vector<std::string> arguments = {"--subquad=" +
                                        std::filesystem::read_symlink("/proc/self/exe").string()};
  for (const auto& [option, value] : {std::pair{"--scale", &options.scale},
                                      {"--out", &options.out},
                                      {"--results", &options.results}})
    if (!value->empty()) arguments.push_back(std::string(option) + "=" + *value);
  if (options.rounds > 0) arguments.push_back("--rounds=" + std::to_string(options.rounds));
  for (const auto& [option, given] : {std::pair{"--list", options.list},
                                      {"--check", options.check},
                                      {"--page", options.page},
                                      {"--publish", options.publish},
                                      {"--no-plots", options.no_plots},
                                      {"--include-unstable", options.include_unstable},
                                      {"--allow-mixed", options.allow_mixed}})
    if (given) arguments.emplace_back(option);
  if (!options.what.empty()) arguments.insert(arguments.end(), {"--", options.what});
  become_python_script("reproduce.py", arguments);
}

}  // namespace

void add_reproduce(CLI::App& app, int* status) {
  auto* command = app.add_subcommand("reproduce", "Run the tables of papers and judge the results");
  auto options = std::make_shared<ReproduceOptions>();
  command->add_option("what", options->what, "PAPER, PAPER/TABLE or all; see --list");
  command
      ->add_option("--scale", options->scale,
                   "smoke (seconds), laptop (default; two cores) or paper (full sizes)")
      ->check(CLI::IsMember({"smoke", "laptop", "paper"}));
  command
      ->add_option("--rounds", options->rounds,
                   "As many rounds instead of the config's; adds to what was run before")
      ->check(CLI::Range(1, 10000));
  command->add_option("--out", options->out,
                      "Where results go (default: results/reproduce/SCALE/PAPER/TABLE)");
  command->add_option("--results", options->results,
                      "Judge this directory of `subquad run`, run nothing");
  command->add_flag("--list", options->list, "The tables there are");
  command->add_flag("--check", options->check,
                    "Whether committed tables follow from their results; runs nothing");
  command->add_flag("--publish", options->publish, "Also copy the results to results/papers/");
  command->add_flag("--page", options->page, "Write the page of claims into results/README.md");
  command->add_flag("--no-plots", options->no_plots, "Draw no figures");
  command->add_flag("--include-unstable", options->include_unstable,
                    "Also rows whose numbers are in doubt");
  command->add_flag("--allow-mixed", options->allow_mixed,
                    "Also rows of several CPU models or builds");
  command->add_option("--crossover", options->crossover)->group("");  // for the script alone
  command->callback([options, status] { *status = reproduce(*options); });
}

}  // namespace subquad
