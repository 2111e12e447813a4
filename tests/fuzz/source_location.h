// Included before everything else: clang 14 has no std::source_location, and registration, the only
// user, does well with an empty one.
#pragma once

#include <version>

#ifndef __cpp_lib_source_location
namespace std {
struct source_location {
  static constexpr source_location current() { return {}; }
  constexpr const char* file_name() const { return ""; }
};
}  // namespace std
#endif
