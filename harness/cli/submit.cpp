// subquad submit CONFIG: a sweep in shards, by Slurm or by a pool of runners on this machine.
#include <errno.h>  // program_invocation_name
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>

#include "harness/cli/cli.h"
#include "harness/cli/merge.h"
#include "harness/cli/options.h"
#include "harness/cli/plan.h"
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

// What the shards take, by estimate.
struct Load {
  std::vector<double> seconds;  // by shard
  double bytes = 0;             // largest worker
  int threads = 1;              // of any cell
};

Load load_of(const Config& config, const Estimator& estimator, int shards) {
  Load load;
  load.seconds.assign(static_cast<std::size_t>(shards), 0);
  const std::vector<int> shard = shard_of_cells(config.cells, shards);
  std::set<std::string> references;
  for (std::size_t i = 0; i < config.cells.size(); ++i) {
    const Cell& cell = config.cells[i];
    const Estimate estimate = estimator.of(cell);
    double& seconds = load.seconds[static_cast<std::size_t>(shard[i])];
    seconds += config.rounds * estimate.seconds;
    if (references.insert(cell.reference_id()).second) seconds += reference_seconds(cell);
    load.bytes = std::max(load.bytes, estimate.bytes);
    if (cell.measure.memory_limit_mb > 0)
      load.bytes =
          std::max(load.bytes, static_cast<double>(cell.measure.memory_limit_mb) * (1 << 20));
    load.threads = std::max(load.threads, cell.threads);
  }
  return load;
}

// No more shards than there are groups of cells that have to stay together; by default pieces of
// ten minutes.
int shards_of(const Config& config, const Estimator& estimator, int wanted) {
  std::set<std::string> groups;
  for (const Cell& cell : config.cells) groups.insert(comparison_group(cell));
  constexpr double kPiece = 600;  // seconds: a job of a scheduler costs some seconds by itself
  const double pieces = std::ceil(load_of(config, estimator, 1).seconds[0] / kPiece);
  if (wanted == 0) wanted = static_cast<int>(std::clamp(pieces, 1.0, 1000.0));
  return std::min(wanted, static_cast<int>(groups.size()));
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text << std::flush;
  if (!file) throw StorageError(fmt::format("{}: cannot be written", path.string()));
}

// The job number that sbatch prints.
std::string sbatch(const std::string& arguments) {
  const std::string command = "sbatch --parsable " + arguments;
  std::FILE* const pipe = popen(command.c_str(), "re");
  if (pipe == nullptr) throw UserError("sbatch cannot be started");
  std::string text;
  char buffer[256];
  for (std::size_t count = 0; (count = fread(buffer, 1, sizeof buffer, pipe)) > 0;)
    text.append(buffer, count);
  const int status = pclose(pipe);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0 || text.empty())
    throw UserError(fmt::format("{}: failed; is Slurm installed and running here?", command));
  return text.substr(0, text.find_first_of(";\n"));  // "7;cluster"
}

int submit_slurm(const SubmitArguments& arguments, const Config& config, const Load& load,
                 int shards, const fs::path& directory) {
  SlurmJob job;
  job.name = config.name;
  job.program = fs::read_symlink("/proc/self/exe").string();
  job.working_directory = fs::current_path().string();
  job.config = (directory / "submit/config.yaml").string();
  job.directory = directory.string();
  job.filters = arguments.filters;
  job.shards = shards;
  job.at_once = arguments.at_once;
  job.cpus = arguments.cpus > 0 ? arguments.cpus : load.threads;
  job.exclusive = !arguments.shared;
  job.memory_bytes = load.bytes;
  job.warning_s = arguments.warning_s;
  job.mixed_hardware = arguments.mixed_hardware;
  job.options = arguments.sbatch;
  // Three times the estimate, for it is one, and time for the warning; in steps of five minutes.
  const double longest = *std::max_element(load.seconds.begin(), load.seconds.end());
  job.limit_s = !arguments.time.empty()
                    ? seconds_of_slurm_time(arguments.time)
                    : static_cast<int>(300 * std::ceil((3 * longest + job.warning_s + 300) / 300));
  if (job.limit_s <= job.warning_s)
    throw UserError(fmt::format("--time: {} s are over before the warning {} s ahead of the end",
                                job.limit_s, job.warning_s));
  const std::string array = array_script(job), merge = merge_script(job);
  if (arguments.dry_run) {
    fmt::print("{}\n# ---- merge.sbatch ----\n{}", array, merge);
    return kExitOk;
  }
  fs::create_directories(directory / "submit");
  fs::create_directories(directory / "log");
  write_text(job.config, config.resolved_yaml);
  const std::string array_file = (directory / "submit/array.sbatch").string();
  const std::string merge_file = (directory / "submit/merge.sbatch").string();
  write_text(array_file, array);
  write_text(merge_file, merge);
  const std::string first = sbatch(shell_word(array_file));
  const std::string second =
      sbatch(fmt::format("--dependency=afterany:{} {}", first, shell_word(merge_file)));
  fmt::print(stderr, "submitted: job {} with {} shards, then job {} that merges them into {}\n",
             first, shards, second, (directory / "merged").string());
  fmt::print("{} {}\n", first, second);
  return kExitOk;
}

int submit_local(const SubmitArguments& arguments, const Config& config, const Load& load,
                 int shards, const fs::path& directory) {
  const int jobs = std::min(arguments.jobs, shards);
  const std::vector<int> usable = usable_processor_list();
  // One after the other, each has the whole machine; at once, each has cores of its own.
  const std::vector<std::vector<int>> sets = jobs == 1 ? std::vector<std::vector<int>>{usable}
                                                       : processor_sets(usable, jobs, load.threads);
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
  fs::create_directories(directory / "submit");
  fs::create_directories(directory / "log");
  write_text(resolved, config.resolved_yaml);
  double total = 0;
  for (const double seconds : load.seconds) total += seconds;
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
  const int shards = shards_of(config, estimator, arguments.shards);
  if (arguments.shards > shards)
    fmt::print(stderr, "{} shards instead of {}: cells that are compared stay together\n", shards,
               arguments.shards);
  const fs::path directory =
      fs::absolute(arguments.out.empty() ? default_directory(config.name, 0, 1) : arguments.out);
  const Load load = load_of(config, estimator, shards);
  return arguments.engine == "slurm" ? submit_slurm(arguments, config, load, shards, directory)
                                     : submit_local(arguments, config, load, shards, directory);
}

}  // namespace

void add_submit(CLI::App& app, int* status) {
  const auto arguments = std::make_shared<SubmitArguments>();
  CLI::App* command = app.add_subcommand("submit", "Run a sweep in shards: Slurm, or a local pool");
  command->add_option("config", arguments->config, "YAML file; see configs/README.md")->required();
  command->add_option("--engine", arguments->engine, "slurm (a job array), or local (this machine)")
      ->required()
      ->check(CLI::IsMember({"slurm", "local"}));
  command->add_option("--shards", arguments->shards, "Parts (default: of about ten minutes)")
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
