#include "harness/sweep/cell.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "harness/core/error.h"
#include "harness/core/settings_json.h"

namespace subquad {
namespace {

std::string hex(std::uint64_t word) { return fmt::format("{:016x}", word); }

std::string problem_key(const Problem& p) {
  return fmt::format("batch={} heads={} n={} n_kv={} d_k={} d_v={} causal={} scale={}", p.batch,
                     p.heads, p.n, p.n_kv, p.d_k, p.d_v, p.causal,
                     to_string(ParamValue(p.logit_scale())));
}

std::string error_key(const ErrorOptions& e) {
  return fmt::format("{} {} {} {}", to_string(ParamValue(e.max_gflop)), e.rows, e.matrix_rows,
                     e.top_k);
}

}  // namespace

bool Cell::whole_model() const {
  const auto layer = task_settings.find("layer");
  return pass == Pass::decode && layer != task_settings.end() && task_settings.contains("from") &&
         layer->second == ParamValue(Index{-1});
}

std::string Cell::id() const {
  const MeasureOptions& m = measure;
  std::string training = pass == Pass::train ? "|train|" + to_string(train) : "";
  if (pass == Pass::fit) training += "|fit|" + to_string(fit);
  if (whole_model())
    training +=
        fmt::format("|model|{} {} {}", m.examples, m.feed, to_string(ParamValue(m.temperature)));
  if (!weights.empty()) training += "|weights|" + weights;
  return hex(derive(seed, fmt::format("cell|{}|{}|{}|{}|{}|{}|{}|{} {} {} {} {} {}|{}{}", method,
                                      to_string(method_settings), task, to_string(task_settings),
                                      problem_key(problem), name(pass), threads,
                                      to_string(ParamValue(m.min_time_s)), m.repetitions,
                                      to_string(ParamValue(m.warmup_s)), m.input_sets,
                                      m.decode_tokens, m.pin, error_key(error), training)));
}

std::string Cell::reference_id() const {
  return hex(derive(seed, fmt::format("reference|{}|{}|{}|{}|{}", task, to_string(task_settings),
                                      problem_key(problem), wants_gradients(), error_key(error))));
}

std::string Cell::str() const {
  return fmt::format(
      "{}{}{}{} {} {}{}{} {} threads={} seed={}{}{}{}", method, method_settings.empty() ? "" : ":",
      to_string(method_settings), weights.empty() ? "" : " weights=" + weights, name(pass), task,
      task_settings.empty() ? "" : ":", to_string(task_settings), problem.str(), threads, seed,
      train.empty() && fit.empty() ? "" : " ", to_string(train), to_string(fit));
}

std::string Cell::brief() const {
  const std::string keys = problem.n_kv == problem.n ? "" : fmt::format(" n_kv={}", problem.n_kv);
  const Settings& learning = pass == Pass::fit ? fit : train;
  const auto rate = learning.find("learning_rate");
  return fmt::format(
      "{} {} {} n={}{}{}{}", label.empty() ? method : label, name(pass), task, problem.n, keys,
      problem.causal ? " causal" : "",
      rate == learning.end() ? "" : fmt::format(" learning_rate={}", to_string(rate->second)));
}

void to_json(nlohmann::json& json, const Cell& c) {
  json = {{"method", c.method},
          {"method_settings", settings_to_json(c.method_settings)},
          {"label", c.label},
          {"task", c.task},
          {"task_settings", settings_to_json(c.task_settings)},
          {"problem",
           {{"batch", c.problem.batch},
            {"heads", c.problem.heads},
            {"n", c.problem.n},
            {"n_kv", c.problem.n_kv},
            {"d_k", c.problem.d_k},
            {"d_v", c.problem.d_v},
            {"causal", c.problem.causal},
            {"scale", c.problem.scale}}},
          {"pass", name(c.pass)},
          {"threads", c.threads},
          {"seed", c.seed},
          {"measure",
           {{"min_time_s", c.measure.min_time_s},
            {"repetitions", c.measure.repetitions},
            {"warmup_s", c.measure.warmup_s},
            {"input_sets", c.measure.input_sets},
            {"decode_tokens", c.measure.decode_tokens},
            {"max_spread", c.measure.max_spread},
            {"timeout_s", c.measure.timeout_s},
            {"memory_limit_mb", c.measure.memory_limit_mb},
            {"pin", c.measure.pin},
            {"examples", c.measure.examples},
            {"feed", c.measure.feed},
            {"temperature", c.measure.temperature}}},
          {"error",
           {{"max_gflop", c.error.max_gflop},
            {"rows", c.error.rows},
            {"matrix_rows", c.error.matrix_rows},
            {"top_k", c.error.top_k}}},
          {"plugins", c.plugins}};
  if (!c.train.empty()) json["train"] = settings_to_json(c.train);
  if (!c.fit.empty()) json["fit"] = settings_to_json(c.fit);
  if (!c.weights.empty()) json["weights"] = c.weights;
}

void from_json(const nlohmann::json& json, Cell& c) {
  json.at("method").get_to(c.method);
  c.method_settings = settings_from_json(json.at("method_settings"));
  json.at("label").get_to(c.label);
  json.at("task").get_to(c.task);
  c.task_settings = settings_from_json(json.at("task_settings"));
  const nlohmann::json& p = json.at("problem");
  p.at("batch").get_to(c.problem.batch);
  p.at("heads").get_to(c.problem.heads);
  p.at("n").get_to(c.problem.n);
  p.at("n_kv").get_to(c.problem.n_kv);
  p.at("d_k").get_to(c.problem.d_k);
  p.at("d_v").get_to(c.problem.d_v);
  p.at("causal").get_to(c.problem.causal);
  p.at("scale").get_to(c.problem.scale);
  const auto pass = pass_from_name(json.at("pass").get<std::string>());
  SUBQUAD_CHECK(pass.has_value(), "unknown pass {}", json.at("pass").dump());
  c.pass = *pass;
  json.at("threads").get_to(c.threads);
  json.at("seed").get_to(c.seed);
  const nlohmann::json& m = json.at("measure");
  m.at("min_time_s").get_to(c.measure.min_time_s);
  m.at("repetitions").get_to(c.measure.repetitions);
  m.at("warmup_s").get_to(c.measure.warmup_s);
  m.at("input_sets").get_to(c.measure.input_sets);
  m.at("decode_tokens").get_to(c.measure.decode_tokens);
  m.at("max_spread").get_to(c.measure.max_spread);
  m.at("timeout_s").get_to(c.measure.timeout_s);
  m.at("memory_limit_mb").get_to(c.measure.memory_limit_mb);
  m.at("pin").get_to(c.measure.pin);
  m.at("examples").get_to(c.measure.examples);
  m.at("feed").get_to(c.measure.feed);
  m.at("temperature").get_to(c.measure.temperature);
  const nlohmann::json& e = json.at("error");
  e.at("max_gflop").get_to(c.error.max_gflop);
  e.at("rows").get_to(c.error.rows);
  e.at("matrix_rows").get_to(c.error.matrix_rows);
  e.at("top_k").get_to(c.error.top_k);
  json.at("plugins").get_to(c.plugins);
  if (json.contains("train")) c.train = settings_from_json(json.at("train"));
  if (json.contains("fit")) c.fit = settings_from_json(json.at("fit"));
  if (json.contains("weights")) json.at("weights").get_to(c.weights);
}

void to_json(nlohmann::json& json, const Job& job) {
  json = {{"cell", job.cell},
          {"round", job.round},
          {"make_reference", job.make_reference},
          {"measure_bandwidth", job.measure_bandwidth},
          {"reference_path", job.reference_path},
          {"train_directory", job.train_directory}};
}

void from_json(const nlohmann::json& json, Job& job) {
  json.at("cell").get_to(job.cell);
  json.at("round").get_to(job.round);
  json.at("make_reference").get_to(job.make_reference);
  json.at("measure_bandwidth").get_to(job.measure_bandwidth);
  json.at("reference_path").get_to(job.reference_path);
  json.at("train_directory").get_to(job.train_directory);
}

std::string_view name(Status status) {
  switch (status) {
    case Status::ok:
      return "ok";
    case Status::unstable:
      return "unstable";
    case Status::wrong:
      return "wrong";
    case Status::unsupported:
      return "unsupported";
    case Status::oom:
      return "oom";
    case Status::timeout:
      return "timeout";
    case Status::crash:
      return "crash";
    case Status::error:
      return "error";
    case Status::interrupted:
      return "interrupted";
  }
  return "?";
}

Status status_from_name(std::string_view text) {
  for (const Status status : kAllStatuses)
    if (name(status) == text) return status;
  throw UserError(fmt::format("unknown status \"{}\"", text));
}

bool failed(Status status) {
  return status != Status::ok && status != Status::unstable && status != Status::unsupported;
}

void to_json(nlohmann::json& json, const JobResult& result) {
  json = {{"status", name(result.status)},
          {"reason", result.reason},
          {"columns", result.columns},
          {"samples", result.samples}};
  if (!result.curve.empty()) json["curve"] = result.curve;
}

void from_json(const nlohmann::json& json, JobResult& result) {
  result.status = status_from_name(json.at("status").get<std::string>());
  json.at("reason").get_to(result.reason);
  json.at("columns").get_to(result.columns);
  json.at("samples").get_to(result.samples);
  if (json.contains("curve")) json.at("curve").get_to(result.curve);
}

}  // namespace subquad
