// Holds a method to the oracles that it names in MethodInfo::bounded_by.
#pragma once

#include <string>

#include "harness/core/method.h"
#include "harness/core/random.h"

namespace subquad {

struct BoundCheck {
  std::string violation;  // "" when every oracle is at least as near to the exact matrix
  Index compared = 0;     // comparisons made
};

// Compares attention matrices on random inputs of several temperatures, bidirectional and causal,
// at the method's defaults and at small values of its integer parameters, with the oracles at the
// same keys_per_query.
BoundCheck check_bounds(const MethodEntry& entry, Seed seed);

}  // namespace subquad
