// The attention matrix that a method shows, against the exact one.
#pragma once

#include "harness/measure/cell_report.h"
#include "harness/measure/pass_run.h"

namespace subquad {

// Fills the columns of KL divergence and top-k mass from about matrix_rows rows of the attention
// matrix of set 0, where the method shows one. An extra: a failure here is a doubt and does not
// undo the measurement, except that of a method whose output is a matrix times v (MethodInfo::
// linear_in_v) the output of set 0 must be the shown matrix times v. Throws WrongResult.
void attention_matrix(const Cell& cell, bool linear_in_v, Method& method, PassRun& run,
                      CellReport& report);

// Of a decoder: the time of single steps, and the same columns from the keys that it showed in
// about matrix_rows of them. Columns as above.
void decoder_trace(const Cell& cell, PassRun& run, CellReport& report);

}  // namespace subquad
