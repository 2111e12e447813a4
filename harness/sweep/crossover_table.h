// Crossover lengths of a run directory: every method against dense, for time and for memory.
#pragma once

#include <string>
#include <vector>

#include "harness/measure/crossover.h"
#include "harness/sweep/results_csv.h"
#include "harness/sweep/row.h"

namespace subquad {

struct CrossoverOptions {
  std::string baseline = "dense";  // registered name of the method that is to be beaten
  bool include_unstable = false;   // also rows with status unstable
  BootstrapOptions bootstrap = {};
};

// One line of crossover.csv: identity of the curve (as text, in the order of kCrossoverColumns up
// to `label`), then the result.
struct CrossoverRow {
  RowFields identity;
  std::size_t lengths = 0;     // measured lengths that both sides have
  std::size_t min_rounds = 0;  // rounds of the length that has fewest
  Crossover crossover = {};
};

inline constexpr Column kCrossoverColumns[] = {
    {"quantity", "", "time (time_s) or memory (peak_bytes; below one byte counts as one)"},
    {"task", "", "registered name"},
    {"task_params", "", "those parameters of the task that take several values at one length"},
    {"pass", "", "forward, backward, ..."},
    {"causal", "", "1 or 0"},
    {"batch", "", "sequences"},
    {"heads", "", "heads"},
    {"n_kv", "", "number of keys where it differs from n, else n"},
    {"d_k", "", "width of q and k"},
    {"d_v", "", "width of v"},
    {"scale", "", "factor on the logits"},
    {"threads", "", "OpenMP threads"},
    {"cpu", "", "model name; machines never mix in a ratio"},
    {"method", "", "registered name"},
    {"label", "", "label, and those parameters that take several values under it at one length"},
    {"baseline", "", "label of the baseline"},
    {"outcome", "", "crossover, always (from the smallest length on), not_reached"},
    {"n", "", "crossover length; empty unless outcome is crossover"},
    {"low_n", "", "lower bound of the interval; empty = below min_n, or no interval"},
    {"high_n", "", "upper bound of the interval; empty = beyond max_n, or no interval"},
    {"confidence", "", "of the interval; empty = no interval (a single round)"},
    {"share", "", "share of the resamples that end with the same outcome"},
    {"lengths", "", "measured lengths that the method and the baseline share"},
    {"rounds", "", "fewest rounds at one of them"},
    {"min_n", "", "smallest of them"},
    {"max_n", "", "largest of them"},
    {"ratio_at_min_n", "", "baseline / method there; above 1 = better than the baseline"},
    {"ratio_at_max_n", "", "the same at max_n"},
    {"text", "", "the result in words"},
};

// Pure: final rows of results.csv (see final_rows) -> crossovers, sorted by identity. Failed rows
// are left out; a value of the method is divided by the baseline of the same round, seed, host and
// build only, and of several baseline labels the one equal to the method's name (else the first) is
// taken.
std::vector<CrossoverRow> crossover_rows(const std::vector<RowFields>& rows,
                                         const CrossoverOptions& options = {});

// The same as CSV text with a header.
std::string crossover_csv(const std::vector<CrossoverRow>& rows, const CrossoverOptions& options);

// Reads DIR/results.csv and writes DIR/crossover.csv (whole or not at all). Returns how many
// crossovers it holds. UserError when DIR has no results, StorageError when a file fails.
std::size_t write_crossover_csv(const std::string& dir, const CrossoverOptions& options = {});

}  // namespace subquad
