// The references by method name. A built-in method without one fails a test.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "harness/core/params.h"
#include "tests/reference/call.h"

namespace subquad::reference {

struct Reference {
  std::function<TensorD(const Settings&, const Call&)> forward;
  std::function<Gradient(const Settings&, const Call&, const TensorD& dout)> gradient = {};
};

const std::map<std::string, Reference>& references();

}  // namespace subquad::reference
