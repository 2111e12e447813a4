// What a cell will take, before it runs: from what its method declares, or from earlier results.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "harness/sweep/cell.h"
#include "harness/sweep/results_csv.h"

namespace subquad {

struct Estimate {
  double seconds = 0;  // wall time of one round, without the exact reference
  double bytes = 0;    // resident memory of its worker at the peak
  // analytic: the method's operation count over a guessed rate; rate: over the rate at which the
  // method ran in earlier results; measured: this very cell was there.
  std::string_view from = "analytic";
};

class Estimator {
 public:
  // Takes over what rows of results.csv tell: wall times, peaks and rates. Any number of calls.
  void learn(const std::vector<RowFields>& rows);
  Estimate of(const Cell& cell) const;

 private:
  struct Seen {
    std::vector<double> seconds;
    double bytes = 0;
  };
  std::map<std::string, Seen> cells_;                 // by cell id
  std::map<std::string, std::vector<double>> rates_;  // operations per second, by rate_key
};

// Wall seconds of the exact reference that a cell needs, 0 when it needs none.
double reference_seconds(const Cell& cell);

// "1.5 GiB"
std::string human_bytes(double bytes);

}  // namespace subquad
