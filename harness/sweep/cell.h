// A cell: one point of a sweep, with exactly one value per axis; and what travels between the
// runner and its worker processes.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "harness/core/params.h"
#include "harness/core/problem.h"
#include "harness/core/random.h"

namespace subquad {

// How a cell is measured. Defaults are those of the config; see configs/README.md.
struct MeasureOptions {
  double min_time_s = 0.1;    // one repetition lasts at least this long; larger = less timer noise
  int repetitions = 5;        // samples per round
  double warmup_s = 0.02;     // untimed calls before the first sample
  int input_sets = 3;         // pre-made inputs that timed calls rotate over
  Index decode_tokens = 64;   // decode: the last tokens of the history are timed
  double max_spread = 0.1;    // uncertainty of the median above which a row is `unstable`
  double timeout_s = 120;     // wall time of the whole worker
  Index memory_limit_mb = 0;  // address space of the worker; 0 = 90 % of the free memory
  bool pin = false;           // bind the worker's threads to cores 0 .. threads-1
  // Decoding of whole models:
  Index examples = 32;           // of the test split
  std::string feed = "teacher";  // after the prompt: the example's tokens, or "own" ones
  double temperature = 1;        // of the model's own draws; 0 = the most probable token
};

// How the error against exact attention is judged.
struct ErrorOptions {
  double max_gflop = 20;   // above this cost of the exact reference only sampled rows are computed
  Index rows = 256;        // query rows per (batch, head) sampled then
  Index matrix_rows = 64;  // rows of the attention matrix for KL and top-k mass; 0 = off
  Index top_k = 32;        // k of the top-k mass
};

struct Cell {
  std::string method;
  Settings method_settings;  // resolved: every parameter has its value
  std::string label;         // display name in figures; default: method and its swept parameters
  std::string task;
  Settings task_settings;  // resolved
  Problem problem;         // as the task supplies it (Task::adapt)
  Pass pass = Pass::forward;
  int threads = 1;
  Seed seed = 0;
  MeasureOptions measure;
  ErrorOptions error;
  Settings train;                    // train pass: every training option, resolved; else empty
  Settings fit;                      // fit pass: every option of fitting, resolved; else empty
  std::string weights;               // file of the method's parameters; "" = as it makes them
  std::vector<std::string> plugins;  // shared objects to load first, absolute paths

  // 16 hex digits over everything that determines the result: not the label, the plugin paths,
  // the timeout, the memory limit or the spread limit.
  std::string id() const;
  // 16 hex digits over what determines the exact reference: task, settings, problem, seed, error
  // options, and whether gradients are wanted. Cells that share it share one reference file.
  std::string reference_id() const;
  // Decoding of a trained model with all its layers (`from: CHECKPOINT, layer: -1`).
  bool whole_model() const;
  bool wants_gradients() const { return pass == Pass::backward || pass == Pass::forward_backward; }
  std::string str() const;    // one line for humans, with every parameter
  std::string brief() const;  // "window 64 forward mqar n=1024 causal": for progress lines
};

void to_json(nlohmann::json& json, const Cell& cell);
void from_json(const nlohmann::json& json, Cell& cell);

// What the runner asks of a worker process.
struct Job {
  Cell cell;
  int round = 0;
  bool make_reference = false;  // compute and store the reference instead of measuring
  // Measure the memory's bandwidth on the cell's threads instead: answers column bandwidth_gbs.
  bool measure_bandwidth = false;
  std::string reference_path;   // file to read the exact reference from, or to write it to
  std::string train_directory;  // train pass: checkpoints, from which a killed run goes on; or ""
};

void to_json(nlohmann::json& json, const Job& job);
void from_json(const nlohmann::json& json, Job& job);

// Statuses of a row, exclusive and exhaustive; see results/README.md.
enum class Status { ok, unstable, wrong, unsupported, oom, timeout, crash, error, interrupted };
inline constexpr Status kAllStatuses[] = {
    Status::ok,      Status::unstable, Status::wrong, Status::unsupported, Status::oom,
    Status::timeout, Status::crash,    Status::error, Status::interrupted};
std::string_view name(Status status);
Status status_from_name(std::string_view text);  // UserError when unknown
// Statuses that make `subquad run` end with status 1: everything but ok, unstable, unsupported.
bool failed(Status status);

// The answer of a worker: the columns that it fills (see kColumns in row.h), already as CSV text,
// and the raw timing samples in seconds per call.
struct JobResult {
  Status status = Status::error;
  std::string reason;
  std::map<std::string, std::string> columns;
  std::vector<double> samples;
  std::vector<std::string> curve = {};  // train pass: lines of curves.csv, without the identity
};

void to_json(nlohmann::json& json, const JobResult& result);
void from_json(const nlohmann::json& json, JobResult& result);

}  // namespace subquad
