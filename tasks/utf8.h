// Code points of UTF-8 text.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <vector>

#include "harness/core/error.h"

namespace subquad {
namespace {

// Code points of UTF-8 text. UserError with the byte offset where it is not valid (RFC 3629:
// `hint` ends the message; overlong forms, surrogates and numbers above 0x10FFFF are not).
[[maybe_unused]] std::vector<std::int32_t> decode_utf8(const std::string& path,
                                                       const std::string& bytes,
                                                       const std::string& hint) {
  std::vector<std::int32_t> points;
  points.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[at + i]); };
    const unsigned char first = byte(0);
    const std::size_t length = first < 0x80                    ? 1
                               : first >= 0xC2 && first < 0xE0 ? 2
                               : first >= 0xE0 && first < 0xF0 ? 3
                               : first >= 0xF0 && first < 0xF5 ? 4
                                                               : 0;
    std::int32_t point = length == 1 ? first : length == 0 ? 0 : first & (0x7F >> length);
    bool valid = length > 0 && length <= bytes.size() - at;
    for (std::size_t i = 1; valid && i < length; ++i) {
      valid = (byte(i) & 0xC0) == 0x80;
      point = point << 6 | (byte(i) & 0x3F);
    }
    valid = valid && !(length == 3 && point < 0x800) && !(length == 4 && point < 0x10000) &&
            !(point >= 0xD800 && point < 0xE000) && point <= 0x10FFFF;
    if (!valid)
      throw UserError(
          fmt::format("{}: invalid UTF-8 at byte offset {} (0x{:02x}); expected UTF-8 "
                      "text{}",
                      path, at, first, hint));
    points.push_back(point);
    at += length;
  }
  return points;
}

}  // namespace
}  // namespace subquad
