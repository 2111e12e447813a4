// Where the files that ship with subquad (tasks/data/) are found at run time.
#pragma once

#include <string>

namespace subquad {

// Full path of the shipped file `name`. Looked for in this order: the directory that the
// environment variable SUBQUAD_DATA names, tasks/data/ of the source tree this library was built
// from, and ../share/subquad beside the executable. UserError that lists the places when it is in
// none of them.
std::string data_path(const std::string& name);

}  // namespace subquad
