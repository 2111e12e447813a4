// What `merge` and `submit --engine local` share.
#pragma once

#include "harness/sweep/merge.h"

namespace subquad {

// Merges, says on stderr what came of it, and returns the exit status.
int merge_and_report(const MergeOptions& options);

}  // namespace subquad
