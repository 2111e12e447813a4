#include "harness/sweep/csv.h"

#include <fmt/core.h>

#include <array>
#include <cstdlib>

namespace subquad {
namespace {

// Bytes of the valid UTF-8 sequence that `text` starts with, or 0. Overlong forms, surrogates and
// anything above U+10FFFF are invalid.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const unsigned char second = byte(1);
  if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
      (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f))
    return 0;
  return length;
}

bool control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

// strtod depends on the locale; a number in our files never does.
bool is_number(std::string_view text) {
  std::size_t i = text.starts_with('-') || text.starts_with('+') ? 1 : 0, digits = 0;
  const auto skip_digits = [&] {
    while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i, ++digits;
  };
  skip_digits();
  if (i < text.size() && text[i] == '.') ++i, skip_digits();
  if (digits == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    digits = 0;
    skip_digits();
    if (digits == 0) return false;
  }
  return i == text.size();
}

}  // namespace

std::string single_line(std::string_view text, std::size_t limit) {
  std::string line;
  if (!text.empty() && std::string_view("=+-@").find(text[0]) != std::string_view::npos &&
      !is_number(text))
    line = "'";
  std::size_t kept = 0;  // what may stand before the mark, so that a cut text is never cut again
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = utf8_length(text.substr(i));
    std::string piece(text.substr(i, std::max<std::size_t>(length, 1)));
    if (piece == "\n") {
      piece = "\\n";
    } else if (piece == "\t") {
      piece = "\\t";
    } else if (piece == "\r") {
      piece = "\\r";
    } else if (length == 0 || control(piece[0])) {
      piece = fmt::format("\\x{:02x}", static_cast<unsigned char>(piece[0]));
    }
    if (line.size() + piece.size() > limit) return line.substr(0, kept) + "...";
    line += piece;
    if (line.size() + 3 <= limit) kept = line.size();
    i += std::max<std::size_t>(length, 1);
  }
  return line;
}

std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"") == std::string_view::npos && !text.starts_with(' ') &&
      !text.ends_with(' '))
    return std::string(text);
  std::string field = "\"";
  for (const char c : text) {
    if (c == '"') field += '"';
    field += c;
  }
  return field + '"';
}

std::optional<std::vector<std::string>> split_csv(std::string_view line) {
  for (std::size_t i = 0; i < line.size();) {
    const std::size_t length = utf8_length(line.substr(i));
    if (length == 0 || control(line[i])) return std::nullopt;
    i += length;
  }
  std::vector<std::string> fields;
  std::size_t i = 0;
  while (true) {
    std::string field;
    if (i < line.size() && line[i] == '"') {
      for (++i;; ++i) {
        if (i >= line.size()) return std::nullopt;  // the quote is never closed
        if (line[i] != '"') {
          field += line[i];
        } else if (i + 1 < line.size() && line[i + 1] == '"') {
          field += line[++i];
        } else {
          break;
        }
      }
      ++i;
      if (i < line.size() && line[i] != ',') return std::nullopt;
    } else {
      for (; i < line.size() && line[i] != ','; ++i) {
        if (line[i] == '"') return std::nullopt;
        field += line[i];
      }
    }
    fields.push_back(std::move(field));
    if (i >= line.size()) return fields;
    ++i;  // the comma
  }
}

std::uint32_t crc32(std::string_view bytes) {
  static const std::array<std::uint32_t, 256> table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = (t[i] >> 1) ^ ((t[i] & 1) ? 0xedb88320u : 0u);
    }
    return t;
  }();
  std::uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

}  // namespace subquad
