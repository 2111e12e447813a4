// subquad describe NAME: everything a method or task declares, and its budget at sample sizes.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/declared.h"
#include "harness/cli/options.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

struct Options {
  std::string name;
  std::vector<std::string> plugins, assignments;
  Index n = 1024;
  bool json = false;
};

using Rows = std::vector<std::vector<std::string>>;

std::string yes_no(bool value) { return value ? "yes" : "no"; }

std::string count(double value, const char* unit) {
  return value == 0 ? "not declared" : fmt::format("{:.6g}{}", value, unit);
}

std::string growth(double exponent) {
  return exponent == 0 ? "no claim" : fmt::format("n^{:g}", exponent);
}

void print_params(const std::vector<ParamSpec>& specs) {
  if (specs.empty()) {
    fmt::print("  parameters: none\n");
    return;
  }
  fmt::print("  parameters (each may be a list in a config)\n");
  Rows rows;
  for (const ParamSpec& spec : specs) {
    const std::string value = to_string(spec.default_value);
    rows.push_back({spec.name, fmt::format("default {}", value.empty() ? "empty" : value),
                    spec.expected(), spec.help});
  }
  fmt::print("{}", format_table(rows, "    "));
}

void print_notes(const std::vector<std::string>& notes) {
  if (!notes.empty()) fmt::print("  notes\n");
  for (const std::string& note : notes) fmt::print("    - {}\n", note);
}

Problem sample_problem(const MethodInfo& info, Index n) {
  Problem problem;
  problem.n = problem.n_kv = info.max_n > 0 ? std::min(n, info.max_n) : n;
  problem.causal = info.causality != Causality::none;
  return problem;
}

nlohmann::ordered_json sample_figures(const Method& method, const Problem& problem) {
  const Budget budget = method.budget(problem);
  return {{"problem", problem.str()},
          {"keys_per_query", budget.keys_per_query},
          {"state_bytes", budget.state_bytes},
          {"extra_bytes", method.extra_bytes(problem, Pass::forward)},
          {"flops", method.flops(problem, Pass::forward)}};
}

void print(const MethodEntry& entry, const Settings& settings, Index n) {
  const MethodInfo& info = entry.info;
  fmt::print("{}: {}\n", info.name, info.summary);
  std::string limit = "none: it never equals softmax attention";
  const Problem problem = sample_problem(info, n);
  if (info.exact) {
    limit = fmt::format("exact at every setting, within {:g} relative", info.tolerance);
  } else if (info.exact_limit) {
    const std::string at = to_string(info.exact_limit(problem));
    limit = fmt::format("{} at n={}, within {:g} relative", at.empty() ? "as it is" : at, problem.n,
                        info.tolerance);
  }
  Rows rows = {
      {"kind", info.oracle ? "method; an oracle: it sees the exact attention matrix" : "method"},
      {"family", info.family},
      {"source", info.source.empty() ? "-" : info.source},
      {"approximates", std::string(name(info.approximates))},
      {"exact limit", limit},
      {"causal level", std::string(name(info.causality))},
      {"bidirectional", yes_no(info.bidirectional)},
      {"n_kv != n", yes_no(info.cross_attention)},
      {"padded keys", yes_no(info.key_padding)},
      {"passes", fmt::format("{}", fmt::join(pass_names(info), ", "))},
      {"random", info.random ? "yes: it takes a seed" : "no"},
      {"learned", info.learned ? "yes: it has parameters to fit or train" : "no"},
      {"output", fmt::format("{}", !info.linear_in_v       ? "not linear in v"
                                   : info.structure_from_v ? "a matrix that depends on v, times v"
                                                           : "a matrix times v")},
      {"bounded by",
       info.bounded_by.empty() ? "-" : fmt::format("{}", fmt::join(info.bounded_by, ", "))},
      {"longest n", info.max_n > 0 ? fmt::format("{}", info.max_n) : "no limit"},
      {"claimed growth",
       fmt::format("time {}, memory {}", growth(info.time_exponent), growth(info.memory_exponent))},
      {"registered in", entry.file}};
  if (info.uses_hidden) rows.push_back({"needs", "the layer's input x beside q, k, v"});
  fmt::print("{}", format_table(rows, "  "));
  print_params(entry.params);

  const std::unique_ptr<Method> method = entry.create(settings);
  fmt::print("  at {}{}{}\n", problem.str(), settings.empty() ? "" : ", ", to_string(settings));
  const std::string reason = unsupported_reason(entry, *method, problem, Pass::forward);
  if (!reason.empty()) {
    fmt::print("    not supported: {}\n", reason);
  } else {
    const auto figures = sample_figures(*method, problem);
    fmt::print("{}",
               format_table({{"keys per query", count(figures["keys_per_query"], "")},
                             {"state", count(figures["state_bytes"], " bytes")},
                             {"extra memory, forward", count(figures["extra_bytes"], " bytes")},
                             {"operations, forward", count(figures["flops"], "")}},
                            "    "));
  }
  print_notes(info.notes);
}

void print(const TaskEntry& entry) {
  const TaskInfo& info = entry.info;
  fmt::print("{}: {}\n", info.name, info.summary);
  fmt::print("{}",
             format_table({{"kind", "task"},
                           {"source", info.source.empty() ? "-" : info.source},
                           {"labels", info.labelled ? "yes: models can be trained on it" : "no"},
                           {"registered in", entry.file}},
                          "  "));
  print_params(entry.params);
  print_notes(info.notes);
}

void run(const Options& options) {
  load_plugins(options.plugins);
  const Registry& registry = Registry::instance();
  const MethodEntry* method = registry.find_method(options.name);
  const TaskEntry* task = registry.find_task(options.name);
  if (method == nullptr && task == nullptr) unknown_name(options.name, true);
  if (method != nullptr) {
    const Settings settings = settings_from(options.name, method->params, options.assignments);
    if (options.json) {
      auto json = declared(*method);
      json["sample"] =
          sample_figures(*method->create(settings), sample_problem(method->info, options.n));
      fmt::print("{}\n", json.dump(2));
    } else {
      print(*method, settings, options.n);
    }
  } else if (!options.assignments.empty()) {
    settings_from(options.name, task->params, options.assignments);  // checked, nothing to show
  }
  if (task != nullptr) {
    if (options.json) {
      fmt::print("{}\n", declared(*task).dump(2));
    } else {
      if (method != nullptr) fmt::print("\n");
      print(*task);
    }
  }
}

}  // namespace

void add_describe(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("describe", "Show everything that a method or task declares");
  command->add_option("name", options->name, "Method or task")->required();
  command->add_option("--n", options->n, "Length that budget and memory are shown for")
      ->check(CLI::Range(Index{1}, Index{1} << 24));
  command->add_flag("--json", options->json, "As JSON");
  add_set_option(command, &options->assignments);
  add_plugin_option(command, &options->plugins);
  command->callback([options] { run(*options); });
}

}  // namespace subquad
