#include "harness/measure/train_cell.h"

#include <cmath>

#include "harness/core/method_weights.h"
#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/machine.h"
#include "harness/measure/memory.h"
#include "harness/measure/processors.h"

namespace subquad {
namespace {

std::string text(double value) { return to_string(ParamValue(value)); }

}  // namespace

TrainSetup train_setup(const Cell& cell, const Task& task) {
  const TaskEntry& entry = Registry::instance().task(cell.task);
  if (!entry.info.labelled)
    throw Unsupported(fmt::format("{} has no labels to train on", cell.task));
  if (cell.task_settings.contains("from") &&
      std::holds_alternative<std::string>(cell.task_settings.at("from")) &&
      !std::get<std::string>(cell.task_settings.at("from")).empty())
    throw Unsupported("from: gives q, k and v of a trained model; train on the task without it");
  const std::string invalid = invalid_reason(cell.problem);
  if (!invalid.empty()) throw UserError("problem: " + invalid);
  TrainSetup setup;
  setup.train = resolve("train", specs_of(train_fields()), cell.train);
  setup.options = subquad::bind(train_fields(), setup.train);
  for (std::string* path : {&setup.options.init, &setup.options.teacher, &setup.options.save})
    *path = fill_path(*path, cell.method, cell.label, cell.seed, cell.problem.n);
  for (Index i = 0; i < setup.options.layers; ++i)
    setup.methods.push_back({cell.method, cell.method_settings});
  setup.task = &task;
  setup.problem = cell.problem;
  setup.seed = cell.seed;
  setup.identity = cell.id();
  setup.task_name = cell.task;
  setup.task_settings = resolve(cell.task, entry.params, cell.task_settings);
  return setup;
}

// "TEACHER;fit;train": all that the weights went through, or "initial". A checkpoint that has no
// weights for the methods is marked: what nothing follows is not trained.
std::string origin(const TrainReport& report, const TrainOptions& options) {
  std::string text = options.init.empty() ? options.teacher : options.init;
  const auto then = [&](const char* what) {
    text += text.empty() ? what : fmt::format(";{}", what);
  };
  if (report.methods_initial) text += " without methods";
  if (report.fit.steps > 0) then("fit");
  if (report.steps > 0) then("train");
  return text.empty() ? "initial" : text;
}

std::map<std::string, std::string> train_columns(const TrainReport& report,
                                                 const TrainOptions& options,
                                                 const std::vector<Floor>& floors) {
  std::map<std::string, std::string> columns;
  const auto put = [&](const std::string& column, double value) {
    if (std::isfinite(value)) columns[column] = text(value);
  };
  const auto count = [&](const std::string& column, Index value) {
    columns[column] = fmt::format("{}", value);
  };
  put("accuracy", report.test.accuracy);
  put("loss", report.test.loss);
  put("bits", report.test.loss / std::log(2.0));
  put("perplexity", std::exp(report.test.loss));
  columns["evaluation"] = fmt::format(
      "final weights, {} labels of the test split, argmax over all "
      "classes",
      report.test.labels);
  put("validation_accuracy", report.validation.accuracy);
  put("validation_loss", report.validation.loss);
  put("best_accuracy", report.best_accuracy);
  count("steps", report.steps);
  columns["stopped"] = report.stopped;
  count("best_step", report.best_step);
  if (report.half_step > 0) count("half_step", report.half_step);
  count("parameters", report.parameters);
  if (report.steps > 0) put("time_s", report.train_s / static_cast<double>(report.steps));
  if (report.tokens_per_s > 0) put("tokens_per_s", report.tokens_per_s);
  std::string list;
  for (const Floor& floor : floors)
    list += fmt::format("{}{} ({})={}", list.empty() ? "" : ";", floor.name, floor.metric,
                        text(floor.value));
  columns["floors"] = list;
  columns["learned_from"] = origin(report, options);
  if (report.fit.steps > 0) {
    count("fit_steps", report.fit.steps);
    put("fit_s", report.fit_s);
    put("fit_first_loss", report.fit.first_loss);
    put("fit_last_loss", report.fit.last_loss);
  }
  columns["build"] = build_description();
  return columns;
}

std::vector<std::string> curve_lines(const TrainReport& report) {
  std::vector<std::string> lines;
  for (const CurvePoint& p : report.curve)
    lines.push_back(fmt::format("{},{},{},{},{},{:.3f}", p.step, p.train_loss, p.validation.loss,
                                p.validation.accuracy, p.learning_rate, p.seconds));
  return lines;
}

void train_cell(const Cell& cell, const std::string& directory, JobResult* result) {
  set_threads(cell.threads);
  if (cell.measure.pin) pin_threads(cell.threads);
  const std::unique_ptr<Task> task = make_task(cell.task, cell.task_settings);
  const std::string reason = task->unsupported(cell.problem);
  if (!reason.empty()) throw Unsupported(reason);
  const TrainSetup setup = train_setup(cell, *task);
  const std::int64_t before = live_bytes();
  reset_peak();
  const TrainReport report = train(setup, {directory, true}, {});
  result->columns = train_columns(report, setup.options, task->floors(cell.problem.n, cell.seed));
  if (hooks_active()) result->columns["peak_bytes"] = fmt::format("{}", peak_bytes() - before);
  result->columns["vm_hwm_bytes"] = fmt::format("{}", vm_hwm_bytes());
  result->curve = curve_lines(report);
  result->status = report.stopped == "diverged" ? Status::wrong : Status::ok;
  if (report.stopped == "diverged")
    result->reason = fmt::format("the loss was not finite at step {}", report.steps);
}

}  // namespace subquad
