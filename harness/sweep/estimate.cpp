#include "harness/sweep/estimate.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>

#include "harness/core/error.h"
#include "harness/core/registry.h"
#include "harness/measure/statistics.h"
#include "harness/sweep/plan.h"

namespace subquad {
namespace {

// Guesses, within a factor of three or so on processors of today.
constexpr double kRate = 2e10;           // operations per second and thread, float32
constexpr double kTrainRate = 4e10;      // the same of training, which is large matrix products
constexpr double kReferenceRate = 4e9;   // the same of the exact reference, in double
constexpr double kProcess = 0.03;        // start, inputs, check and end of a worker, small n
constexpr double kBaseBytes = 24 << 20;  // a worker that has done nothing yet
constexpr int kCheckCalls = 4;           // calls of a pass that are not timed

std::string rate_key(const std::string& method, const std::string& settings, std::string_view pass,
                     const std::string& threads) {
  return fmt::format("{}|{}|{}|{}", method, settings, pass, threads);
}

// What a method declares of a cell; zeros when it declares nothing, or is not registered.
struct Declared {
  double flops = 0, bytes = 0;
};

Declared declared(const Cell& cell) {
  const MethodEntry* entry = Registry::instance().find_method(cell.method);
  // The runner stays clear of foreign code: a plugin's methods are estimated from the options
  // alone, those of methods/peers too.
  if (entry == nullptr || !entry->file.starts_with("methods/") ||
      entry->file.starts_with("methods/peers/"))
    return {};
  try {
    const auto method = entry->create(cell.method_settings);
    if (!unsupported_reason(*entry, *method, cell.problem, cell.pass).empty()) return {};
    return {method->flops(cell.problem, cell.pass), method->extra_bytes(cell.problem, cell.pass)};
  } catch (const std::exception&) {  // the worker will say it better
    return {};
  }
}

double count(const Cell& cell, const char* key) {
  return static_cast<double>(std::get<Index>(cell.train.at(key)));
}

// Width of the model and learned numbers of one layer.
struct Model {
  double width = 0, layer_numbers = 0;
};
Model model_of(const Cell& cell) {
  const Problem& p = cell.problem;
  Model model;
  model.width =
      count(cell, "d_model") > 0 ? count(cell, "d_model") : static_cast<double>(p.heads * p.d_v);
  model.layer_numbers =
      (4 + 2 * std::get<double>(cell.train.at("mlp"))) * model.width * model.width;
  return model;
}

// Six operations per parameter and token, and attention as if it were dense.
double train_seconds(const Cell& cell) {
  const Problem& p = cell.problem;
  const Model model = model_of(cell);
  const double per_token =
      count(cell, "layers") * (model.layer_numbers + 2 * static_cast<double>(p.n) * model.width);
  return 6 * count(cell, "steps") * static_cast<double>(p.batch * p.n) * per_token / kTrainRate /
         cell.threads;
}

// Value, gradient and two moments of every parameter; about thirty activations a token and layer.
double train_bytes(const Cell& cell, double attention_bytes) {
  const Model model = model_of(cell);
  const double tokens = static_cast<double>(cell.problem.batch * cell.problem.n);
  return count(cell, "layers") *
         (16 * model.layer_numbers + 4 * 30 * tokens * model.width + attention_bytes);
}

double call_seconds(const Cell& cell, double call_s) {
  const MeasureOptions& m = cell.measure;
  if (cell.pass == Pass::fit) {
    // Forward and backward of every step.
    const auto steps = cell.fit.find("steps");
    return 3 * call_s *
           (steps == cell.fit.end() ? 1 : static_cast<double>(std::get<Index>(steps->second)));
  }
  if (cell.pass == Pass::decode) {  // call_s is that of a token; the history is fed in every set
    const double tokens = static_cast<double>(std::min(m.decode_tokens, cell.problem.n));
    return m.warmup_s + m.repetitions * std::max(m.min_time_s, tokens * call_s) +
           m.input_sets * static_cast<double>(cell.problem.n) * call_s;
  }
  return m.warmup_s + m.repetitions * std::max(m.min_time_s, call_s) + kCheckCalls * call_s;
}

double tensor_bytes(const Cell& cell) {
  const Problem& p = cell.problem;
  const double inputs = static_cast<double>(p.n * p.d_k + p.n_kv * (p.d_k + p.d_v));
  const double output = static_cast<double>(p.n * p.d_v);
  const double per_set = inputs + output + (cell.wants_gradients() ? inputs + output : 0);
  return 4 * static_cast<double>(p.batch * p.heads) * per_set * (cell.measure.input_sets + 1);
}

}  // namespace

void Estimator::learn(const std::vector<RowFields>& rows) {
  for (const RowFields& row : final_rows(rows)) {
    const Status status = status_from_name(field(row, "status"));
    if (status == Status::interrupted) continue;
    Seen& seen = cells_[field(row, "cell_id")];
    if (const double wall = number_field(row, "wall_s").value_or(0); wall > 0)
      seen.seconds.push_back(wall);
    seen.bytes = std::max(seen.bytes, number_field(row, "vm_hwm_bytes").value_or(0));
    if (const double gflops = number_field(row, "gflops").value_or(0); gflops > 0)
      rates_[rate_key(field(row, "method"), field(row, "method_params"), field(row, "pass"),
                      field(row, "threads"))]
          .push_back(1e9 * gflops);
  }
}

Estimate Estimator::of(const Cell& cell) const {
  const Declared method = declared(cell);
  Estimate estimate;
  if (cell.pass == Pass::train && !cell.train.empty()) {
    estimate.seconds = train_seconds(cell);
    estimate.bytes = kBaseBytes + train_bytes(cell, method.bytes);
  } else {
    double rate = kRate * cell.threads;
    const auto known = rates_.find(rate_key(cell.method, to_string(cell.method_settings),
                                            name(cell.pass), std::to_string(cell.threads)));
    if (known != rates_.end()) {
      rate = median(known->second);
      estimate.from = "rate";
    }
    estimate.seconds = kProcess + call_seconds(cell, method.flops / rate);
    estimate.bytes =
        kBaseBytes + tensor_bytes(cell) + std::max(0.0, method.bytes) + reference_bytes(cell);
  }
  const auto seen = cells_.find(cell.id());
  if (seen == cells_.end()) return estimate;
  if (!seen->second.seconds.empty()) {
    estimate.seconds = median(seen->second.seconds);
    estimate.from = "measured";
  }
  if (seen->second.bytes > 0) estimate.bytes = seen->second.bytes;
  return estimate;
}

double reference_seconds(const Cell& cell) {
  if (!needs_reference(cell)) return 0;
  const Problem& p = cell.problem;
  double flops = 2 * static_cast<double>(p.batch * p.heads) * p.visible_entries() *
                 static_cast<double>(p.d_k + p.d_v);
  if (flops > 1e9 * cell.error.max_gflop)
    flops *= static_cast<double>(std::min(p.n, cell.error.rows)) / static_cast<double>(p.n);
  return kProcess + (cell.wants_gradients() ? 3 : 1) * flops / kReferenceRate;
}

std::string human_bytes(double bytes) {
  for (const char* unit : {"B", "KiB", "MiB"}) {
    if (bytes < 1024) return fmt::format("{:.3g} {}", bytes, unit);
    bytes /= 1024;
  }
  return fmt::format("{:.3g} GiB", bytes);
}

}  // namespace subquad
