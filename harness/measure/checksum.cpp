#include "harness/measure/checksum.h"

#include <cstring>

namespace subquad {
namespace {

constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15, kMix = 0xbf58476d1ce4e5b9;

std::uint64_t mix(std::uint64_t state, std::uint64_t word) {
  // The shift brings high bits down: a changed top bit must not cancel against the next word.
  state = (state ^ word) * kOdd;
  return state ^ (state >> 32);
}

}  // namespace

std::uint64_t checksum64(const void* data, std::size_t bytes, std::uint64_t chain) {
  const auto* byte = static_cast<const unsigned char*>(data);
  // Four independent lanes: one multiplication's latency must not bound the speed.
  std::uint64_t lanes[4] = {chain + 1, chain + 2, chain + 3, chain + 4};
  std::size_t i = 0;
  for (; i + 32 <= bytes; i += 32)
    for (std::size_t lane = 0; lane < 4; ++lane) {
      std::uint64_t word = 0;
      std::memcpy(&word, byte + i + 8 * lane, 8);
      lanes[lane] = mix(lanes[lane], word);
    }
  std::uint64_t sum = bytes * kMix;
  for (const std::uint64_t lane : lanes) sum = mix(sum, lane);
  for (; i < bytes; i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, byte + i, bytes - i < 8 ? bytes - i : 8);
    sum = mix(sum, word);
  }
  sum ^= sum >> 31;
  return (sum * kMix) ^ ((sum * kMix) >> 29);
}

}  // namespace subquad
