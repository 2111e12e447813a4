// subquad merge DIRS --out DIR: one run directory from those of a sweep's shards.
#include "harness/cli/merge.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>

#include "harness/cli/cli.h"
#include "harness/sweep/lock.h"
#include "harness/sweep/runner.h"

namespace subquad {
namespace {

constexpr std::size_t kListed = 20, kFiltered = 100;

// By --filter just these cells: the sweep may have been a part of its config.
std::string filter_of(const MissingRows& missing) {
  std::set<std::string> ids;
  for (const std::string& run : missing.runs) ids.insert(run.substr(0, run.find(' ')));
  if (ids.size() > kFiltered) return " (and the same --filter)";
  return " --filter " + shell_word(fmt::format("cell={}", fmt::join(ids, "|")));
}

void print_missing(const MissingRows& missing, const std::string& out) {
  if (missing.directory.empty())
    fmt::print(stderr, "missing: {} runs of cells that are in no directory:", missing.runs.size());
  else
    fmt::print(stderr, "missing: {} of {} runs of {}:", missing.runs.size(), missing.asked,
               missing.directory);
  for (std::size_t i = 0; i < std::min(kListed, missing.runs.size()); ++i)
    fmt::print(stderr, "{} {}", i == 0 ? "" : ",", missing.runs[i]);
  fmt::print(stderr, "{}\n", missing.runs.size() > kListed ? ", ..." : "");
  if (!missing.directory.empty() && missing.shards > 1)
    fmt::print(stderr, "  go on with: --shard {}/{} --out {} and the same config and --filter\n",
               missing.shard, missing.shards, shell_word(missing.directory));
  else if (missing.directory.empty())
    fmt::print(stderr, "  run their shards, or what is left with: subquad run {} --out {}{}\n",
               shell_word(out + "/config.resolved.yaml"), shell_word(out), filter_of(missing));
}

}  // namespace

int merge_and_report(const MergeOptions& options) {
  MergeReport report;
  try {
    report = merge_runs(options);
  } catch (const LockedError& error) {
    fmt::print(stderr, "subquad: {}\n", error.what());
    return kExitFailed;
  }
  std::size_t runs = 0, missing = 0;
  std::string counts;
  for (const auto& [status, count] : report.counts) {
    runs += count;
    counts += fmt::format("{} {} {}", counts.empty() ? "" : ",", count, name(status));
  }
  for (const MissingRows& rows : report.missing) missing += rows.runs.size();
  fmt::print(stderr, "merged {} directories: {} of {} runs:{}{}\n", report.directories.size(), runs,
             report.asked, counts, missing > 0 ? fmt::format("; {} to be done", missing) : "");
  for (const auto& [cpu, hosts] : report.hosts)
    fmt::print(stderr, "  {}: {} rows, hosts {}\n", cpu.empty() ? "unknown CPU" : cpu,
               report.rows_of_cpu.at(cpu), fmt::join(hosts, ", "));
  if (!report.absent.empty())
    fmt::print(stderr, "shards without a directory: {}\n", fmt::join(report.absent, ", "));
  for (const MissingRows& rows : report.missing) print_missing(rows, options.out);
  for (const std::string& warning : report.warnings) fmt::print(stderr, "warning: {}\n", warning);
  fmt::print(stderr, "results: {}/results.csv\n", options.out);
  return report.exit_status();
}

void add_merge(CLI::App& app, int* status) {
  const auto options = std::make_shared<MergeOptions>();
  CLI::App* command = app.add_subcommand("merge", "Join the run directories of shards into one");
  command
      ->add_option("directories", options->directories,
                   "Run directories, or folders that hold shard-I-of-N")
      ->required();
  command->add_option("--out", options->out, "The run directory to make or to bring up to date")
      ->required();
  command->add_flag("--mixed-hardware", options->mixed_hardware,
                    "Put rows of several CPU models together");
  command
      ->add_option("--wait", options->wait_s,
                   "Seconds to wait for missing rows, as on a slow shared file system")
      ->check(CLI::Range(0.0, 86400.0));
  command->callback([options, status] { *status = merge_and_report(*options); });
}

}  // namespace subquad
