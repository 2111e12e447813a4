#include "harness/sweep/runner.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "harness/core/registry.h"
#include "harness/measure/memory.h"
#include "harness/sweep/attempts_log.h"
#include "harness/sweep/memory_limit.h"
#include "harness/sweep/outcome.h"
#include "harness/sweep/pool.h"
#include "harness/sweep/process.h"
#include "harness/sweep/results_store.h"
#include "harness/sweep/utc_time.h"

namespace subquad {
namespace {

using Key = std::pair<std::string, int>;  // cell id, round

// A sanitizer maps terabytes of address space, which no limit allows.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kLimitMemory = false;
#else
constexpr bool kLimitMemory = true;
#endif

int usable_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(1, CPU_COUNT(&cores)) : 1;
}

// Columns that say what was asked, and by whom.
RowFields asked_columns(const Cell& cell, const Provenance& provenance) {
  RowFields row;
  const Problem& p = cell.problem;
  row["cell_id"] = cell.id();
  row["method"] = cell.method;
  row["label"] = cell.label;
  row["method_params"] = to_string(cell.method_settings);
  if (const MethodEntry* entry = Registry::instance().find_method(cell.method)) {
    row["family"] = entry->info.family;
    row["approximates"] = name(entry->info.approximates);
    row["oracle"] = entry->info.oracle ? "1" : "0";
    row["bounded_by"] = fmt::format("{}", fmt::join(entry->info.bounded_by, ";"));
  }
  row["task"] = cell.task;
  row["task_params"] = to_string(cell.task_settings);
  row["train_params"] = to_string(cell.train);
  row["fit_params"] = to_string(cell.fit);
  row["pass"] = name(cell.pass);
  row["causal"] = p.causal ? "1" : "0";
  for (const auto& [column, size] : {std::pair{"batch", p.batch},
                                     {"heads", p.heads},
                                     {"n", p.n},
                                     {"n_kv", p.n_kv},
                                     {"d_k", p.d_k},
                                     {"d_v", p.d_v}})
    row[column] = std::to_string(size);
  row["scale"] = fmt::format("{}", p.logit_scale());
  row["threads"] = std::to_string(cell.threads);
  row["seed"] = std::to_string(cell.seed);
  row["build_id"] = provenance.build_id;
  row["cpu"] = provenance.cpu;
  row["host"] = provenance.host;
  return row;
}

// One run of run_sweep.
class Sweep {
 public:
  Sweep(const Config& config, const RunOptions& options, const Provenance& provenance,
        Progress& progress);
  RunReport run();

 private:
  bool stopped() const { return options_.stop != nullptr && options_.stop->signal() != 0; }
  bool final(Status status) const {
    return status != Status::interrupted && !(options_.retry_failed && failed(status));
  }
  void read_earlier_rows();
  void check_resources(const std::vector<Step>& todo) const;
  void write_descriptions();
  void run_step(const Step& step);
  std::string reference_for(const Cell& cell);  // path, or "" when there is none
  std::string bandwidth_for(const Cell& cell);  // GB/s as CSV text, or "" when there is none
  ProcessSpec spec_for(const Job& job) const;
  void keep_log(const std::string& title, const std::string& log);
  RunReport report() const;

