// Two results of the same cells, A and B: what changed beyond noise.
#pragma once

#include <string>
#include <vector>

#include "harness/sweep/results_csv.h"

namespace subquad {

struct CompareOptions {
  double threshold = 0.05;  // a smaller change of time or memory is none, however certain
  // With this probability no cell at all is called slower or faster where nothing changed, whether
  // the cells vary alike or not, as far as the logs of the ratios are normal.
  double confidence = 0.95;
  bool include_unstable = false;  // rows whose numbers are in doubt
  bool mixed_hardware = false;    // A and B may be of different CPU models
};

// One quantity of one cell.
struct CellChange {
  std::string cell_id, cell;  // the cell in words
  std::string quantity;       // column
  std::string a, b;           // medians over the rounds, or texts
  std::size_t rounds = 0;     // that both have
  double ratio = 1;           // B / A; 1 for texts
  double low = 1, high = 1;   // its interval, for times
  // regression: slower, larger, less exact, less accurate, failed or gone. improvement: the
  // reverse.
  enum class Verdict { same, improvement, regression } verdict = Verdict::same;
};

struct Comparison {
  std::vector<CellChange> changes;     // everything compared, by cell and quantity
  std::size_t cells = 0;               // that both have
  std::size_t only_a = 0, only_b = 0;  // cells
  std::size_t gone = 0;                // rounds of A that B lacks, of cells that both have
  std::size_t left_out = 0;            // pairs of rows with a doubtful time
  double noise = 0;  // typical standard deviation of the log of a ratio of two rounds
  double clock = 0;  // calibration of B / that of A, 0 = not known: how fast the machine was
  std::vector<std::string> warnings;
  std::size_t regressions() const;
  std::size_t improvements() const;
};

// Rounds are paired by their number. The interval of a ratio is the wider of two, both of Student's
// t and wide enough for the number of cells (Bonferroni), so that one of many does not stand out by
// chance: by the variance over the rounds of all cells (at least that of the samples within a
// round), and by that over the cell's own rounds. With two or three rounds the second one is very
// wide: small changes need five rounds or more. An error or an accuracy of A that is no number in B
// is a regression.
// UserError when the two have no cell in common or, unless allowed, different CPU models.
Comparison compare_results(const std::vector<RowFields>& a, const std::vector<RowFields>& b,
                           const CompareOptions& options = {});

// Columns that the machine and the moment decide; all others follow from the cell and the code.
bool is_measured(const std::string& column);

// Every difference in columns that are not measured, one line each, sorted; ok and unstable count
// as the same status. Empty = the same values bit for bit.
std::vector<std::string> different_values(const std::vector<RowFields>& a,
                                          const std::vector<RowFields>& b);

}  // namespace subquad
