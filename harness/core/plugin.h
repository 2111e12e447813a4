// Methods and tasks in shared objects. A plugin is any number of ordinary method or task files
// built as a module with one SUBQUAD_PLUGIN() statement in one of them.
//
// Before any of its code runs (a shared object's constructors register its methods), the loader
// reads the stamp that SUBQUAD_PLUGIN() leaves in the file and compares it with its own: interface
// version, Eigen version and alignment (which follows from the instruction set built for), and the
// C++ ABI. A mismatch is refused in one line with both values.
#pragma once

#include <string>

#include "harness/core/method.h"
#include "harness/core/registry.h"
#include "harness/core/task.h"

#define SUBQUAD_INTERFACE_VERSION 2

#define SUBQUAD_STRINGIFY_(x) #x
#define SUBQUAD_STRINGIFY(x) SUBQUAD_STRINGIFY_(x)

// Everything that must be the same on both sides, as text that is in the file before it is loaded.
// libstdc++'s own ABI switch is part of it; compiler versions may differ.
#define SUBQUAD_STAMP \
  "@subquad-plugin@interface=" SUBQUAD_STRINGIFY(SUBQUAD_INTERFACE_VERSION)            \
  " eigen=" SUBQUAD_STRINGIFY(EIGEN_WORLD_VERSION) "." SUBQUAD_STRINGIFY(              \
      EIGEN_MAJOR_VERSION) "." SUBQUAD_STRINGIFY(EIGEN_MINOR_VERSION)                  \
  " align=" SUBQUAD_STRINGIFY(EIGEN_MAX_ALIGN_BYTES)                                   \
  " cxx11abi=" SUBQUAD_STRINGIFY(_GLIBCXX_USE_CXX11_ABI) "@"

#define SUBQUAD_PLUGIN() \
  extern "C" __attribute__((visibility("default"), used)) const char subquad_stamp[] = SUBQUAD_STAMP

namespace subquad {

// Loads a plugin for the rest of the process. UserError in one line when the file is missing, is
// no plugin, was built for another interface, or registers a name that exists.
void load_plugin(const std::string& path);

}  // namespace subquad
