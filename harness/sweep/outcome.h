// What a worker's end means for its row.
#pragma once

#include "harness/sweep/cell.h"
#include "harness/sweep/process.h"

namespace subquad {

// The worker's answer if there is a whole one, else a status made from how it ended: `timeout`,
// `interrupted`, `oom` or `crash`, with the reason. Numbers that are not finite become missing, and
// only columns that a worker may fill are kept. Never throws for what a worker did.
JobResult judge(const ProcessEnd& end, const ProcessSpec& spec);

// Adds a doubt to the `flags` column; an ok row becomes unstable, with the reason.
void add_flag(JobResult& result, const std::string& flag, const std::string& reason);

}  // namespace subquad
