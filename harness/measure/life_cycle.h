// The life of a measured cell: prepare, check, time, judge the timed output, probe. See README.md.
#pragma once

#include "harness/sweep/cell.h"

namespace subquad {

// Measures `cell` with its number of threads. Fills `result`: status ok, unstable or wrong, the
// reason, the columns and the samples. Columns that were found before a failure stay in it.
//
// `reference_path` is the file with the exact reference, or empty: then it is computed here. A file
// that cannot be used is passed over with the flag reference_recomputed.
//
// Throws Unsupported before any method code but its constructor ran, and whatever the method
// throws.
void measure_cell(const Cell& cell, const std::string& reference_path, JobResult* result);

// Computes the exact reference of the cell and stores it.
void make_reference_file(const Cell& cell, const std::string& path);

}  // namespace subquad
