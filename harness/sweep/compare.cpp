#include "harness/sweep/compare.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "harness/core/error.h"
#include "harness/measure/statistics.h"
#include "harness/sweep/cell.h"

namespace subquad {
namespace {

using Verdict = CellChange::Verdict;
using Rounds = std::map<std::string, RowFields>;  // by round
using Cells = std::map<std::string, Rounds>;      // by cell id

constexpr double kErrorChange = 0.05;      // of rel_error; other builds round otherwise
constexpr double kErrorFloor = 1e-6;       // below this an error is rounding
constexpr double kAccuracyChange = 0.005;  // half a point

Cells by_cell(const std::vector<RowFields>& rows) {
  Cells cells;
  for (const RowFields& row : final_rows(rows)) cells[row.at("cell_id")][row.at("round")] = row;
  return cells;
}

std::string words(const RowFields& row) {
  const std::string label = field(row, "label");
  return fmt::format("{} {} {} n={}{} threads={}", label.empty() ? field(row, "method") : label,
                     field(row, "pass"), field(row, "task"), field(row, "n"),
                     field(row, "causal") == "1" ? " causal" : "", field(row, "threads"));
}

// z with P(|N(0, 1)| > z) = p.
double normal_quantile(double p) {
  double low = 0, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (std::erfc(middle / std::sqrt(2.0)) > p ? low : high) = middle;
  }
  return low;
}

// t with P(|T| > t) = p for Student's T: exact for any whole number of degrees, by the series of
// Abramowitz and Stegun, 26.7.3 and 26.7.4, in theta = atan(t / sqrt(degrees)). O(degrees).
double t_quantile(double p, std::size_t degrees) {
  const auto inside = [&](double theta) {
    const double cosine = std::cos(theta), square = cosine * cosine;
    const bool odd = degrees % 2 == 1;
    double term = odd ? cosine : 1, sum = degrees > 1 ? term : 0;
    for (std::size_t k = odd ? 2 : 1; k + 2 < degrees; k += 2) {
      term *= square * static_cast<double>(k) / static_cast<double>(k + 1);
      sum += term;
    }
    return odd ? M_2_PI * (theta + std::sin(theta) * sum) : std::sin(theta) * sum;
  };
  double low = 0, high = M_PI_2;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (1 - inside(middle) > p ? low : high) = middle;
  }
  return std::sqrt(static_cast<double>(degrees)) * std::tan(low);
}

// Variance of the log of a row's median time, as its samples tell: that of a median of normal
// samples, from their quartiles.
double variance_of_median(const RowFields& row) {
  const auto q25 = number_field(row, "time_q25_s"), q75 = number_field(row, "time_q75_s"),
             time = number_field(row, "time_s"), count = number_field(row, "repetitions");
  if (!q25 || !q75 || !time || !count || !(*time > 0) || !(*count > 0)) return 0;
  const double sd = (*q75 - *q25) / 1.349 / *time;
  return sd * sd * (M_PI / 2) / *count;
}

struct TimePair {
  std::vector<double> a, b, log_ratio;
  double within = 0;  // mean variance of the log ratio within rounds
  double mean() const {
    double sum = 0;
    for (const double value : log_ratio) sum += value;
    return sum / static_cast<double>(log_ratio.size());
  }
  double squares() const {  // around the mean
    double sum = 0;
    for (const double value : log_ratio) sum += (value - mean()) * (value - mean());
    return sum;
  }
};

bool measured(const RowFields& row, bool include_unstable) {
  const std::string status = field(row, "status");
  return status == "ok" || (include_unstable && status == "unstable");
}

std::string short_number(double value) { return fmt::format("{:.4g}", value); }

class Comparer {
 public:
  Comparer(Cells a, Cells b, const CompareOptions& options)
      : a_(std::move(a)), b_(std::move(b)), options_(options) {}

  Comparison run() {
    for (const auto& [id, rounds] : b_) result_.only_b += !a_.contains(id);
    for (const auto& [id, rounds] : a_) {
      const auto other = b_.find(id);
      if (other == b_.end()) {
        ++result_.only_a;
        continue;
      }
      ++result_.cells;
      pair(id, rounds, other->second);
    }
    if (result_.cells == 0) throw UserError("the two results have no cell in common");
    if (result_.only_a > 0)
      result_.warnings.push_back(fmt::format("{} cells of A are not in B", result_.only_a));
    judge_times();
    result_.clock = clock_a_.empty() || clock_b_.empty() ? 0 : median(clock_b_) / median(clock_a_);
    std::sort(result_.changes.begin(), result_.changes.end(),
              [](const CellChange& x, const CellChange& y) {
                return std::tie(x.cell, x.cell_id, x.quantity) <
                       std::tie(y.cell, y.cell_id, y.quantity);
              });
    return std::move(result_);
  }

 private:
  CellChange change(const std::string& id, const RowFields& row, const std::string& quantity) {
    CellChange change;
    change.cell_id = id;
    change.cell = words(row);
    change.quantity = quantity;
    return change;
  }

