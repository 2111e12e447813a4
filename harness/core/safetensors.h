// Tensors in a file, in the safetensors format (github.com/huggingface/safetensors): 8 bytes with
// the length of a JSON header (little endian), the header, the data. Python reads it as it is.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

struct FileTensor {
  std::string name;
  std::vector<Index> shape;
  std::string type = "F32";    // F32, F64, I32 or I64
  const void* data = nullptr;  // contiguous; of the caller
};

struct TensorFile {
  std::map<std::string, std::string> metadata;
  struct Entry {
    std::vector<Index> shape;
    std::string type;
    std::vector<std::uint8_t> bytes;
    Index count() const;
  };
  std::map<std::string, Entry> tensors;

  // The tensor of this name, type and shape; UserError that names `path` and what was found.
  const Entry& get(const std::string& path, const std::string& name, const std::string& type,
                   const std::vector<Index>& shape) const;
};

// Appears under its name only when complete and flushed to disk (a temporary file is renamed);
// StorageError when that fails.
void write_safetensors(const std::string& path, const std::vector<FileTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);
// UserError in one line for whatever is no well-formed file: truncated, header no JSON, unknown
// type, offsets that overlap, leave gaps or do not fit the shape, names that stand twice.
TensorFile read_safetensors(const std::string& path);

}  // namespace subquad
