// subquad test NAME...: the checks that follow from what a method declares, without a line of its
// own.
#include <fmt/core.h>

#include <memory>

#include "harness/cli/options.h"
#include "harness/core/registry.h"
#include "harness/measure/conformance.h"

namespace subquad {
namespace {

struct Options {
  std::vector<std::string> names, plugins;
  bool all = false;
  Seed seed = 1;
  int rounds = 3;
};

int run(const Options& options) {
  load_plugins(options.plugins);
  const Registry& registry = Registry::instance();
  std::vector<const MethodEntry*> entries;
  if (options.all) entries = registry.methods();
  for (const std::string& name : options.names) {
    const MethodEntry* entry = registry.find_method(name);
    if (entry == nullptr && registry.find_task(name) != nullptr)
      throw UserError(fmt::format("{} is a task; the checks are of methods", name));
    if (entry == nullptr) unknown_name(name, false);
    entries.push_back(entry);
  }
  if (entries.empty())
    throw UserError("name a method, or --all; ./subquad test without a name runs the whole suite");

  int passed = 0, failed = 0, skipped = 0;
  for (const MethodEntry* entry : entries) {
    fmt::print("{}\n", entry->info.name);
    for (const CheckResult& result :
         check_method(*entry, {.seed = options.seed, .rounds = options.rounds})) {
      switch (result.outcome) {
        case CheckOutcome::passed:
          ++passed;
          fmt::print("  ok       {}\n", result.check);
          break;
        case CheckOutcome::failed:
          ++failed;
          fmt::print("  FAILED   {}: {}\n", result.check, result.detail);
          break;
        case CheckOutcome::skipped:
          ++skipped;
          fmt::print("  skipped  {}: {}\n", result.check, result.detail);
          break;
      }
      std::fflush(stdout);
    }
  }
  fmt::print("{} passed, {} failed, {} skipped\n", passed, failed, skipped);
  // A run in which nothing was checked proves nothing.
  return failed == 0 && passed > 0 ? kExitOk : kExitFailed;
}

}  // namespace

void add_test(CLI::App& app, int* status) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("test", "Check methods against what they declare about themselves");
  command->add_option("names", options->names, "Methods");
  command->add_flag("--all", options->all, "Every registered method");
  command->add_option("--seed", options->seed, "Seed of the random draws");
  command->add_option("--rounds", options->rounds, "Random draws per check; more find rarer faults")
      ->check(CLI::Range(1, 10000));
  add_plugin_option(command, &options->plugins);
  command->callback([options, status] { *status = run(*options); });
}

}  // namespace subquad
