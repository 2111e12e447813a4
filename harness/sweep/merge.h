// Joins the run directories of a sweep's shards into one, and says what is missing.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "harness/sweep/cell.h"

namespace subquad {

struct MergeOptions {
  std::vector<std::string> directories;  // of runs, or folders that hold shard-I-of-N
  std::string out;                       // the run directory that is made or brought up to date
  bool mixed_hardware = false;           // rows of several CPU models may stand together
  double wait_s =
      0;  // for directories and rows: another host's may be late on a shared file system
};

// A directory that has not all of its rows.
struct MissingRows {
  std::string directory;  // "" = cells that are in no directory
  int shard = 0, shards = 1;
  std::size_t asked = 0;
  std::vector<std::string> runs;  // "<cell id> round 2"
};

struct MergeReport {
  std::vector<std::string> directories;                // that were read
  std::size_t asked = 0;                               // cells x rounds of the whole sweep
  std::map<Status, std::size_t> counts;                // of the merged rows
  std::vector<MissingRows> missing;                    // also runs whose last row is `interrupted`
  std::map<std::string, std::set<std::string>> hosts;  // by CPU model
  std::map<std::string, std::size_t> rows_of_cpu;
  std::vector<int> absent;  // shards without a directory
  std::vector<std::string> warnings;

  bool complete() const { return missing.empty(); }
  int exit_status() const;  // 0 all there and ok, 1 some failed or missing
};

// Reads all directories (and `out`, when it is there), checks their union against the plan, and
// writes `out`: a run directory like any other. UserError, and nothing written: directories of
// different sweeps; two different final rows of one cell and round; several CPU models unless
// allowed. StorageError when a file is damaged or cannot be written.
MergeReport merge_runs(const MergeOptions& options);

}  // namespace subquad
