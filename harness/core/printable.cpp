#include "harness/core/printable.h"

#include <fmt/format.h>

#include <algorithm>

namespace subquad {

std::size_t find_invalid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) {
      return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u;
    };
    const unsigned lead = byte(i);
    const std::size_t length = lead < 0x80               ? 1
                               : (lead & 0xe0u) == 0xc0u ? 2
                               : (lead & 0xf0u) == 0xe0u ? 3
                               : (lead & 0xf8u) == 0xf0u ? 4
                                                         : 0;
    if (length == 0) return i;
    unsigned code = length == 1 ? lead : lead & (0x7fu >> length);
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xc0u) != 0x80u) return i;
      code = code << 6 | (byte(i + k) & 0x3fu);
    }
    // Overlong forms, surrogates and what lies beyond Unicode.
    constexpr unsigned kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kLeast[length] || (code >= 0xd800 && code <= 0xdfff) || code > 0x10ffff) return i;
    i += length;
  }
  return std::string_view::npos;
}

std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t valid = std::min(find_invalid_utf8(text), text.size());
    for (const char c : text.substr(0, valid)) {
      const auto byte = static_cast<unsigned>(static_cast<unsigned char>(c));
      if (c == '\n') {
        out += "\\n";
      } else if (byte < 0x20 || byte == 0x7f) {
        out += fmt::format("\\x{:02x}", byte);
      } else {
        out += c;
      }
    }
    text.remove_prefix(valid);
    if (text.empty()) break;
    out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(text[0])));
    text.remove_prefix(1);
  }
  return out;
}

}  // namespace subquad
