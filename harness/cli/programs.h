// Other programs that a command calls, and files for them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace subquad {

// Runs a program of PATH with its output on stderr. Returns its exit status, or 128 + the signal
// that ended it. UserError when it cannot be started.
int run_program(const std::vector<std::string>& command);

struct ProgramOutput {
  int status = 0;    // as of run_program
  std::string text;  // that it wrote to stdout
};
ProgramOutput output_of_program(const std::vector<std::string>& command);

// StorageError when the file cannot be written.
void write_text(const std::filesystem::path& path, const std::string& text);

}  // namespace subquad
