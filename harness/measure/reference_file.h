// The exact reference of a (task, problem, seed) in a file, so that it is computed once and shared
// by every cell that needs it.
//
// Little-endian binary: a header (magic, version, id, sizes), the sampled rows, the tensors in
// double precision, and a checksum over all of it. Written to a temporary name beside the target
// and renamed: a reader sees a whole file or none.
#pragma once

#include <string>

#include "harness/measure/reference.h"

namespace subquad {

// StorageError when the file cannot be written entirely. `id` is Cell::reference_id().
void write_reference(const std::string& path, const std::string& id, const Reference& reference);

// StorageError in one line, saying what was found and what is expected, for anything but a whole
// reference with this id and problem.
Reference read_reference(const std::string& path, const std::string& id, const Problem& problem);

}  // namespace subquad
