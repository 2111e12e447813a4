// The train pass: one training run of a model whose attention layers are the cell's method.
#pragma once

#include "harness/model/trainer.h"
#include "harness/sweep/cell.h"

namespace subquad {

// Trains, tests, and fills the worker's columns and the curve. Throws as measure_cell does. With a
// directory goes on from the checkpoint there, if there is one.
void train_cell(const Cell& cell, const std::string& directory, JobResult* result);

// A cell's setup; `task` must outlive it. Unsupported when the task has no labels.
TrainSetup train_setup(const Cell& cell, const Task& task);

// The columns of a report: accuracy, loss, bits, ...
std::map<std::string, std::string> train_columns(const TrainReport& report,
                                                 const TrainOptions& options,
                                                 const std::vector<Floor>& floors);

// Lines of curves.csv from `step` on.
std::vector<std::string> curve_lines(const TrainReport& report);

}  // namespace subquad
