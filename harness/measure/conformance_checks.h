// The generated checks, one function each. A check throws Skip where it does not apply and
// Violation for what it found; check_method (conformance.h) calls them and knows their names.
#pragma once

#include "harness/measure/conformance_support.h"

namespace subquad::conformance {

// conformance_forward.cpp
void check_finite(const Runner& run);
void check_overwritten(const Runner& run);
void check_inputs_untouched(const Runner& run);
void check_repeatable(const Runner& run);
void check_threads(const Runner& run);
void check_causal(const Runner& run, int rounds, bool strict);
void check_padding(const Runner& run);
void check_linear_in_v(const Runner& run);
void check_exact_limit(const Runner& run);
void check_exact_always(const Runner& run);
void check_attention_rows(const Runner& run);
void check_oracles(const Runner& run);
void check_seed(const Runner& run);

// conformance_backward.cpp
void check_backward_bits(const Runner& run);
void check_directions(const Runner& run, int rounds);

// conformance_allocations.cpp
void check_allocations(const Runner& run);

// conformance_decode.cpp
void check_decoder(const Runner& run);

// conformance_declarations.cpp
void check_figures(const Runner& run);
void check_parameters(const Runner& run);

}  // namespace subquad::conformance