  const Config& config_;
  const RunOptions& options_;
  const Provenance& provenance_;
  Progress& progress_;
  std::vector<std::string> ids_;  // of config_.cells
  RunDirectory directory_;
  ResultsStore store_;
  AttemptsLog attempts_;
  std::optional<AppendFile> worker_log_;                  // made when a worker prints something
  std::map<Key, Status> status_;                          // of the last row of every cell and round
  std::map<std::string, std::string> failed_references_;  // id -> why
  std::map<std::string, std::size_t> doubts_;             // flag -> rows of this run
  struct Measured {
    std::string gbs;
    double at = 0;  // monotonic seconds
  };
  std::map<std::pair<int, bool>, Measured> bandwidth_;  // by threads and pinning
  std::vector<std::string> warnings_;
  std::size_t earlier_ = 0;
};

std::vector<std::string> ids_of(const std::vector<Cell>& cells) {
  std::vector<std::string> ids;
  std::set<std::string> seen;
  for (const Cell& cell : cells) {
    ids.push_back(cell.id());
    SUBQUAD_CHECK(seen.insert(ids.back()).second, "cell {} twice: {}", ids.back(), cell.str());
  }
  return ids;
}

Sweep::Sweep(const Config& config, const RunOptions& options, const Provenance& provenance,
             Progress& progress)
    : config_(config),
      options_(options),
      provenance_(provenance),
      progress_(progress),
      ids_(ids_of(config.cells)),
      directory_(options.directory,
                 Plan{{ids_.begin(), ids_.end()},
                      config.rounds,
                      config.shard,
                      config.shards,
                      {config.sweep_cells.begin(), config.sweep_cells.end()}},
                 options.existing, options.follow_links),
      store_(directory_.fd(), directory_.path(), options.file_calls),
      attempts_(directory_.fd(), directory_.path(), options.file_calls) {}

void Sweep::read_earlier_rows() {
  std::size_t other_build = 0, other_machine = 0;
  const std::set<std::string> asked(ids_.begin(), ids_.end());
  for (const RowFields& row : store_.rows()) {
    const Key key{row.at("cell_id"), std::stoi(row.at("round"))};
    status_[key] = status_from_name(row.at("status"));
    attempts_.known(key.first, key.second, std::stoi("0" + row.at("attempt")));
    if (!asked.contains(key.first)) continue;
    if (row.at("build_id") != provenance_.build_id) ++other_build;
    if (row.at("cpu") != provenance_.cpu || row.at("host") != provenance_.host) ++other_machine;
  }
  for (const auto& [count, what] : {std::pair{other_build, "by another build of subquad"},
                                    {other_machine, "on another machine"}})
    if (count > 0)
      warnings_.push_back(fmt::format(
          "{} earlier rows were measured {}; --fresh measures everything anew", count, what));
  for (const std::string& note : store_.torn()) warnings_.push_back(note);
}

void Sweep::check_resources(const std::vector<Step>& todo) const {
  double bytes = 0;
  std::set<std::string> references;
  const std::int64_t available = available_memory_bytes();
  for (const Step& step : todo) {
    const Cell& cell = config_.cells[step.cell];
    bytes += 2048 + 64.0 * cell.measure.repetitions;  // a row is about 900 bytes
    if (needs_reference(cell) && references.insert(cell.reference_id()).second)
      bytes += reference_bytes(cell);
    if (kLimitMemory && available > 0 && cell.measure.memory_limit_mb > (available >> 20))
      throw UserError(fmt::format(
          "memory_limit_mb: got {}, but only {} MiB of memory are free; a worker would be swapped "
          "out instead of stopped",
          cell.measure.memory_limit_mb, available >> 20));
  }
  const double free = directory_.free_bytes();
  if (free < bytes)
    throw StorageError(fmt::format("{}: {:.3g} MB are free, this run needs about {:.3g} MB",
                                   directory_.path(), free / 1e6, bytes / 1e6));
}

void Sweep::write_descriptions() {
  if (!directory_.plan_is_part() || !directory_.has("config.resolved.yaml"))
    directory_.write_file("config.resolved.yaml", config_.resolved_yaml);
  if (!directory_.has("machine.json")) {
    directory_.write_file("machine.json", provenance_.machine_json);
  } else if (std::any_of(store_.rows().begin(), store_.rows().end(), [&](const RowFields& row) {
               return row.at("build_id") != provenance_.build_id ||
                      row.at("host") != provenance_.host || row.at("cpu") != provenance_.cpu;
             })) {
    directory_.write_file(fmt::format("machine-{}.json", utc_time_compact()),
                          provenance_.machine_json);
  }
}

ProcessSpec Sweep::spec_for(const Job& job) const {
  const MeasureOptions& measure = job.cell.measure;
  ProcessSpec spec;
  spec.command = options_.worker_command;
  spec.environment = worker_environment(job.cell.threads);
  spec.input = nlohmann::json(job).dump();
  spec.timeout_s = measure.timeout_s;
  spec.grace_s = options_.grace_s;
  spec.stop = options_.stop;
  if (kLimitMemory)
    spec.address_space_bytes = measure.memory_limit_mb > 0
                                   ? std::int64_t{measure.memory_limit_mb} << 20
                                   : available_memory_bytes() / 10 * 9 / options_.runners;
  return spec;
}

void Sweep::keep_log(const std::string& title, const std::string& log) {
  if (log.empty()) return;
  try {
    if (!worker_log_)
      worker_log_.emplace(directory_.fd(), directory_.path(), "worker.log",
                          Durability::process_death);
    worker_log_->append(
        fmt::format("==== {} {}\n{}{}", utc_time(), title, log, log.ends_with('\n') ? "" : "\n"));
  } catch (const StorageError& error) {
    warnings_.push_back(error.what());  // what a method printed is no result
  }
}

std::string Sweep::reference_for(const Cell& cell) {
  namespace fs = std::filesystem;
  const std::string id = cell.reference_id();
  if (failed_references_.contains(id)) return "";
  // Another build may compute or store it differently.
  const std::string path =
      fmt::format("{}/{}-{}.ref", directory_.cache_directory(), id, provenance_.build_id);
  std::error_code ignored;
  if (fs::exists(path, ignored)) return path;

  Job job;
  job.cell = cell;
  job.make_reference = true;
  job.reference_path = path + ".part";
  // It is not timed: as many threads as there are, and time enough, since the limit of the config
  // is meant for methods.
  job.cell.threads = usable_cores();
  job.cell.measure.pin = false;
  job.cell.measure.timeout_s = std::max(cell.measure.timeout_s, 300.0);
  progress_.reference(cell);
  const ProcessSpec spec = spec_for(job);
  const ProcessEnd end = run_process(spec);
  keep_log(fmt::format("exact reference {} of {}", id, cell.str()), end.log);
  const JobResult result = judge(end, spec);
  if (result.status == Status::interrupted) return "";
  std::string why;
  if (result.status != Status::ok && result.status != Status::unstable)
    why = fmt::format("{}: {}", name(result.status), result.reason);
  else if (!fs::exists(job.reference_path, ignored))
    why = "the worker left no file";
  if (why.empty()) {
    // Whole on the disk before it gets its name: a reference that exists is a whole one.
    const int file = open(job.reference_path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
      if (fdatasync(file) != 0) why = "it cannot be written to the disk";
      close(file);
    }
    if (why.empty() && std::rename(job.reference_path.c_str(), path.c_str()) != 0)
      why = "it cannot be renamed";
  }
  if (why.empty()) return path;
  fs::remove(job.reference_path, ignored);
  failed_references_[id] = why;
  warnings_.push_back(
      fmt::format("no exact reference for {} {}: {}", cell.task, cell.problem.str(), why));
  return "";
}

// Measured anew when it is a minute old: clocks and neighbours change, and it takes half a second.
std::string Sweep::bandwidth_for(const Cell& cell) {
  constexpr double kMaxAge = 60;  // seconds
  Measured& last = bandwidth_[{cell.threads, cell.measure.pin}];
  if (last.at > 0 && monotonic_seconds() - last.at < kMaxAge) return last.gbs;
  Job job;
  job.cell = cell;
  job.measure_bandwidth = true;
  job.cell.measure.timeout_s = 60;
  job.cell.measure.memory_limit_mb = 0;  // meant for methods
  const ProcessSpec spec = spec_for(job);
  const ProcessEnd end = run_process(spec);
  keep_log(fmt::format("bandwidth of {} threads", cell.threads), end.log);
  const JobResult result = judge(end, spec);
  if (result.status == Status::interrupted) return "";
  const auto found = result.columns.find("bandwidth_gbs");
  last.gbs = found == result.columns.end() ? "" : found->second;
  last.at = monotonic_seconds();
  if (last.gbs.empty()) {
    last.at += 1e9;  // not again in this run
    warnings_.push_back(fmt::format("the bandwidth of the memory could not be measured: {}: {}",
                                    name(result.status), result.reason));
  }
  return last.gbs;
}

void Sweep::run_step(const Step& step) {
  const Cell& cell = config_.cells[step.cell];
  const std::string& id = ids_[step.cell];
  Job job;
  job.cell = cell;
  job.round = step.round;
  if (needs_reference(cell)) job.reference_path = reference_for(cell);
  // Another build may compute other weights.
  if (cell.pass == Pass::train)
    job.train_directory = fmt::format("{}/train-{}-{}-{}", directory_.cache_directory(), id,
                                      step.round, provenance_.build_id);
  const std::string bandwidth = bandwidth_for(cell);
  if (stopped()) return;

  const int attempt = attempts_.start(id, step.round);
  RowFields row = asked_columns(cell, provenance_);
  row["round"] = std::to_string(step.round);
  row["attempt"] = std::to_string(attempt);
  row["started"] = utc_time();
  row["placement"] =
      fmt::format("processors={};runners={};pin={}", processor_list(usable_processor_list()),
                  options_.runners, cell.measure.pin ? 1 : 0);
  row["command"] = fmt::format("subquad run {} --filter cell={} --set rounds=1 --out {}",
                               shell_word(directory_.path() + "/config.resolved.yaml"), id,
                               shell_word("results/" + id));
  progress_.started(cell, step.round);

  const ProcessSpec spec = spec_for(job);
  const std::int64_t swapped = swapped_out_pages();
  const ProcessEnd end = run_process(spec);
  JobResult result = judge(end, spec);
  if (swapped_out_pages() > swapped)
    add_flag(result, "swapping", "memory was written to swap meanwhile");
  if (needs_reference(cell) && job.reference_path.empty() && result.status != Status::unsupported)
    add_flag(result, "reference_failed",
             "not compared with exact attention, since that failed: " +
                 failed_references_[cell.reference_id()]);
  keep_log(fmt::format("{} round {} attempt {}: {}", id, step.round, attempt, cell.str()), end.log);

  row.insert(result.columns.begin(), result.columns.end());
  if (result.columns.contains("time_s") && !bandwidth.empty()) {
    row["bandwidth_gbs"] = bandwidth;
    const double bytes = number_field(row, "state_bytes").value_or(0),
                 seconds = number_field(row, "time_s").value_or(0);
    if (cell.pass == Pass::decode && bytes > 0 && seconds > 0)
      row["fraction_of_bandwidth"] = to_string(
          ParamValue(1e-9 * bytes / seconds / number_field(row, "bandwidth_gbs").value_or(0)));
  }
  row["status"] = name(result.status);
  row["reason"] = result.reason;
  row["wall_s"] = fmt::format("{:.4f}", end.wall_s);
  store_.append(row, result.samples, result.curve);
  status_[{id, step.round}] = result.status;
  std::error_code ignored;  // what a timeout or a crash left is for the next attempt
  if (!job.train_directory.empty() && result.columns.contains("steps"))
    std::filesystem::remove_all(job.train_directory, ignored);
  if (result.status == Status::unstable) {
    std::string flags = row["flags"] + ";";
    for (std::size_t from = 0, to = 0; (to = flags.find(';', from)) != std::string::npos;
         from = to + 1)
      if (to > from) ++doubts_[flags.substr(from, flags.find_first_of(";:=", from) - from)];
  }
  progress_.finished(cell, step.round, result.status, result.reason, row["time_s"]);
}

RunReport Sweep::run() {
  read_earlier_rows();
  std::vector<Step> todo;
  double estimate = 0;
  std::size_t restarted = 0;
  for (const Step& step : make_plan(config_.cells.size(), config_.rounds, config_.seed)) {
    const auto known = status_.find({ids_[step.cell], step.round});
    if (known != status_.end() && final(known->second)) {
      ++earlier_;
      continue;
    }
    if (known == status_.end() && attempts_.last(ids_[step.cell], step.round) > 0) ++restarted;
    todo.push_back(step);
    estimate += estimated_seconds(config_.cells[step.cell]);
  }
  check_resources(todo);
  write_descriptions();
  if (!directory_.moved_to().empty())
    progress_.note(fmt::format("the earlier run is now in {}", directory_.moved_to()));
  if (earlier_ > 0)
    progress_.note(fmt::format("{} of {} rows are there already", earlier_,
                               config_.cells.size() * static_cast<std::size_t>(config_.rounds)));
  if (restarted > 0)
    progress_.note(
        fmt::format("{} cells were started before and left no row; they run again", restarted));
  for (const std::string& note : store_.torn()) progress_.note(note);

  progress_.begin(todo.size(), estimate);
  for (const Step& step : todo) {
    if (stopped()) break;
    run_step(step);
  }
  progress_.end();
  const RunReport result = report();
  if (result.complete()) directory_.remove_cache();
  attempts_.close();
  if (worker_log_) worker_log_->close();
  store_.close();
  return result;
}

RunReport Sweep::report() const {
  RunReport report;
  report.asked = config_.cells.size() * static_cast<std::size_t>(config_.rounds);
  report.earlier = earlier_;
  report.directory = directory_.path();
  report.signal = stopped() ? options_.stop->signal() : 0;
  report.warnings = warnings_;
  std::size_t rows = 0;
  for (const std::string& id : ids_)
    for (int round = 0; round < config_.rounds; ++round) {
      const auto known = status_.find({id, round});
      if (known == status_.end()) {
        ++report.missing;
      } else {
        ++report.counts[known->second];
        ++rows;
      }
    }
  SUBQUAD_CHECK(rows + report.missing == report.asked, "{} rows and {} missing of {} asked for",
                rows, report.missing, report.asked);
  SUBQUAD_CHECK(report.missing == 0 || report.signal != 0, "{} of {} cells have no row",
                report.missing, report.asked);
  if (!doubts_.empty()) {
    std::string text = "unstable rows of this run by reason:";
    for (const auto& [flag, count] : doubts_) text += fmt::format(" {} {}", count, flag);
    report.warnings.push_back(text);
  }
  return report;
}

}  // namespace

bool RunReport::complete() const { return missing == 0 && !counts.contains(Status::interrupted); }

int RunReport::exit_status() const {
  if (signal != 0) return 128 + signal;
  if (missing > 0) return 1;
  for (const auto& [status, count] : counts)
    if (count > 0 && failed(status)) return 1;
  return 0;
}

RunReport run_sweep(const Config& config, const RunOptions& options, const Provenance& provenance,
                    Progress& progress) {
  if (config.cells.empty()) throw UserError("there is no cell to run");
  return Sweep(config, options, provenance, progress).run();
}

std::string shell_word(const std::string& text) {
  const bool plain = !text.empty() && text.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789_./:=,+-@%") == std::string::npos;
  if (plain) return text;
  std::string word = "'";
  for (const char c : text) {
    if (c == '\'')
      word += "'\\''";
    else
      word += c;
  }
  return word + "'";
}

}  // namespace subquad
