// subquad submit CONFIG: a sweep in shards, by Slurm or by a pool of runners on this machine.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>

#include "harness/cli/cli.h"
#include "harness/cli/merge.h"
#include "harness/cli/options.h"
#include "harness/cli/plan.h"
#include "harness/cli/programs.h"
#include "harness/core/error.h"
#include "harness/sweep/plan.h"
#include "harness/sweep/pool.h"
#include "harness/sweep/progress.h"
#include "harness/sweep/run_directory.h"
#include "harness/sweep/runner.h"
#include "harness/sweep/slurm.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

struct SubmitArguments {
  std::string config, out, engine, time, memory;
  std::vector<std::string> filters, settings, plugins, earlier, sbatch;
  int shards = 0, jobs = 1, at_once = 0, cpus = 0, warning_s = 120;
  bool shared = false, dry_run = false, mixed_hardware = false;
};

// The most that any shard takes.
Load most_of(const std::vector<Load>& loads) {
  Load most;
  for (const Load& load : loads) {
    most.seconds = std::max(most.seconds, load.seconds);
    most.bytes = std::max(most.bytes, load.bytes);
    most.limit_bytes = std::max(most.limit_bytes, load.limit_bytes);
    most.threads = std::max(most.threads, load.threads);
  }
  return most;
}

// No more shards than there are groups of cells that have to stay together; by default pieces of
// ten minutes, and enough for all runners.
int shards_of(const Config& config, const Estimator& estimator, int wanted, int jobs) {
  std::set<std::string> groups;
  for (const Cell& cell : config.cells) groups.insert(comparison_group(cell));
  constexpr double kPiece = 600;  // seconds: a job of a scheduler costs some seconds by itself
  const double pieces = std::ceil(loads_of(config, estimator, 1)[0].seconds / kPiece);
  if (wanted == 0)
    wanted = static_cast<int>(std::max(std::min(pieces, 1000.0), static_cast<double>(jobs)));
  return std::min(wanted, static_cast<int>(groups.size()));
}

