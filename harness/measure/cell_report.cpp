#include "harness/measure/cell_report.h"

#include <fmt/core.h>

#include <cmath>
#include <utility>

namespace subquad {

std::string column_text(double value) { return to_string(ParamValue(value)); }

void CellReport::put(const std::string& column, std::string value) {
  result_.columns[column] = std::move(value);
}

void CellReport::put(const std::string& column, double value) {
  if (std::isfinite(value)) put(column, column_text(value));
}

void CellReport::put_count(const std::string& column, std::int64_t value) {
  put(column, fmt::format("{}", value));
}

void CellReport::samples(const std::vector<double>& seconds) { result_.samples = seconds; }

void CellReport::doubt(std::string flag, std::string reason, bool unstable) {
  doubts_.push_back({std::move(flag), std::move(reason), unstable});
}

void CellReport::doubt(Doubt doubt) { doubts_.push_back(std::move(doubt)); }

void CellReport::finish() {
  std::string flags, reasons;
  for (const Doubt& d : doubts_) {
    if ((";" + flags + ";").find(";" + d.flag + ";") == std::string::npos)
      flags += (flags.empty() ? "" : ";") + d.flag;
    if (d.unstable) reasons += (reasons.empty() ? "" : "; ") + d.reason;
  }
  put("flags", flags);
  result_.status = reasons.empty() ? Status::ok : Status::unstable;
  result_.reason = reasons;
}

}  // namespace subquad