  void pair(const std::string& id, const Rounds& a, const Rounds& b) {
    TimePair times;
    for (const auto& [round, row_a] : a) {
      const auto other = b.find(round);
      if (other == b.end()) {
        ++result_.gone;
        continue;
      }
      const RowFields& row_b = other->second;
      if (const auto c = number_field(row_a, "calibration_before")) clock_a_.push_back(*c);
      if (const auto c = number_field(row_b, "calibration_before")) clock_b_.push_back(*c);
      status(id, row_a, row_b, round);
      const auto time_a = number_field(row_a, "time_s"), time_b = number_field(row_b, "time_s");
      if (!time_a || !time_b || !(*time_a > 0) || !(*time_b > 0)) continue;
      if (!measured(row_a, options_.include_unstable) ||
          !measured(row_b, options_.include_unstable)) {
        ++result_.left_out;
        continue;
      }
      times.a.push_back(*time_a);
      times.b.push_back(*time_b);
      times.log_ratio.push_back(std::log(*time_b / *time_a));
      times.within += variance_of_median(row_a) + variance_of_median(row_b);
    }
    const RowFields& any = a.begin()->second;
    if (!times.a.empty()) {
      times.within /= static_cast<double>(times.a.size());
      times_.emplace_back(change(id, any, "time_s"), std::move(times));
    }
    value(id, a, b, "peak_bytes", [&](double x, double y) {
      return y > x * (1 + options_.threshold) && y > x + 4096 ? Verdict::regression
             : y < x * (1 - options_.threshold)               ? Verdict::improvement
                                                              : Verdict::same;
    });
    value(id, a, b, "rel_error", [](double x, double y) {
      return y > x * (1 + kErrorChange) + kErrorFloor   ? Verdict::regression
             : y < x * (1 - kErrorChange) - kErrorFloor ? Verdict::improvement
                                                        : Verdict::same;
    });
    value(id, a, b, "accuracy", [](double x, double y) {
      return y < x - kAccuracyChange   ? Verdict::regression
             : y > x + kAccuracyChange ? Verdict::improvement
                                       : Verdict::same;
    });
  }

  // ok and unstable are one: whether a time is in doubt is no property of the code.
  void status(const std::string& id, const RowFields& a, const RowFields& b,
              const std::string& round) {
    const Status before = status_from_name(field(a, "status"));
    const Status after = status_from_name(field(b, "status"));
    const auto kind = [](Status s) { return s == Status::unstable ? Status::ok : s; };
    if (kind(before) == kind(after)) return;
    CellChange c = change(id, a, "status");
    c.a = name(before);
    c.b = fmt::format("{} in round {}", name(after), round);
    c.rounds = 1;
    const auto rank = [&](Status s) { return failed(s) ? 2 : s == Status::unsupported ? 1 : 0; };
    c.verdict = rank(after) > rank(before)   ? Verdict::regression
                : rank(after) < rank(before) ? Verdict::improvement
                                             : Verdict::same;
    result_.changes.push_back(std::move(c));
  }

  template <class Judge>
  void value(const std::string& id, const Rounds& a, const Rounds& b, const std::string& column,
             const Judge& judge) {
    std::vector<double> x, y;
    std::vector<double> lost;  // of A, where B has no number any more
    for (const auto& [round, row] : a) {
      const auto other = b.find(round);
      if (other == b.end()) continue;
      const auto left = number_field(row, column), right = number_field(other->second, column);
      if (!left || !right || std::isnan(*left)) continue;
      if (std::isnan(*right)) {
        lost.push_back(*left);
        continue;
      }
      x.push_back(*left);
      y.push_back(*right);
    }
    if (x.empty() && lost.empty()) return;
    CellChange c = change(id, a.begin()->second, column);
    if (!lost.empty()) {
      c.a = short_number(median(lost));
      c.b = "nan";
      c.rounds = lost.size();
      c.ratio = c.low = c.high = NAN;
      c.verdict = Verdict::regression;
      result_.changes.push_back(std::move(c));
      return;
    }
    const double from = median(x), to = median(y);
    c.a = short_number(from);
    c.b = short_number(to);
    c.rounds = x.size();
    c.ratio = from != 0 ? to / from : to == 0 ? 1 : INFINITY;
    c.low = c.high = c.ratio;
    c.verdict = judge(from, to);
    result_.changes.push_back(std::move(c));
  }

