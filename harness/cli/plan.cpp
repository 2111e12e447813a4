// subquad plan CONFIG: the cells, what they will take, and how they fall into shards.
#include "harness/cli/plan.h"

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/cli.h"
#include "harness/cli/options.h"
#include "harness/core/error.h"
#include "harness/sweep/plan.h"
#include "harness/sweep/progress.h"

namespace subquad {
namespace {

struct PlanArguments {
  std::string config;
  std::vector<std::string> filters, settings, plugins, earlier;
  int shards = 1;
  bool json = false;
};

std::string with_settings(const std::string& name, const Settings& settings) {
  return settings.empty() ? name : name + ":" + to_string(settings);
}

void print_json(const Config& config, const Estimator& estimator, int shards) {
  nlohmann::ordered_json cells = nlohmann::ordered_json::array();
  const std::vector<int> shard = shard_of_cells(config.cells, shards);
  for (std::size_t i = 0; i < config.cells.size(); ++i) {
    const Cell& cell = config.cells[i];
    const Estimate estimate = estimator.of(cell);
    cells.push_back({{"cell", cell.id()},
                     {"shard", shard[i]},
                     {"group", comparison_group(cell)},
                     {"method", with_settings(cell.method, cell.method_settings)},
                     {"pass", name(cell.pass)},
                     {"task", with_settings(cell.task, cell.task_settings)},
                     {"problem", cell.problem.str()},
                     {"threads", cell.threads},
                     {"seed", cell.seed},
                     {"seconds", estimate.seconds},
                     {"bytes", estimate.bytes},
                     {"from", estimate.from}});
  }
  const nlohmann::ordered_json plan = {
      {"name", config.name}, {"rounds", config.rounds}, {"shards", shards}, {"cells", cells}};
  fmt::print("{}\n", plan.dump(1));
}

void plan(const PlanArguments& arguments) {
  const Config config =
      load_filtered(arguments.config, arguments.settings, arguments.plugins, arguments.filters);
  const Estimator estimator = estimator_from(arguments.earlier);
  if (arguments.json)
    print_json(config, estimator, arguments.shards);
  else
    print_plan(config, estimator, arguments.shards);
}

}  // namespace

Config load_filtered(const std::string& path, const std::vector<std::string>& settings,
                     const std::vector<std::string>& plugins,
                     const std::vector<std::string>& filters) {
  Config config = load_config(path, settings, plugins);
  for (const std::string& filter : filters) config.cells = filter_cells(config.cells, filter);
  if (config.cells.empty())
    throw UserError(fmt::format("{}: no cell is left after --filter", config.path));
  return config;
}

Estimator estimator_from(const std::vector<std::string>& directories) {
  Estimator estimator;
  for (const std::string& directory : directories)
    estimator.learn(read_results_csv(directory + "/results.csv"));
  return estimator;
}

std::vector<Load> loads_of(const Config& config, const Estimator& estimator, int shards) {
  std::vector<Load> loads(static_cast<std::size_t>(shards));
  const std::vector<int> shard = shard_of_cells(config.cells, shards);
  for (std::size_t i = 0; i < config.cells.size(); ++i) {
    const Cell& cell = config.cells[i];
    const Estimate estimate = estimator.of(cell);
    Load& load = loads[static_cast<std::size_t>(shard[i])];
    ++load.cells;
    load.seconds += config.rounds * estimate.seconds;
    load.bytes = std::max(load.bytes, estimate.bytes);
    if (cell.measure.memory_limit_mb > 0)
      load.limit_bytes =
          std::max(load.limit_bytes, static_cast<double>(cell.measure.memory_limit_mb) * (1 << 20));
    load.threads = std::max(load.threads, cell.threads);
    if (needs_reference(cell) && load.references.insert(cell.reference_id()).second)
      load.seconds += reference_seconds(cell);
  }
  return loads;
}

void take_shard(Config* config, int shard, int shards) {
  std::vector<Cell> part = select_shard(config->cells, shard, shards);
  if (part.empty() && !config->cells.empty() && shards > 1)
    throw UserError(fmt::format(
        "--shard {}/{}: nothing is left for it: cells that are compared with each other stay "
        "together; see subquad plan {} --shards N",
        shard, shards, config->path));
  config->shard = shard;
  config->shards = shards;
  config->sweep_cells.clear();
  if (shards > 1)
    for (const Cell& cell : config->cells) config->sweep_cells.push_back(cell.id());
  config->cells = std::move(part);
}

void print_plan(const Config& config, const Estimator& estimator, int shards) {
  const std::vector<int> shard = shard_of_cells(config.cells, shards);
  const std::vector<Load> loads = loads_of(config, estimator, shards);
  const Load whole = loads_of(config, estimator, 1)[0];
  std::vector<std::vector<std::string>> table = {
      {"cell", "method", "pass", "seconds", "memory", "task and sizes"}};
  if (shards > 1) table[0].insert(table[0].begin(), "shard");
  for (std::size_t i = 0; i < config.cells.size(); ++i) {
    const Cell& cell = config.cells[i];
    const Estimate estimate = estimator.of(cell);
    table.push_back(
        {cell.id(), with_settings(cell.method, cell.method_settings), std::string(name(cell.pass)),
         fmt::format("{:.2f}{}", config.rounds * estimate.seconds,
                     estimate.from == "measured" ? "" : "?"),
         human_bytes(estimate.bytes),
         fmt::format("{} {} threads={} seed={}", with_settings(cell.task, cell.task_settings),
                     cell.problem.str(), cell.threads, cell.seed)});
    if (shards > 1) table.back().insert(table.back().begin(), std::to_string(shard[i]));
  }
  fmt::print("{}", format_table(table));
  if (shards > 1) {
    std::vector<std::vector<std::string>> list = {{"shard", "cells", "time", "memory"}};
    for (std::size_t s = 0; s < loads.size(); ++s)
      list.push_back({fmt::format("{}/{}", s, shards), std::to_string(loads[s].cells),
                      human_seconds(loads[s].seconds), human_bytes(loads[s].bytes)});
    fmt::print("\n{}", format_table(list));
  }
  fmt::print(
      "{} cells x {} rounds = {} runs, about {}, at most {} of memory, and {} exact references; "
      "nothing was run\n",
      config.cells.size(), config.rounds,
      config.cells.size() * static_cast<std::size_t>(config.rounds), human_seconds(whole.seconds),
      human_bytes(whole.bytes), whole.references.size());
}

void add_plan(CLI::App& app, int*) {
  const auto arguments = std::make_shared<PlanArguments>();
  CLI::App* command =
      app.add_subcommand("plan", "Show the cells of a config and what they will take");
  command->add_option("config", arguments->config, "YAML file; see configs/README.md")->required();
  command
      ->add_option("--shards", arguments->shards,
                   "Also show how `run --shard I/N` divides them; N parts")
      ->check(CLI::Range(1, 100000));
  command
      ->add_option("--earlier", arguments->earlier,
                   "Run directory whose times and peaks are better than a guess; repeatable")
      ->allow_extra_args(false);
  command->add_option("--filter", arguments->filters, "Only cells that match, as in `run`")
      ->allow_extra_args(false);
  command->add_option("--set", arguments->settings, "KEY=VALUE, as in `run`")
      ->allow_extra_args(false);
  add_plugin_option(command, &arguments->plugins);
  command->add_flag("--json", arguments->json, "As JSON: cells with ids, shards and estimates");
  command->callback([arguments] { plan(*arguments); });
}

}  // namespace subquad
