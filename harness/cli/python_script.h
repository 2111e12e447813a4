// Running the Python scripts of the folder plots/ with an interpreter that has what they need.
#pragma once

#include <string>
#include <vector>

namespace subquad {

// The folder plots/ of the project: $SUBQUAD_PLOTS, or that of the source tree this binary was
// built from, or ../share/subquad/plots beside the executable. UserError when there is none.
std::string plots_folder();

// An interpreter that can import matplotlib and pandas: /usr/bin/python3 (where Debian's packages
// live), else python3 of PATH. UserError that names the Debian packages when there is none.
std::string plotting_python();

// Runs `script` of plots_folder() with these arguments, no shell in between, and waits. Returns
// its exit status; 128 + signal when it was ended by a signal.
int run_python_script(const std::string& script, const std::vector<std::string>& arguments);

// The same in the place of this process, so that signals reach the script itself. UserError when it
// cannot be started.
[[noreturn]] void become_python_script(const std::string& script,
                                       const std::vector<std::string>& arguments);

}  // namespace subquad
