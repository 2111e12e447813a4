// The decode pass of a whole model: token by token, with the cell's method in every layer.
#pragma once

#include "harness/sweep/cell.h"

namespace subquad {

// The model of the task's `from`. After a prompt of n - decode_tokens tokens, the rest is decoded:
// quality over `examples`, then time. Fills the worker's columns; throws as
// measure_cell does.
void decode_model_cell(const Cell& cell, JobResult* result);

}  // namespace subquad
