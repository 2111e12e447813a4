// Decompression of DEFLATE data (RFC 1951) inside gzip (RFC 1952) or zlib (RFC 1950) wrappers, for
// .gz files and PNG images, so that no library is needed for them.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "harness/core/error.h"

namespace subquad {
namespace {

// Inflates one stream. Throws std::string, the reason, at the first fault.
class Inflate {
 public:
  // `limit`: bytes of output at most, against files that unpack without end.
  Inflate(std::string_view bytes, std::size_t limit) : bytes_(bytes), limit_(limit) {}

  std::string run() {
    for (bool last = false; !last;) {
      last = take(1) == 1;
      switch (take(2)) {
        case 0:
          stored();
          break;
        case 1:
          fixed();
          break;
        case 2:
          dynamic();
          break;
        default:
          throw std::string("an unknown kind of block");
      }
    }
    return std::move(out_);
  }
  // Bytes of input used, whole.
  std::size_t used() const { return at_ - static_cast<std::size_t>(count_ / 8); }

 private:
  // Canonical Huffman code: symbols in the order of their codes, number of codes by length.
  struct Code {
    std::array<int, 16> count{};
    std::array<int, 288> symbol{};
    void make(const std::uint8_t* lengths, int symbols) {
      count = {};
      for (int i = 0; i < symbols; ++i) ++count[lengths[i]];
      count[0] = 0;
      std::array<int, 17> offset{};
      int left = 1;
      for (std::size_t length = 1; length < 16; ++length) {
        left = 2 * left - count[length];
        if (left < 0) throw std::string("more codes than fit");
        offset[length + 1] = offset[length] + count[length];
      }
      for (int i = 0; i < symbols; ++i)
        if (lengths[i] != 0) symbol[static_cast<std::size_t>(offset[lengths[i]]++)] = i;
    }
  };

