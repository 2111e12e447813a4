#include "harness/sweep/crossover_table.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>

#include "harness/core/error.h"

namespace subquad {
namespace {

// What a curve is drawn for: everything but the method. The parameters of the task are added
// apart, see several_values.
constexpr std::string_view kProblemColumns[] = {"task", "pass", "causal", "batch",   "heads",
                                                "d_k",  "d_v",  "scale",  "threads", "cpu"};
// What must agree, beside the curve, for two rows to form a ratio.
constexpr std::string_view kPairColumns[] = {"round", "seed", "host", "build_id"};

std::optional<double> number(const RowFields& row, std::string_view column) {
  const std::string text = field(row, column);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return {};
  return value;
}

std::map<std::string, std::string> parse_params(const std::string& text) {  // "a=1;b=2"
  std::map<std::string, std::string> params;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(';', at), text.size());
    const std::string pair = text.substr(at, end - at);
    const std::size_t equals = std::min(pair.find('='), pair.size());
    params[pair.substr(0, equals)] = equals < pair.size() ? pair.substr(equals + 1) : "";
    at = end + 1;
  }
  return params;
}

// Parameters that take several values at one length make separate curves. Those that change only
// along with n (as many needles as keep their density) do not.
class SeveralValues {
 public:
  void add(const std::string& owner, const std::string& n, const std::string& params) {
    for (const auto& [key, value] : parse_params(params)) {
      std::set<std::string>& seen = values_[{owner, key, n}];
      seen.insert(value);
      if (seen.size() > 1) keys_.insert({owner, key});
    }
  }
  std::string select(const std::string& owner, const std::string& params,
                     std::string_view separator) const {
    std::string text;
    for (const auto& [key, value] : parse_params(params))
      if (keys_.count({owner, key}))
        text += fmt::format("{}{}={}", text.empty() ? "" : separator, key, value);
    return text;
  }

 private:
  std::map<std::array<std::string, 3>, std::set<std::string>> values_;
  std::set<std::array<std::string, 2>> keys_;
};

std::string key_length(const RowFields& row) {
  return field(row, "n_kv") == field(row, "n") ? "n" : field(row, "n_kv");
}

// The values of one curve: n -> what must agree -> value.
using Curve = std::map<double, std::map<std::vector<std::string>, double>>;

struct Curves {
  RowFields problem;
  std::map<std::string, std::pair<std::string, Curve>> by_label;  // label -> method, curve
};

void collect(const std::vector<RowFields>& rows, std::string_view column, bool floor_at_one,
             const CrossoverOptions& options,
             std::map<std::vector<std::string>, Curves>& problems) {
  std::vector<const RowFields*> usable;
  for (const RowFields& row : rows) {
    const std::string status = field(row, "status");
    if (status == "ok" || (options.include_unstable && status == "unstable"))
      usable.push_back(&row);
  }
  SeveralValues task_params, method_params;
  for (const RowFields* row : usable) {
    task_params.add(field(*row, "task"), field(*row, "n"), field(*row, "task_params"));
    method_params.add(field(*row, "label"), field(*row, "n"), field(*row, "method_params"));
  }
  for (const RowFields* row : usable) {
    const std::optional<double> n = number(*row, "n");
    std::optional<double> value = number(*row, column);
    if (value && floor_at_one) value = std::max(*value, 1.0);
    if (!n || !(*n > 0) || !value || !(*value > 0)) continue;

    RowFields problem;
    for (const std::string_view key : kProblemColumns) problem[std::string(key)] = field(*row, key);
    problem["n_kv"] = key_length(*row);
    problem["task_params"] =
        task_params.select(field(*row, "task"), field(*row, "task_params"), ";");
    std::vector<std::string> problem_key, pair_key;
    for (const auto& [name, text] : problem) problem_key.push_back(text);
    for (const std::string_view key : kPairColumns) pair_key.push_back(field(*row, key));

    std::string label = field(*row, "label");
    const std::string params = method_params.select(label, field(*row, "method_params"), " ");
    if (label.empty()) label = field(*row, "method");
    if (!params.empty()) label += " " + params;
    Curves& curves = problems[problem_key];
    curves.problem = problem;
    auto& [method, curve] = curves.by_label[label];
    method = field(*row, "method");
    curve[*n][pair_key] = *value;
  }
}