// The job number that sbatch prints.
std::string sbatch(const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {"sbatch", "--parsable"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const ProgramOutput output = output_of_program(command);
  if (output.status != 0 || output.text.empty())
    throw UserError(
        fmt::format("{}: failed; is Slurm installed and running here?", fmt::join(command, " ")));
  return output.text.substr(0, output.text.find_first_of(";\n"));  // "7;cluster"
}

// The config that every shard reads: those of an earlier submission may yet do so.
void write_config(const fs::path& path, const std::string& text) {
  if (fs::exists(path)) {
    std::ifstream file(path, std::ios::binary);
    if (std::string((std::istreambuf_iterator<char>(file)), {}) == text) return;
    throw UserError(
        fmt::format("{}: is the config of another submission; choose another --out, or remove it "
                    "when none of its shards will run any more",
                    path.string()));
  }
  fs::create_directories(path.parent_path());
  write_text(path, text);
}

int submit_slurm(const SubmitArguments& arguments, const Config& config,
                 const std::vector<Load>& loads, const fs::path& directory) {
  const int shards = static_cast<int>(loads.size());
  const Load most = most_of(loads);
  SlurmJob job;
  job.name = config.name;
  job.program = fs::read_symlink("/proc/self/exe").string();
  job.working_directory = fs::current_path().string();
  job.config = (directory / "submit/config.yaml").string();
  job.directory = directory.string();
  job.filters = arguments.filters;
  job.shards = shards;
  job.at_once = arguments.at_once;
  job.cpus = arguments.cpus > 0 ? arguments.cpus : most.threads;
  job.exclusive = !arguments.shared;
  job.memory_bytes = std::max(most.bytes, most.limit_bytes);
  job.warning_s = arguments.warning_s;
  job.mixed_hardware = arguments.mixed_hardware;
  job.options = arguments.sbatch;
  // Three times the estimate, for it is one, and time for the warning; in steps of five minutes.
  job.limit_s =
      !arguments.time.empty()
          ? seconds_of_slurm_time(arguments.time)
          : static_cast<int>(300 * std::ceil((3 * most.seconds + job.warning_s + 300) / 300));
  if (job.limit_s <= job.warning_s)
    throw UserError(fmt::format("--time: {} s are over before the warning {} s ahead of the end",
                                job.limit_s, job.warning_s));
  const std::string array = array_script(job), merge = merge_script(job);
  if (arguments.dry_run) {
    fmt::print("{}\n# ---- merge.sbatch ----\n{}", array, merge);
    return kExitOk;
  }
  write_config(job.config, config.resolved_yaml);
  fs::create_directories(directory / "log");
  const std::string array_file = (directory / "submit/array.sbatch").string();
  const std::string merge_file = (directory / "submit/merge.sbatch").string();
  write_text(array_file, array);
  write_text(merge_file, merge);
  const std::string first = sbatch({array_file});
  const std::string second = sbatch({"--dependency=afterany:" + first, merge_file});
  fmt::print(stderr, "submitted: job {} with {} shards, then job {} that merges them into {}\n",
             first, shards, second, (directory / "merged").string());
  fmt::print("{} {}\n", first, second);
  return kExitOk;
}

int submit_local(const SubmitArguments& arguments, const Config& config,
                 const std::vector<Load>& loads, const fs::path& directory) {
  const int shards = static_cast<int>(loads.size());
  const Load most = most_of(loads);
  const int jobs = std::min(arguments.jobs, shards);
  if (jobs < arguments.jobs)
    fmt::print(stderr, "{} runners at once instead of {}: there are no more shards\n", jobs,
               arguments.jobs);
  const std::vector<int> usable = usable_processor_list();
  // One after the other, each has the whole machine; at once, each has cores of its own.
  const std::vector<std::vector<int>> sets = jobs == 1 ? std::vector<std::vector<int>>{usable}
                                                       : processor_sets(usable, jobs, most.threads);
  const std::string resolved = (directory / "submit/config.yaml").string();
  std::vector<PoolTask> tasks;
  for (int shard = 0; shard < shards; ++shard) {
    PoolTask task;
    const std::string own = fmt::format("shard-{}-of-{}", shard, shards);
    task.command = {"/proc/self/exe",
                    "run",
                    resolved,
                    "--shard",
                    fmt::format("{}/{}", shard, shards),
                    "--out",
                    (directory / own).string(),
                    "--no-plots",
                    "--yes",
                    "--runners",
                    std::to_string(jobs)};
    for (const std::string& filter : arguments.filters)
      task.command.insert(task.command.end(), {"--filter", filter});
    task.log = (directory / "log" / (own + ".log")).string();
    tasks.push_back(std::move(task));
  }
  if (arguments.dry_run) {
    for (const PoolTask& task : tasks) {
      std::string line = "subquad";
      for (std::size_t i = 1; i < task.command.size(); ++i)
        line += " " + shell_word(task.command[i]);
      fmt::print("{}\n", line);
    }
    for (const auto& set : sets) fmt::print("# a runner on processors {}\n", processor_list(set));
    return kExitOk;
  }
  write_config(resolved, config.resolved_yaml);
  fs::create_directories(directory / "log");
  double total = 0;
  for (const Load& load : loads) total += load.seconds;
  fmt::print(stderr, "{} shards, {} at once, about {}; logs in {}\n", shards, jobs,
             human_seconds(total / jobs), (directory / "log").string());
  PoolReport report;
  {
    const StopSignals signals;
    report = run_pool(tasks, sets, signals, [&](std::size_t shard, int status) {
      fmt::print(stderr, "shard {}/{} ended with status {}\n", shard, shards, status);
    });
  }
  if (report.signal != 0) {
    fmt::print(stderr, "interrupted; the same command goes on where this one stopped\n");
    return 128 + report.signal;
  }
  MergeOptions merge;
  for (int shard = 0; shard < shards; ++shard)
    if (fs::exists(directory / fmt::format("shard-{}-of-{}", shard, shards)))
      merge.directories.push_back(
          (directory / fmt::format("shard-{}-of-{}", shard, shards)).string());
  merge.out = (directory / "merged").string();
  const int worst = *std::max_element(report.status.begin(), report.status.end());
  if (merge.directories.empty()) return worst;
  return std::max(merge_and_report(merge), worst);
}

int submit(const SubmitArguments& arguments) {
  const Config config =
      load_filtered(arguments.config, arguments.settings, arguments.plugins, arguments.filters);
  const Estimator estimator = estimator_from(arguments.earlier);
  const int shards = shards_of(config, estimator, arguments.shards,
                               arguments.engine == "local" ? arguments.jobs : 1);
  if (arguments.shards > shards)
    fmt::print(stderr, "{} shards instead of {}: cells that are compared stay together\n", shards,
               arguments.shards);
  const fs::path directory =
      fs::absolute(arguments.out.empty() ? default_directory(config.name, 0, 1) : arguments.out);
  const std::vector<Load> loads = loads_of(config, estimator, shards);
  return arguments.engine == "slurm" ? submit_slurm(arguments, config, loads, directory)
                                     : submit_local(arguments, config, loads, directory);
}

}  // namespace

