// Learned parameters of a method in a file (safetensors): what a fit leaves for later cells.
#pragma once

#include <optional>
#include <string>

#include "harness/core/method.h"
#include "harness/core/params.h"
#include "harness/core/random.h"

namespace subquad {

// What "{method}", "{label}", "{seed}" and "{n}" stand for in the path of such a file, so that one
// config can keep or read a file for each of its cells.
std::string fill_path(std::string pattern, const std::string& method, const std::string& label,
                      Seed seed, Index n);

// All parameters() by name, with method, settings and the seed of the method as metadata.
// StorageError when the file cannot be written entirely.
void save_method_weights(const std::string& path, const std::string& method,
                         const Settings& settings, Method& prepared,
                         std::optional<Seed> seed = std::nullopt);

// The seed with which the method of such weights was prepared, where the file says so: random
// features are no parameters, and belong to what was learned with them.
std::optional<Seed> weights_seed(const std::string& source);

// Into a method that was prepared: every parameter has to be there with its shape. `source` is a
// file of save_method_weights, or CHECKPOINT:LAYER, a layer of a trained model. UserError in one
// line when it is missing, damaged, of another method or of other sizes; Unsupported when the
// method has no parameters.
void load_method_weights(const std::string& source, const std::string& method, Method& prepared);

}  // namespace subquad
