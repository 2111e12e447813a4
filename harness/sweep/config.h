// YAML config -> validated config -> plan of cells.
//
// Everything is checked against the registered schemas before anything runs; all errors are
// collected, each naming file:line:column, what was found, what is expected, and the nearest valid
// name. configs/README.md documents the format.
#pragma once

#include <string>
#include <vector>

#include "harness/core/error.h"
#include "harness/sweep/cell.h"

namespace subquad {

struct Config {
  std::string name;  // [a-z0-9][a-z0-9_.-]{0,63}; results go to results/<name> by default
  std::string path;  // the file it was read from
  Seed seed = 1;     // of the shuffle and, where `seeds` is not given, of the data
  int rounds = 3;
  bool plots = true;                 // draw the figures when the run ends
  std::vector<std::string> plugins;  // absolute paths
  std::vector<Cell> cells;           // the expanded product, in the order of the file
  // One part of a sweep: cells are those of this shard, sweep_cells the ids of the whole (after
  // --filter); else empty.
  int shard = 0, shards = 1;
  std::vector<std::string> sweep_cells;
  std::string
      resolved_yaml;  // the same sweep with every default written out; reads back to the same cells
};

// A config that cannot be used; what() is one line per error.
struct ConfigError : UserError {
  using UserError::UserError;
};

// Reads, checks and expands. `overrides` are KEY=VALUE of --set (dotted keys, YAML values).
// `plugins` are loaded before the check, as are those that the config names.
Config load_config(const std::string& path, const std::vector<std::string>& overrides = {},
                   const std::vector<std::string>& plugins = {});

// Keeps the cells that match an expression such as "method=dense|linear,n<=4096,window=64".
// Keys: cell (its id), method, label, task, pass, and every problem size, threads, seed, causal,
// and parameter name. Operators: = != < <= > >=; '|' separates alternatives; ',' means and.
// UserError on an unknown key (with the nearest one) or a bad expression.
std::vector<Cell> filter_cells(const std::vector<Cell>& cells, const std::string& expression);

}  // namespace subquad
