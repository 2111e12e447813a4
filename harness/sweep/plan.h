// In which order the cells run, and what that will take.
#pragma once

#include <vector>

#include "harness/sweep/cell.h"

namespace subquad {

struct Step {
  std::size_t cell = 0;  // subscript into the cells
  int round = 0;
};

// Round after round, each in a shuffled order of its own, so that drift of the machine falls on all
// cells alike. A function of its arguments only.
std::vector<Step> make_plan(std::size_t cells, int rounds, Seed seed);

// Cells that are compared with each other and share an exact reference: dense and its methods on
// the same data. Trainings stand alone.
std::string comparison_group(const Cell& cell);

// The shard of every cell: whole comparison groups, the longest first, each to the shard that has
// least to do. A function of its arguments only, whatever the machine.
std::vector<int> shard_of_cells(const std::vector<Cell>& cells, int count);

// Shard `index` of `count` (index from 0). UserError unless 0 <= index < count.
std::vector<Cell> select_shard(const std::vector<Cell>& cells, int index, int count);

// Wall seconds of one round of a cell, without its reference (Estimator without earlier results).
double estimated_seconds(const Cell& cell);

// Bytes of the exact reference of a cell at most.
double reference_bytes(const Cell& cell);

// A row without an error against the exact reference is possible for this pass.
bool needs_reference(const Cell& cell);

}  // namespace subquad