  std::uint32_t take(int bits) {
    while (count_ < bits) {
      if (at_ == bytes_.size()) throw std::string("the data end too early");
      hold_ |= static_cast<std::uint64_t>(static_cast<unsigned char>(bytes_[at_++])) << count_;
      count_ += 8;
    }
    const auto value = static_cast<std::uint32_t>(hold_ & ((std::uint64_t{1} << bits) - 1));
    hold_ >>= bits;
    count_ -= bits;
    return value;
  }
  int decode(const Code& code) {
    int value = 0, first = 0, index = 0;
    for (std::size_t length = 1; length < 16; ++length) {
      value |= static_cast<int>(take(1));
      const int count = code.count[length];
      if (value - count < first)
        return code.symbol[static_cast<std::size_t>(index + value - first)];
      index += count;
      first = (first + count) << 1;
      value <<= 1;
    }
    throw std::string("an unknown code");
  }
  void put(char c) {
    if (out_.size() >= limit_) throw std::string("more data than expected");
    out_ += c;
  }
  void stored() {
    hold_ >>= count_ % 8;
    count_ -= count_ % 8;
    const std::uint32_t length = take(16);
    if ((take(16) ^ 0xFFFFu) != length) throw std::string("a stored block of two lengths");
    for (std::uint32_t i = 0; i < length; ++i) put(static_cast<char>(take(8)));
  }
  void fixed() {
    std::array<std::uint8_t, 288> lengths{};
    for (std::size_t i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    literals_.make(lengths.data(), 288);
    lengths.fill(5);
    distances_.make(lengths.data(), 30);
    codes();
  }
  void dynamic() {
    const int literals = static_cast<int>(take(5)) + 257, distances = static_cast<int>(take(5)) + 1;
    const std::uint32_t lengths_of_lengths = take(4) + 4;
    if (literals > 286 || distances > 30) throw std::string("too many codes");
    constexpr std::array<std::uint8_t, 19> kOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                     11, 4,  12, 3, 13, 2, 14, 1, 15};
    std::array<std::uint8_t, 320> lengths{};
    for (std::uint32_t i = 0; i < lengths_of_lengths; ++i)
      lengths[kOrder[i]] = static_cast<std::uint8_t>(take(3));
    literals_.make(lengths.data(), 19);
    std::array<std::uint8_t, 320> all{};
    for (int i = 0; i < literals + distances;) {
      const int symbol = decode(literals_);
      if (symbol < 16) {
        all[static_cast<std::size_t>(i++)] = static_cast<std::uint8_t>(symbol);
        continue;
      }
      if (symbol == 16 && i == 0) throw std::string("a repetition of nothing");
      const std::uint8_t value = symbol == 16 ? all[static_cast<std::size_t>(i - 1)] : 0;
      int times = symbol == 16   ? 3 + static_cast<int>(take(2))
                  : symbol == 17 ? 3 + static_cast<int>(take(3))
                                 : 11 + static_cast<int>(take(7));
      if (i + times > literals + distances) throw std::string("too many code lengths");
      while (times-- > 0) all[static_cast<std::size_t>(i++)] = value;
    }
    if (all[256] == 0) throw std::string("no code for the end");
    literals_.make(all.data(), literals);
    distances_.make(all.data() + literals, distances);
    codes();
  }
  void codes() {
    constexpr std::array<int, 29> kLength = {3,  4,  5,  6,   7,   8,   9,   10,  11, 13,
                                             15, 17, 19, 23,  27,  31,  35,  43,  51, 59,
                                             67, 83, 99, 115, 131, 163, 195, 227, 258};
    constexpr std::array<int, 29> kLengthBits = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    constexpr std::array<int, 30> kDistance = {
        1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
        193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    constexpr std::array<int, 30> kDistanceBits = {0, 0, 0,  0,  1,  1,  2,  2,  3,  3,
                                                   4, 4, 5,  5,  6,  6,  7,  7,  8,  8,
                                                   9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    for (;;) {
      int symbol = decode(literals_);
      if (symbol < 256) {
        put(static_cast<char>(symbol));
        continue;
      }
      if (symbol == 256) return;
      symbol -= 257;
      if (symbol >= 29) throw std::string("an unknown length");
      const auto of_length = static_cast<std::size_t>(symbol);
      const int length = kLength[of_length] + static_cast<int>(take(kLengthBits[of_length]));
      const auto of_distance = static_cast<std::size_t>(decode(distances_));
      if (of_distance >= 30) throw std::string("an unknown distance");
      const std::size_t distance =
          static_cast<std::size_t>(kDistance[of_distance]) + take(kDistanceBits[of_distance]);
      if (distance > out_.size()) throw std::string("a reference before the beginning");
      for (int i = 0; i < length; ++i) put(out_[out_.size() - distance]);
    }
  }

  std::string_view bytes_;
  std::size_t limit_, at_ = 0;
  std::uint64_t hold_ = 0;
  int count_ = 0;
  std::string out_;
  Code literals_, distances_;
};

[[maybe_unused]] std::uint32_t crc32(std::string_view bytes,
                                     std::uint32_t polynomial = 0xEDB88320u) {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ (c & 1 ? polynomial : 0);
    table[i] = c;
  }
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = table[(crc ^ static_cast<unsigned char>(c)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

// The content of a zlib stream. Throws std::string with the reason.
[[maybe_unused]] std::string unzlib(std::string_view bytes, std::size_t limit) {
  if (bytes.size() < 6 || (bytes[0] & 0x0F) != 8 || (bytes[1] & 0x20) != 0)
    throw std::string("no zlib stream");
  Inflate inflate(bytes.substr(2), limit);
  std::string out = inflate.run();
  std::uint32_t a = 1, b = 0, stored = 0;  // Adler-32
  for (const char c : out) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  const std::size_t end = 2 + inflate.used();
  if (end + 4 > bytes.size()) throw std::string("the data end too early");
  for (std::size_t i = 0; i < 4; ++i)
    stored = stored << 8 | static_cast<unsigned char>(bytes[end + i]);
  if (stored != (b << 16 | a)) throw std::string("the checksum does not match");
  return out;
}

// The content of a gzip file (its first member). UserError that names the file.
[[maybe_unused]] std::string gunzip(const std::string& where, std::string_view bytes,
                                    std::size_t limit) {
  try {
    const auto byte = [&](std::size_t i) {
      if (i >= bytes.size()) throw std::string("the data end too early");
      return static_cast<unsigned char>(bytes[i]);
    };
    if (byte(0) != 0x1f || byte(1) != 0x8b || byte(2) != 8) throw std::string("no gzip file");
    const unsigned flags = byte(3);
    std::size_t at = 10;
    if (flags & 4) at += 2 + static_cast<std::size_t>(byte(at) | byte(at + 1) << 8);
    for (const unsigned text : {8u, 16u})  // name, comment
      if (flags & text) {
        while (byte(at) != 0) ++at;
        ++at;
      }
    if (flags & 2) at += 2;
    byte(at);
    Inflate inflate(bytes.substr(at), limit);
    std::string out = inflate.run();
    at += inflate.used();
    std::uint32_t crc = 0;
    for (std::size_t i = 4; i > 0; --i) crc = crc << 8 | byte(at + i - 1);
    if (crc != crc32(out)) throw std::string("the checksum does not match");
    return out;
  } catch (const std::string& reason) {
    throw UserError(where + ": damaged gzip data: " + reason);
  }
}

}  // namespace
}  // namespace subquad
