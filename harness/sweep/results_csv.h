// Reading results.csv (RFC 4180, columns of row.h).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace subquad {

using RowFields = std::map<std::string, std::string>;  // column -> text, empty = missing

std::string field(const RowFields& row, std::string_view column);  // "" when it is missing
std::optional<double> number_field(const RowFields& row, std::string_view column);

// Every row of a results file. StorageError that names file, line and byte offset for anything that
// is not whole: a malformed line, a row with another number of fields, an unknown header.
// A tail without newline is ignored (the store cuts it off when it opens the file).
std::vector<RowFields> read_results_csv(const std::string& path);

// The same for the content of a file; `path` is for messages.
std::vector<RowFields> parse_results_csv(const std::string& text, const std::string& path);

// What column line_crc of a row with these fields says: a checksum of the line as the store writes
// it, that field being empty.
std::string line_checksum(std::vector<std::string> fields, std::size_t crc_field);

// Of several rows of the same cell and round (an interrupted one, then a final one) the last.
std::vector<RowFields> final_rows(const std::vector<RowFields>& rows);

}  // namespace subquad
