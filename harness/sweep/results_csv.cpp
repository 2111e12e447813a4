#include "harness/sweep/results_csv.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <string_view>
#include <utility>

#include "harness/core/error.h"
#include "harness/sweep/cell.h"
#include "harness/sweep/csv.h"
#include "harness/sweep/row.h"

namespace subquad {
namespace {

bool all_of(std::string_view text, std::string_view allowed) {
  return text.find_first_not_of(allowed) == std::string_view::npos;
}

// What is wrong with a row that has the right number of fields, or "".
std::string row_fault(const RowFields& row) {
  const auto text = [&](const char* column) {
    const auto found = row.find(column);
    return found == row.end() ? std::string() : found->second;
  };
  if (text("cell_id").size() != 16 || !all_of(text("cell_id"), "0123456789abcdef"))
    return fmt::format("cell_id is \"{}\", expected 16 hex digits",
                       single_line(text("cell_id"), 40));
  for (const char* column : {"round", "attempt"})
    if (row.contains(column) &&
        (text(column).empty() || text(column).size() > 9 || !all_of(text(column), "0123456789")))
      return fmt::format("{} is \"{}\", expected an integer", column,
                         single_line(text(column), 40));
  if (std::none_of(std::begin(kAllStatuses), std::end(kAllStatuses),
                   [&](Status status) { return name(status) == text("status"); }))
    return fmt::format("status is \"{}\", which is unknown", single_line(text("status"), 40));
  return "";
}

}  // namespace

std::string line_checksum(std::vector<std::string> fields, std::size_t crc_field) {
  std::string line;
  fields.at(crc_field).clear();
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (i > 0) line += ',';
    line += csv_field(fields[i]);
  }
  return fmt::format("{:08x}", crc32(line));
}

std::vector<RowFields> parse_results_csv(const std::string& text, const std::string& path) {
  std::vector<RowFields> rows;
  std::vector<std::string> header;
  std::size_t line_number = 0;
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = text.find('\n', start);
    if (end == std::string::npos) break;  // a torn tail
    const std::string_view line = std::string_view(text).substr(start, end - start);
    ++line_number;
    const auto damaged = [&](const std::string& fault) {
      return StorageError(fmt::format("{}:{}: byte {}: {}", path, line_number, start, fault));
    };
    const auto fields = split_csv(line);
    if (!fields) throw damaged("malformed line (quotes, control characters or broken UTF-8)");
    if (header.empty()) {
      std::set<std::string> seen;
      for (const std::string& column : *fields) {
        if (std::none_of(std::begin(kColumns), std::end(kColumns),
                         [&](const Column& known) { return known.name == column; }))
          throw damaged(
              fmt::format("unknown column \"{}\" in the header", single_line(column, 40)));
        if (!seen.insert(column).second)
          throw damaged(fmt::format("column {} stands twice in the header", column));
      }
      for (const char* needed : {"cell_id", "round", "status"})
        if (!seen.contains(needed))
          throw damaged(fmt::format("the header has no column {}", needed));
      header = *fields;
    } else {
      if (fields->size() != header.size())
        throw damaged(
            fmt::format("the row has {} fields, the header has {}", fields->size(), header.size()));
      RowFields row;
      for (std::size_t i = 0; i < header.size(); ++i) row[header[i]] = (*fields)[i];
      const std::string fault = row_fault(row);
      if (!fault.empty()) throw damaged(fault);
      const auto crc = std::find(header.begin(), header.end(), "line_crc") - header.begin();
      const std::size_t crc_field = static_cast<std::size_t>(crc);
      if (crc_field < header.size() && !(*fields)[crc_field].empty() &&
          (*fields)[crc_field] != line_checksum(*fields, crc_field))
        throw damaged("the line does not match its checksum (line_crc)");
      rows.push_back(std::move(row));
    }
    start = end + 1;
  }
  return rows;
}

std::vector<RowFields> read_results_csv(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw StorageError(fmt::format("{}: cannot be read; is it a run directory?", path));
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  if (file.bad()) throw StorageError(fmt::format("{}: reading failed", path));
  return parse_results_csv(text, path);
}

std::string field(const RowFields& row, std::string_view column) {
  const auto found = row.find(std::string(column));
  return found == row.end() ? "" : found->second;
}

std::optional<double> number_field(const RowFields& row, std::string_view column) {
  const std::string text = field(row, column);
  if (text.empty()) return std::nullopt;
  return std::strtod(text.c_str(), nullptr);
}

std::vector<RowFields> final_rows(const std::vector<RowFields>& rows) {
  std::map<std::pair<std::string, std::string>, std::size_t> last;
  for (std::size_t i = 0; i < rows.size(); ++i)
    last[{rows[i].at("cell_id"), rows[i].at("round")}] = i;
  std::vector<RowFields> kept;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (last.at({rows[i].at("cell_id"), rows[i].at("round")}) == i) kept.push_back(rows[i]);
  return kept;
}

}  // namespace subquad