std::vector<LengthPairs> pair_up(const Curve& method, const Curve& baseline) {
  std::vector<LengthPairs> lengths;
  for (const auto& [n, values] : method) {
    const auto other = baseline.find(n);
    if (other == baseline.end()) continue;
    LengthPairs length{.n = n, .rounds = {}};
    for (const auto& [key, value] : values)
      if (const auto match = other->second.find(key); match != other->second.end())
        length.rounds.push_back({{value}, {match->second}});
    if (!length.rounds.empty()) lengths.push_back(std::move(length));
  }
  return lengths;
}

std::string number_text(double value) { return fmt::format("{:.6g}", value); }

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

}  // namespace

std::vector<CrossoverRow> crossover_rows(const std::vector<RowFields>& rows,
                                         const CrossoverOptions& options) {
  std::vector<CrossoverRow> result;
  for (const auto& [quantity, column] :
       {std::pair{"time", "time_s"}, std::pair{"memory", "peak_bytes"}}) {
    std::map<std::vector<std::string>, Curves> problems;
    collect(rows, column, std::string_view(quantity) == "memory", options, problems);
    for (const auto& [key, curves] : problems) {
      std::string baseline;
      for (const auto& [label, entry] : curves.by_label)
        if (entry.first == options.baseline && (baseline.empty() || label == options.baseline))
          baseline = label;
      if (baseline.empty()) continue;
      for (const auto& [label, entry] : curves.by_label) {
        if (label == baseline) continue;
        std::vector<LengthPairs> lengths =
            pair_up(entry.second, curves.by_label.at(baseline).second);
        if (lengths.empty()) continue;
        CrossoverRow row{.identity = curves.problem, .lengths = lengths.size()};
        row.identity["quantity"] = quantity;
        row.identity["method"] = entry.first;
        row.identity["label"] = label;
        row.identity["baseline"] = baseline;
        row.min_rounds = lengths[0].rounds.size();
        for (const LengthPairs& length : lengths)
          row.min_rounds = std::min(row.min_rounds, length.rounds.size());
        row.crossover = crossover_length(std::move(lengths), options.bootstrap);
        result.push_back(std::move(row));
      }
    }
  }
  return result;
}

std::string crossover_csv(const std::vector<CrossoverRow>& rows, const CrossoverOptions& options) {
  std::string text;
  for (const Column& column : kCrossoverColumns)
    text += fmt::format("{}{}", text.empty() ? "" : ",", column.name);
  text += "\n";
  for (const CrossoverRow& row : rows) {
    const Crossover& found = row.crossover;
    RowFields fields = row.identity;
    fields["outcome"] = name(found.outcome);
    if (found.outcome == CrossoverOutcome::crossover) fields["n"] = number_text(found.n);
    if (found.interval) {
      if (found.interval->low > 0) fields["low_n"] = number_text(found.interval->low);
      if (std::isfinite(found.interval->high)) fields["high_n"] = number_text(found.interval->high);
      fields["confidence"] = number_text(options.bootstrap.confidence);
      fields["share"] = number_text(found.share);
    }
    fields["lengths"] = fmt::format("{}", row.lengths);
    fields["rounds"] = fmt::format("{}", row.min_rounds);
    fields["min_n"] = number_text(found.min_n);
    fields["max_n"] = number_text(found.max_n);
    fields["ratio_at_min_n"] = number_text(found.ratio_at_min_n);
    fields["ratio_at_max_n"] = number_text(found.ratio_at_max_n);
    fields["text"] = str(found);
    bool first = true;
    for (const Column& column : kCrossoverColumns) {
      if (!first) text += ",";
      text += csv_field(fields[std::string(column.name)]);
      first = false;
    }
    text += "\n";
  }
  return text;
}

std::size_t write_crossover_csv(const std::string& dir, const CrossoverOptions& options) {
  const std::filesystem::path results = std::filesystem::path(dir) / "results.csv";
  if (!std::filesystem::is_regular_file(results))
    throw UserError(
        fmt::format("{}: no results.csv there; expected a directory that `subquad run` "
                    "has written",
                    dir));
  const std::vector<CrossoverRow> rows =
      crossover_rows(final_rows(read_results_csv(results.string())), options);
  const std::filesystem::path target = std::filesystem::path(dir) / "crossover.csv";
  const std::filesystem::path part = target.string() + ".part";
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << crossover_csv(rows, options);
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(part, target, error);
  if (!out || error) {
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    throw StorageError(fmt::format("{}: cannot be written", target.string()));
  }
  return rows.size();
}

}  // namespace subquad
