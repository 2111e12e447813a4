// The command line: one file per command. A command's add_ function defines its options and, as
// CLI11 callback, runs it; it returns through `status` (see harness/cli/README.md for the values).
#pragma once

#include <CLI/CLI.hpp>

namespace subquad {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;   // some cells failed or are missing
inline constexpr int kExitUsage = 2;    // bad usage or config, nothing run
inline constexpr int kExitStorage = 3;  // results could not be stored

void add_run(CLI::App& app, int* status);
void add_plan(CLI::App& app, int* status);
void add_merge(CLI::App& app, int* status);
void add_submit(CLI::App& app, int* status);
void add_compare(CLI::App& app, int* status);
void add_list(CLI::App& app, int* status);
void add_describe(CLI::App& app, int* status);
void add_apply(CLI::App& app, int* status);
void add_sample(CLI::App& app, int* status);
void add_plot(CLI::App& app, int* status);
void add_table(CLI::App& app, int* status);
void add_report(CLI::App& app, int* status);
void add_reproduce(CLI::App& app, int* status);
void add_new(CLI::App& app, int* status);
void add_doctor(CLI::App& app, int* status);
void add_test(CLI::App& app, int* status);
void add_train(CLI::App& app, int* status);
void add_capture(CLI::App& app, int* status);
void add_worker(CLI::App& app, int* status);  // hidden: one cell, started by `run`

}  // namespace subquad
