// How much memory a worker may use.
#pragma once

#include <cstdint>

namespace subquad {

// Bytes that a new process can use without swapping: MemAvailable, or what is left of the control
// group's limit when that is less; 0 when the system does not say.
std::int64_t available_memory_bytes();

// Pages written to swap since the machine started; 0 when the system does not say.
std::int64_t swapped_out_pages();

}  // namespace subquad
