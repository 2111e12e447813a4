// The worker process: runs one job and answers with one framed message. It is the only process
// that executes method code.
#pragma once

#include "harness/sweep/cell.h"

namespace subquad {

// Runs the job in this process and returns its result; never throws for what a method does wrong
// as long as the process survives (bad_alloc -> oom, exceptions -> error, NaN -> wrong, ...).
JobResult run_job(const Job& job);

// Entry point of `subquad worker`: reads the job as JSON from descriptor 3 until end of file, runs
// it, writes one frame to descriptor 4 and returns the process's exit status. The frame is
// "SQ1 <decimal length>\n<JSON of JobResult>\n"; a worker that ends without a whole frame crashed,
// whatever its exit status. Descriptors 3 and 4 are not visible to method code by accident: 4 is
// moved to a high number with close-on-exec before the job starts.
int worker_main();

}  // namespace subquad
