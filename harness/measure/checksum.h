// A fast 64-bit checksum for detecting changed or damaged data; not cryptographic.
#pragma once

#include <cstddef>
#include <cstdint>

namespace subquad {

// Of `bytes` bytes at `data`; `chain` joins several arrays into one checksum. Little-endian words.
std::uint64_t checksum64(const void* data, std::size_t bytes, std::uint64_t chain = 0);

}  // namespace subquad
