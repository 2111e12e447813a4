// What a measured cell has to tell: columns, doubts and the verdict.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "harness/measure/noise.h"
#include "harness/sweep/cell.h"

namespace subquad {

// What the method did is wrong; what() is the reason.
struct WrongResult : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class CellReport {
 public:
  explicit CellReport(JobResult* result) : result_(*result) {}

  void put(const std::string& column, std::string value);
  void put(const std::string& column, double value);  // nothing when it is not finite
  void put_count(const std::string& column, std::int64_t value);
  void samples(const std::vector<double>& seconds);
  void doubt(std::string flag, std::string reason = "", bool unstable = false);
  void doubt(Doubt doubt);

  // Writes the flags, the status (ok or unstable) and its reason.
  void finish();

 private:
  JobResult& result_;
  std::vector<Doubt> doubts_;
};

// A number as it stands in the table.
std::string column_text(double value);

}  // namespace subquad
