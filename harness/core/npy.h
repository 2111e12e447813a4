// NumPy's .npy files: the exchange format for captured Q, K, V and for `subquad apply`.
#pragma once

#include <string>
#include <vector>

#include "harness/core/tensor.h"

namespace subquad {

// An array as read: shape as in the file, values in C order, converted to float32.
struct NpyArray {
  std::vector<Index> shape;
  std::vector<float> values;
};

// Reads float16, float32 or float64 in C or Fortran order, little or big endian. UserError that
// names the file, what was found and what is expected for anything else: a truncated file, a bad
// header, another type, more elements than the file holds, a NaN or infinity (with its index).
NpyArray read_npy(const std::string& path);
// The shape alone, with the checks of read_npy that need no look at the values.
std::vector<Index> read_npy_shape(const std::string& path);
// As read_npy, shaped [batch, heads, n, d]: 4 axes as they are, 3 axes [heads, n, d], 2 axes [n,
// d].
Tensor read_npy_tensor(const std::string& path);
// float32, C order, version 1.0, with the last `axes` of the four axes (2 to 4; those left out must
// have size 1). StorageError when the file cannot be written entirely;
// the file appears under its name only when it is complete (a temporary file is renamed).
void write_npy(const std::string& path, const ConstTensorView& tensor, int axes = 4);

}  // namespace subquad
