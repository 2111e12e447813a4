// Figures of a run directory.
#pragma once

#include <string>
#include <vector>

namespace subquad {

struct PlotOptions {
  std::string out;                   // where the figures go; empty = DIR/figures
  std::vector<std::string> formats;  // png, svg; empty = both
  std::vector<std::string> tasks;    // empty = all
  std::vector<std::string> passes;   // empty = all
  bool include_unstable = false;     // also rows with status unstable
  bool allow_mixed = false;          // also rows of several CPU models or builds together
};

// Writes DIR/crossover.csv, then draws every figure of `dir` with plots/plot.py. Returns the
// script's exit status. UserError without results, without Python or without its libraries.
int plot_results(const std::string& dir, const PlotOptions& options = {});

}  // namespace subquad
