// Any bytes as a safetensors file: refused in one line, or tensors that fit their shapes.
#include "harness/core/error.h"
#include "harness/core/safetensors.h"
#include "tests/fuzz/input.h"

using namespace subquad;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile file(data, size);
  try {
    const TensorFile tensors = read_safetensors(file.path());
    std::size_t bytes = 0;
    for (const auto& [name, entry] : tensors.tensors) {
      const std::size_t element = entry.type == "F64" || entry.type == "I64" ? 8 : 4;
      fuzz::require(entry.bytes.size() == static_cast<std::size_t>(entry.count()) * element);
      bytes += entry.bytes.size();
    }
    fuzz::require(bytes <= size);
  } catch (const UserError& error) {
    fuzz::require_printable(error.what());
  }
  return 0;
}
