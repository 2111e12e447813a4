// subquad run CONFIG: measures every cell of a config.
#include <errno.h>  // program_invocation_name
#include <fmt/core.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/cli.h"
#include "harness/cli/plan.h"
#include "harness/core/error.h"
#include "harness/measure/machine.h"
#include "harness/sweep/config.h"
#include "harness/sweep/plan.h"
#include "harness/sweep/results_store.h"
#include "harness/sweep/runner.h"

namespace subquad {
namespace {

constexpr std::size_t kAskAbove = 20000;  // runs; more is rather a mistake than a plan

struct RunArguments {
  std::string config, out, shard;
  std::vector<std::string> filters, settings, plugins;
  bool resume = false, fresh = false, retry_failed = false, dry_run = false, no_plots = false,
       yes = false, follow = false;
  int runners = 1;
};

std::pair<int, int> parse_shard(const std::string& text) {
  if (text.empty()) return {0, 1};
  int index = 0, count = 0, used = 0;
  if (std::sscanf(text.c_str(), "%9d/%9d%n", &index, &count, &used) != 2 ||
      static_cast<std::size_t>(used) != text.size())
    throw UserError(fmt::format("--shard: got \"{}\", expected I/N, for example 0/4", text));
  return {index, count};
}

// The command that goes on where this one stopped.
std::string resume_command(const RunArguments& arguments, const std::string& directory) {
  // As the user called it: ./subquad, or a path.
  std::string command =
      fmt::format("{} run {}", shell_word(program_invocation_name), shell_word(arguments.config));
  for (const auto& [option, values] : {std::pair{"--filter", &arguments.filters},
                                       {"--set", &arguments.settings},
                                       {"--plugin", &arguments.plugins}})
    for (const std::string& value : *values)
      command += fmt::format(" {} {}", option, shell_word(value));
  if (!arguments.shard.empty()) command += " --shard " + shell_word(arguments.shard);
  for (const auto& [option, given] : {std::pair{"--no-plots", arguments.no_plots},
                                      {"--yes", arguments.yes},
                                      {"--follow", arguments.follow}})
    if (given) command += fmt::format(" {}", option);
  return command + fmt::format(" --out {} --resume", shell_word(directory));
}

void print_summary(const RunReport& report) {
  std::string counts;
  for (const auto& [status, count] : report.counts)
    counts += fmt::format("{} {} {}", counts.empty() ? "" : ",", count, name(status));
  if (report.missing > 0)
    counts += fmt::format("{} {} missing", counts.empty() ? "" : ",", report.missing);
  fmt::print(stderr, "{} runs asked for:{}{}\n", report.asked, counts,
             report.earlier > 0 ? fmt::format(" ({} of an earlier run)", report.earlier) : "");
  for (const std::string& warning : report.warnings) fmt::print(stderr, "warning: {}\n", warning);
  fmt::print(stderr, "results: {}/results.csv\n", report.directory);
}

// Draws the figures in a process of its own: they are a courtesy, never a reason to fail.
void draw_plots(const std::string& directory) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  std::string program = "/proc/self/exe", command = "plot", path = directory;
  char* const argv[] = {program.data(), command.data(), path.data(), nullptr};
  pid_t child = 0;
  int status = 0;
  // /proc/self/exe means the executable of whoever looks it up; it is resolved in the child.
  const int error = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    fmt::print(stderr, "warning: no figures: {}\n", std::strerror(error));
    return;
  }
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    fmt::print(stderr, "warning: no figures; try: subquad plot {}\n", shell_word(directory));
}

int run(const RunArguments& arguments) {
  Config config =
      load_filtered(arguments.config, arguments.settings, arguments.plugins, arguments.filters);
  const auto [shard, shards] = parse_shard(arguments.shard);
  take_shard(&config, shard, shards);
  if (arguments.dry_run) {
    print_plan(config, Estimator());
    return kExitOk;
  }
  const std::size_t runs = config.cells.size() * static_cast<std::size_t>(config.rounds);
  if (runs > kAskAbove && !arguments.yes)
    throw UserError(fmt::format("{}: {} runs; see them with --dry-run, start them with --yes",
                                config.path, runs));

  RunOptions options;
  options.directory =
      arguments.out.empty() ? default_directory(config.name, shard, shards) : arguments.out;
  options.existing = arguments.fresh    ? Existing::fresh
                     : arguments.resume ? Existing::resume
                                        : Existing::same_plan;
  options.follow_links = arguments.follow;
  options.retry_failed = arguments.retry_failed;
  options.runners = arguments.runners;
  const Provenance provenance{build_id(), cpu_model(), host_name(),
                              machine_description().dump(2) + "\n"};
  Progress progress(stderr);
  RunReport report;
  {
    const StopSignals signals;
    options.stop = &signals;
    try {
      report = run_sweep(config, options, provenance, progress);
    } catch (const LockedError& error) {
      fmt::print(stderr, "subquad: {}\n", error.what());
      return kExitFailed;
    } catch (const UnsavedRow& error) {
      progress.end();
      fmt::print(stderr, "subquad: {}\nthe row that could not be saved:\n{}", error.what(),
                 error.row);
      fmt::print(stderr, "everything before it is safe; go on with:\n  {}\n",
                 resume_command(arguments, options.directory));
      return kExitStorage;
    }
  }
  print_summary(report);
  if (report.signal != 0) {
    fmt::print(stderr, "interrupted by SIG{}; go on with:\n  {}\n", sigabbrev_np(report.signal),
               resume_command(arguments, options.directory));
  } else if (config.plots && !arguments.no_plots) {
    draw_plots(report.directory);
  }
  return report.exit_status();
}

}  // namespace

void add_run(CLI::App& app, int* status) {
  const auto arguments = std::make_shared<RunArguments>();
  CLI::App* command = app.add_subcommand("run", "measure every cell of a config");
  command->add_option("config", arguments->config, "YAML file; see configs/README.md")->required();
  command->add_option("--out", arguments->out, "run directory (default: results/<name>)");
  CLI::Option* fresh = command->add_flag("--fresh", arguments->fresh,
                                         "move what is in the run directory aside, start over");
  command
      ->add_flag("--resume", arguments->resume,
                 "continue in the run directory, also when its plan was another one")
      ->excludes(fresh);
  command->add_flag("--retry-failed", arguments->retry_failed,
                    "run cells again whose row has a failed status");
  command->add_flag("--dry-run", arguments->dry_run, "print the cells and the time; run nothing");
  command
      ->add_option("--filter", arguments->filters,
                   "only cells that match, for example method=dense|linear,n<=4096")
      ->allow_extra_args(false);
  command
      ->add_option("--set", arguments->settings,
                   "KEY=VALUE: replaces a value of the config, for example problem.n=[256,512]")
      ->allow_extra_args(false);
  command->add_option("--plugin", arguments->plugins, "shared object with methods or tasks")
      ->allow_extra_args(false);
  command->add_option("--shard", arguments->shard,
                      "I/N: only this part of the cells, 0 <= I < N, into a directory of its own");
  command->add_flag("--no-plots", arguments->no_plots, "draw no figures at the end");
  command->add_flag("--yes", arguments->yes, fmt::format("allow more than {} runs", kAskAbove));
  command->add_flag("--follow", arguments->follow, "allow a run directory that is a symbolic link");
  command->add_option("--runners", arguments->runners)->group("");  // set by `submit`
  command->callback([arguments, status] { *status = run(*arguments); });
}

}  // namespace subquad
