// Learned parameters of a method in a file, in the safetensors format
// (github.com/huggingface/safetensors): 8 bytes with the length of a JSON header (little endian),
// the header, the data. Python reads it as it is. The model's own files:
// harness/model/safetensors.h.
#pragma once

#include <string>
#include <vector>

#include "harness/core/method.h"

namespace subquad {

// UserError in one line when the file is damaged, or a parameter is missing or of another shape.
void read_weights(const std::string& path, const std::vector<Parameter*>& parameters);
// The file appears under its name only when complete; StorageError when that fails.
void write_weights(const std::string& path, const std::vector<Parameter*>& parameters);

}  // namespace subquad
