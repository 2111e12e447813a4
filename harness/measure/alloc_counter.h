// What the process has allocated, over every allocator in it.
//
// alloc_hooks.cpp replaces malloc and its relatives and anonymous mmap for the whole process,
// shared libraries included (operator new, Eigen, FFTW, libgomp and plugins all end there). Counted
// are the bytes that the allocator hands out (malloc_usable_size): the requested size rounded up to
// 16 bytes, or to a page above 128 KiB, so a large array is exact to well under 0.1 %. Not counted:
// thread stacks, the allocator's own headers and free lists, and file mappings.
#pragma once

#include <cstddef>
#include <cstdint>

namespace subquad {

std::int64_t live_bytes();    // handed out and not yet returned
std::int64_t peak_bytes();    // largest value of live_bytes since the last reset_peak
std::uint64_t alloc_calls();  // calls that allocated (a realloc counts as one)
void reset_peak();            // peak_bytes becomes live_bytes

// True when allocations of this process really arrive here: false in sanitizer builds (the
// sanitizer owns malloc) and on a C library other than glibc. The figures are then all zero.
bool hooks_active();

namespace detail {  // for alloc_hooks.cpp; safe before static initialisation and from any thread
void count_alloc(std::size_t bytes) noexcept;
void count_free(std::size_t bytes) noexcept;
void count_resize(std::size_t before, std::size_t after) noexcept;
}  // namespace detail

}  // namespace subquad
