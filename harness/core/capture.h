// Q, K, V of a trained model behind any labelled task: `{name: mqar, from: CHECKPOINT}`. Every
// labelled task gets these keys when it is registered; harness/model supplies what is behind them.
#pragma once

#include <memory>

#include "harness/core/task.h"

namespace subquad {

// Sets of Task::fill from here on are for fitting a method's parameters, never for judging it.
inline constexpr Index kFirstFitSet = Index{1} << 20;

struct CaptureParams {
  std::string from;  // checkpoint, or directory of a training run; "" = the task's own q, k, v
  Index layer = 0;
  Index head = -1;    // -1 = all
  bool cache = true;  // whole models: off, every token is the forward of all up to it
};

// from, layer, head, cache.
const std::vector<Field<CaptureParams>>& capture_fields();

// Makes the task whose q, k, v are those of the model. `settings` are the resolved settings of the
// task `entry`, without those of capture_fields().
using MakeCaptured = std::unique_ptr<Task> (*)(const CaptureParams& params, const TaskEntry& entry,
                                               const Settings& settings);
// Called once, by harness/model.
void set_make_captured(MakeCaptured make);

// Adds the keys to a labelled task that has none of these names, and makes `create` obey them.
void accept_capture(TaskEntry* entry);

// Settings as they identify a cell. Without `from` the keys of capture are left out; with it, those
// of the task that are at their default, for the model's hold.
Settings identifying(const TaskEntry& entry, const Settings& resolved);

}  // namespace subquad
