// A Sweep back into YAML, with every default written out.
#include <fmt/core.h>

#include <algorithm>

#include "harness/sweep/config_sweep.h"

namespace subquad {
namespace {

// A double-quoted YAML scalar on one line.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned>(static_cast<unsigned char>(c));
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string scalar(const ParamValue& value) {
  const std::string* text = std::get_if<std::string>(&value);
  return text == nullptr ? to_string(value) : quoted(*text);
}

template <class T, class Print>
std::string list(const Axis<T>& axis, const Print& print) {
  std::string text;
  for (const Choice<T>& choice : axis)
    text += (text.empty() ? "" : ", ") + std::string(print(choice.value));
  return axis.size() == 1 ? text : "[" + text + "]";
}

std::string number(Index value) { return fmt::format("{}", value); }
std::string pass_name(Pass pass) { return std::string(name(pass)); }

std::string params_text(const std::vector<ParamAxis>& params) {
  std::string text;
  for (const ParamAxis& axis : params)
    text += fmt::format(", {}: {}", axis.name, list(axis.values, scalar));
  return text;
}

bool has_pass(const Sweep& sweep, Pass wanted) {
  const auto has = [wanted](const Axis<Pass>& passes) {
    return std::any_of(passes.begin(), passes.end(),
                       [wanted](const Choice<Pass>& pass) { return pass.value == wanted; });
  };
  return has(sweep.passes) ||
         std::any_of(sweep.methods.begin(), sweep.methods.end(),
                     [&](const MethodSweep& method) { return has(method.passes); });
}

}  // namespace

std::string resolved_yaml(const Sweep& sweep) {
  const ProblemSweep& p = sweep.problem;
  const MeasureOptions& m = sweep.measure;
  const ErrorOptions& e = sweep.error;
  const auto real = [](double value) { return to_string(ParamValue(value)); };
  std::string y = fmt::format("name: {}\n", quoted(sweep.name));
  if (!sweep.description.empty()) y += fmt::format("description: {}\n", quoted(sweep.description));
  y += fmt::format("seed: {}\nseeds: {}\nrounds: {}\n", sweep.seed,
                   list(sweep.seeds, [](Seed s) { return fmt::format("{}", s); }), sweep.rounds);
  y += fmt::format("threads: {}\npasses: {}\n", list(sweep.threads, number),
                   list(sweep.passes, pass_name));
  y += fmt::format("problem:\n  batch: {}\n  heads: {}\n", list(p.batch, number),
                   list(p.heads, number));
  if (p.n.front().value != 0) y += fmt::format("  n: {}\n", list(p.n, number));
  y += fmt::format("  n_kv: {}\n",
                   list(p.n_kv, [](Index v) { return v == 0 ? "same" : number(v); }));
  if (p.paired) {
    y += fmt::format("  head_dim: {}\n", list(p.d_k, number));
  } else {
    y += fmt::format("  d_k: {}\n  d_v: {}\n", list(p.d_k, number), list(p.d_v, number));
  }
  y += fmt::format("  causal: {}\n  scale: {}\n",
                   list(p.causal, [](bool b) { return b ? "true" : "false"; }),
                   list(p.scale, [&](double v) { return v == 0 ? "auto" : real(v); }));
  y += "methods:\n";
  for (const MethodSweep& method : sweep.methods) {
    y += fmt::format(
        "  - {{name: {}{}, label: {}", method.entry->info.name, params_text(method.params),
        quoted(!method.label.empty() ? method.label
                                     : default_label(sweep, *method.entry) +
                                           (method.weights.empty() ? "" : " (fitted)")));
    if (!method.weights.empty()) y += fmt::format(", weights: {}", quoted(method.weights));
    if (method.max_n > 0) y += fmt::format(", max_n: {}", method.max_n);
    if (!method.passes.empty()) y += fmt::format(", passes: {}", list(method.passes, pass_name));
    if (!method.threads.empty()) y += fmt::format(", threads: {}", list(method.threads, number));
    y += "}\n";
  }
  y += "tasks:\n";
  for (const TaskSweep& task : sweep.tasks)
    y += fmt::format("  - {{name: {}{}}}\n", task.entry->info.name, params_text(task.params));
  y += fmt::format(
      "measure:\n  min_time_s: {}\n  repetitions: {}\n  warmup_s: {}\n  input_sets: {}\n"
      "  decode_tokens: {}\n  max_spread: {}\n  timeout_s: {}\n  memory_limit_mb: {}\n  pin: {}\n"
      "  examples: {}\n  feed: {}\n  temperature: {}\n",
      real(m.min_time_s), m.repetitions, real(m.warmup_s), m.input_sets, m.decode_tokens,
      real(m.max_spread), real(m.timeout_s), m.memory_limit_mb, m.pin, m.examples, m.feed,
      real(m.temperature));
  y += fmt::format("error:\n  max_gflop: {}\n  rows: {}\n  matrix_rows: {}\n  top_k: {}\n",
                   real(e.max_gflop), e.rows, e.matrix_rows, e.top_k);
  for (const auto& [section, pass, options] :
       {std::tuple{"train", Pass::train, &sweep.train}, {"fit", Pass::fit, &sweep.fit}}) {
    if (!has_pass(sweep, pass)) continue;
    y += fmt::format("{}:\n", section);
    for (const ParamAxis& axis : *options)
      y += fmt::format("  {}: {}\n", axis.name, list(axis.values, scalar));
  }
  if (!sweep.plugins.empty()) {
    y += "plugins:\n";
    for (const std::string& plugin : sweep.plugins) y += fmt::format("  - {}\n", quoted(plugin));
  }
  return y + fmt::format("plots: {}\n", sweep.plots);
}

}  // namespace subquad