void add_submit(CLI::App& app, int* status) {
  const auto arguments = std::make_shared<SubmitArguments>();
  CLI::App* command = app.add_subcommand("submit", "Run a sweep in shards: Slurm, or a local pool");
  command->add_option("config", arguments->config, "YAML file; see configs/README.md")->required();
  command->add_option("--engine", arguments->engine, "slurm (a job array), or local (this machine)")
      ->required()
      ->check(CLI::IsMember({"slurm", "local"}));
  command
      ->add_option("--shards", arguments->shards,
                   "Parts (default: of about ten minutes, at least --jobs)")
      ->check(CLI::Range(1, 100000));
  command->add_option("--out", arguments->out,
                      "Directory of the shards and of merged/ (default: results/<name>)");
  command->add_flag("--dry-run", arguments->dry_run,
                    "Print the batch files or the commands; start nothing");
  command
      ->add_option("--jobs", arguments->jobs,
                   "local: runners at once, each on cores of its own (default: 1)")
      ->check(CLI::Range(1, 1024));
  command->add_option("--at-once", arguments->at_once, "slurm: tasks that may run together")
      ->check(CLI::Range(1, 100000));
  command
      ->add_option("--cpus", arguments->cpus,
                   "slurm: processors of a task (default: the largest `threads`)")
      ->check(CLI::Range(1, 4096));
  command->add_flag("--shared", arguments->shared,
                    "slurm: bound processors of a node instead of a whole one");
  command->add_option("--time", arguments->time,
                      "slurm: limit of a task, minutes or H:MM:SS (default: 3 x the estimate)");
  command
      ->add_option("--warning", arguments->warning_s,
                   "slurm: seconds from the signal to the limit (default: 120)")
      ->check(CLI::Range(1, 3600));
  command
      ->add_option("--sbatch", arguments->sbatch,
                   "slurm: further option, for example --sbatch=--partition=fast; repeatable")
      ->allow_extra_args(false);
  command->add_flag("--mixed-hardware", arguments->mixed_hardware,
                    "slurm: merge rows of several CPU models");
  command->add_option("--earlier", arguments->earlier, "Run directory for estimates, as in `plan`")
      ->allow_extra_args(false);
  command->add_option("--filter", arguments->filters, "Only cells that match, as in `run`")
      ->allow_extra_args(false);
  command->add_option("--set", arguments->settings, "KEY=VALUE, as in `run`")
      ->allow_extra_args(false);
  add_plugin_option(command, &arguments->plugins);
  command->callback([arguments, status] { *status = submit(*arguments); });
}

}  // namespace subquad
