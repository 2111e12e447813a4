// Exceptions of the library. Library code throws them; only the command line turns them into a
// line and an exit status. Every message says where, what was found, and what was expected.
#pragma once

#include <fmt/core.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace subquad {

// Something that the user can put right: a config, an option, a file. Exit status 2.
struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Results could not be stored or read back (full disk, lock held, corrupt file). Exit status 3.
struct StorageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A combination of method, problem and pass that is not supported. A row of its own, no failure.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A broken invariant of our own.
struct InternalError : std::logic_error {
  using std::logic_error::logic_error;
};

}  // namespace subquad

// Throws InternalError with file:line and the formatted message unless `cond` holds.
#define SUBQUAD_CHECK(cond, ...)                                                              \
  do {                                                                                        \
    if (!(cond))                                                                              \
      throw ::subquad::InternalError(fmt::format("{}:{}: check failed: {}: {}", __FILE__,     \
                                                 __LINE__, #cond, fmt::format(__VA_ARGS__))); \
  } while (false)
