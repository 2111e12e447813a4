// Checks that follow from what a method declares about itself: every registered method, built in or
// plugin, is tested by them without a line of its own. Used by the test suite and by
// `subquad test METHOD`.
#pragma once

#include <string>
#include <vector>

#include "harness/core/method.h"

namespace subquad {

enum class CheckOutcome { passed, failed, skipped };

struct CheckResult {
  std::string check;  // "causal: a changed token leaves earlier outputs untouched"
  CheckOutcome outcome = CheckOutcome::passed;
  std::string detail;  // failed: sizes, seed, position, values; skipped: why it does not apply
};

struct ConformanceOptions {
  Seed seed = 1;
  int rounds = 3;                      // random draws per check; larger finds rarer faults
  std::string only = {};               // only checks whose name contains this; empty: all
  std::vector<std::string> skip = {};  // no checks whose name contains one of these
};

// Runs every check that applies to the method. Never throws for what a method does wrong.
std::vector<CheckResult> check_method(const MethodEntry& entry, const ConformanceOptions& options);

}  // namespace subquad