  void judge_times() {
    double squares = 0;
    std::size_t degrees = 0;
    for (const auto& [c, times] : times_) {
      squares += times.squares();
      degrees += times.log_ratio.size() - 1;
    }
    const double pooled = degrees > 0 ? squares / static_cast<double>(degrees) : 0;
    result_.noise = std::sqrt(pooled);
    if (degrees == 0 && !times_.empty())
      result_.warnings.push_back(
          "one round only: what differs from run to run is not known, the intervals are too "
          "narrow");
    const double share =
        (1 - options_.confidence) / static_cast<double>(std::max<std::size_t>(1, times_.size()));
    const double width = degrees > 0 ? t_quantile(share, degrees) : normal_quantile(share);
    for (auto& [c, times] : times_) {
      const double count = static_cast<double>(times.log_ratio.size());
      const double own = count > 1 ? times.squares() / (count - 1) : 0;
      // The variance of all cells says little of one that varies more than the others: its own
      // rounds have to tell, with their few degrees of freedom.
      double half = width * std::sqrt(std::max(pooled, times.within) / count);
      if (own > 0)
        half =
            std::max(half, t_quantile(share, times.log_ratio.size() - 1) * std::sqrt(own / count));
      const double middle = times.mean();
      c.a = short_number(median(times.a));
      c.b = short_number(median(times.b));
      c.rounds = times.a.size();
      c.ratio = std::exp(middle);
      c.low = std::exp(middle - half);
      c.high = std::exp(middle + half);
      if (c.low > 1 && c.ratio > 1 + options_.threshold) c.verdict = Verdict::regression;
      if (c.high < 1 && c.ratio < 1 / (1 + options_.threshold)) c.verdict = Verdict::improvement;
      result_.changes.push_back(std::move(c));
    }
  }

  Cells a_, b_;
  CompareOptions options_;
  Comparison result_;
  std::vector<std::pair<CellChange, TimePair>> times_;
  std::vector<double> clock_a_, clock_b_;
};

std::set<std::string> models(const std::vector<RowFields>& rows) {
  std::set<std::string> cpus;
  for (const RowFields& row : rows) cpus.insert(field(row, "cpu"));
  return cpus;
}

}  // namespace

std::size_t Comparison::regressions() const {
  return static_cast<std::size_t>(
      std::count_if(changes.begin(), changes.end(),
                    [](const CellChange& c) { return c.verdict == Verdict::regression; }));
}

std::size_t Comparison::improvements() const {
  return static_cast<std::size_t>(
      std::count_if(changes.begin(), changes.end(),
                    [](const CellChange& c) { return c.verdict == Verdict::improvement; }));
}

Comparison compare_results(const std::vector<RowFields>& a, const std::vector<RowFields>& b,
                           const CompareOptions& options) {
  std::set<std::string> cpus = models(a);
  cpus.merge(models(b));
  if (cpus.size() > 1 && !options.mixed_hardware)
    throw UserError(fmt::format(
        "the rows are of {} CPU models, whose times cannot be compared; --mixed-hardware does it "
        "all the same",
        cpus.size()));
  return Comparer(by_cell(a), by_cell(b), options).run();
}

bool is_measured(const std::string& column) {
  static const std::set<std::string> kMeasured = {
      "attempt",
      "reason",
      "spread",
      "repetitions",
      "iterations",
      "tokens_per_s",
      "gflops",
      "peak_bytes",
      "timed_allocs",
      "vm_hwm_bytes",
      "flags",
      "context_switches",
      "mhz",
      "calibration_before",
      "calibration_after",
      "build",
      "build_id",
      "cpu",
      "host",
      "started",
      "command",
      "line_crc",
      "fma_peak_gflops",
      "fraction_of_peak",
      "bandwidth_gbs",
      "fraction_of_bandwidth",
      "placement",
      "method_metrics"};  // of the last call, whichever that was
  return kMeasured.contains(column) || column.ends_with("_s");
}

std::vector<std::string> different_values(const std::vector<RowFields>& a,
                                          const std::vector<RowFields>& b) {
  const Cells left = by_cell(a), right = by_cell(b);
  std::vector<std::string> differences;
  const auto row_of = [](const Cells& cells, const std::string& id, const std::string& round) {
    const auto cell = cells.find(id);
    if (cell == cells.end()) return static_cast<const RowFields*>(nullptr);
    const auto row = cell->second.find(round);
    return row == cell->second.end() ? nullptr : &row->second;
  };
  for (const auto& [id, rounds] : left)
    for (const auto& [round, row] : rounds) {
      const RowFields* const other = row_of(right, id, round);
      if (other == nullptr) {
        differences.push_back(fmt::format("cell {} round {}: only in A", id, round));
        continue;
      }
      std::set<std::string> columns;
      for (const auto& [column, field] : row) columns.insert(column);
      for (const auto& [column, field] : *other) columns.insert(column);
      for (const std::string& column : columns) {
        if (is_measured(column)) continue;
        std::string x = field(row, column), y = field(*other, column);
        if (column == "status")
          for (std::string* field : {&x, &y})
            if (*field == "unstable") *field = "ok";
        if (x != y)
          differences.push_back(
              fmt::format("cell {} round {}: {}: {} and {}", id, round, column, x, y));
      }
    }
  for (const auto& [id, rounds] : right)
    for (const auto& [round, row] : rounds)
      if (row_of(left, id, round) == nullptr)
        differences.push_back(fmt::format("cell {} round {}: only in B", id, round));
  std::sort(differences.begin(), differences.end());
  return differences;
}

}  // namespace subquad
