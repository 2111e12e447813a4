// Any bytes as an .npy file: refused in one line, or an array of the shape that it says.
#include "harness/core/error.h"
#include "harness/core/npy.h"
#include "tests/fuzz/input.h"

using namespace subquad;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile file(data, size);
  try {
    const NpyArray array = read_npy(file.path());
    std::size_t count = 1;
    for (const Index extent : array.shape) count *= static_cast<std::size_t>(extent);
    fuzz::require(array.values.size() == count);
    fuzz::require(read_npy_shape(file.path()) == array.shape);
    read_npy_tensor(file.path());
  } catch (const UserError& error) {
    fuzz::require_printable(error.what());
  }
  return 0;
}
