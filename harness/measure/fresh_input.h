// A probe for remembered answers: calls on content that the method has never seen, at the pointers
// that it knows, compared with the timed calls.
//
// v (for gradients dout) is scaled in place by a power of two: where the output is linear in it,
// the new output must be exactly that multiple of the old one, or it was remembered. An answer that
// follows but takes several times as long as the timed calls raises a suspicion, and pairs of a
// known call and an unseen one decide it: a disturbed machine is slow in both.
#pragma once

#include <string>
#include <vector>

#include "harness/measure/memory.h"
#include "harness/measure/pass_run.h"

namespace subquad {

struct FreshInputOptions {
  bool output_is_linear = true;  // in v; gradients always are in dout
  bool sign_free = false;  // negating q and k together leaves the output as it is (exact softmax)
  double typical_s = 0;    // median of the timed calls
  double (*now)() = monotonic_seconds;
};

// Probes set 0 and leaves its inputs changed. `known` are copies of its outputs before the probe,
// in the order of PassRun::outputs. Returns why the method is wrong, or "".
std::string probe_fresh_input(PassRun& run, const std::vector<Tensor>& known,
                              const FreshInputOptions& options);

}  // namespace subquad
