// The runner: plan -> workers -> rows. It executes no method code itself.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/sweep/append_file.h"
#include "harness/sweep/config.h"
#include "harness/sweep/progress.h"
#include "harness/sweep/run_directory.h"
#include "harness/sweep/stop_signal.h"

namespace subquad {

// Who measures: goes into every row.
struct Provenance {
  std::string build_id, cpu, host;
  std::string machine_json;  // content of machine.json
};

struct RunOptions {
  std::string directory;
  Existing existing = Existing::same_plan;
  bool follow_links = false;
  bool retry_failed = false;  // rows with a failed status are not final
  // What is started for every cell. /proc/self/exe is this very executable, also when its file was
  // replaced meanwhile: the numbers of one run come from one build.
  std::vector<std::string> worker_command = {"/proc/self/exe", "worker"};
  double grace_s = 2;  // from SIGTERM to SIGKILL after a timeout
  int runners = 1;     // that measure on this machine at once, each on processors of its own
  const StopRequest* stop = nullptr;
  FileCalls file_calls;  // of the results files; tests make them fail
};

struct RunReport {
  std::size_t asked = 0;                 // cells x rounds
  std::size_t earlier = 0;               // of these, finished by an earlier run
  std::map<Status, std::size_t> counts;  // of the final rows; sums to asked - missing
  std::size_t missing = 0;               // no row: only after a stop
  int signal = 0;                        // that stopped the run
  std::string directory;
  std::vector<std::string> warnings;

  bool complete() const;    // a final row for everything that was asked
  int exit_status() const;  // 0 all ok, 1 some failed or missing, 128 + signal
};

// Runs every cell of the config that has no final row yet. Statuses of cells are rows, never
// exceptions. UserError: nothing was run. LockedError: another runner is at it. UnsavedRow,
// StorageError: results could not be stored; everything before is safe and the run can be resumed.
RunReport run_sweep(const Config& config, const RunOptions& options, const Provenance& provenance,
                    Progress& progress);

// A text as one word of a POSIX shell.
std::string shell_word(const std::string& text);

}  // namespace subquad
