// CSV as RFC 4180 has it, restricted to what the results files need: one record is one line, and
// every text is valid UTF-8 without control characters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace subquad {

// Free text on one line: newlines, tabs and other control characters as \n, \t, \x1b; bytes that
// are no UTF-8 as \xff; a text that a spreadsheet would read as a formula (it starts with = + - @
// and is no number) gets a leading '. At most `limit` bytes (3 or more), a longer text is cut and
// ends in "...". The line of a line is itself.
std::string single_line(std::string_view text, std::size_t limit = 1000);

// A field as it stands in the file: quoted where it has to be.
std::string csv_field(std::string_view text);

// The fields of one line (without its newline), or nothing when the line is malformed: an open or
// misplaced quote, a control character, bytes that are no UTF-8.
std::optional<std::vector<std::string>> split_csv(std::string_view line);

std::uint32_t crc32(std::string_view bytes);  // IEEE 802.3, as in zlib

}  // namespace subquad
