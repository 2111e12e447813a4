// Morton (Z-order) codes: one integer per point of [-1, 1]^dims, near points mostly near in order.
//   u_c = floor((t_c + 1) / 2 * 2^bits), clamped to the grid
//   code = sum over levels l, coordinates c of bit_l(u_c) 2^(l dims + dims - 1 - c)
// The most significant level comes first, inside a level the first coordinate. The range is fixed,
// never that of the data: otherwise future tokens would change the codes of past ones.
#pragma once

#include <cstdint>

#include "harness/core/types.h"

namespace subquad::engine {

// Bits per coordinate that fit into a signed 64-bit code, ten at most.
inline int default_morton_bits(Index dims) { return static_cast<int>(dims >= 7 ? 63 / dims : 10); }

// Cell of coordinate t; a NaN goes into the first one.
inline std::uint64_t quantized(double t, int bits) {
  const double cells = static_cast<double>(std::uint64_t{1} << bits);
  const double u = (t + 1) * (0.5 * cells);
  if (!(u >= 1)) return 0;
  return static_cast<std::uint64_t>(u < cells - 1 ? u : cells - 1);
}

namespace morton_detail {
inline std::uint64_t spread_by_two(std::uint64_t x) {  // 31 bits, one zero after each
  x &= 0x7fffffffu;
  x = (x | x << 16) & 0x0000ffff0000ffffu;
  x = (x | x << 8) & 0x00ff00ff00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
  x = (x | x << 2) & 0x3333333333333333u;
  return (x | x << 1) & 0x5555555555555555u;
}
inline std::uint64_t spread_by_three(std::uint64_t x) {  // 21 bits, two zeros after each
  x &= 0x1fffffu;
  x = (x | x << 32) & 0x001f00000000ffffu;
  x = (x | x << 16) & 0x001f0000ff0000ffu;
  x = (x | x << 8) & 0x100f00f00f00f00fu;
  x = (x | x << 4) & 0x10c30c30c30c30c3u;
  return (x | x << 2) & 0x1249249249249249u;
}
}  // namespace morton_detail

// Code of the grid point u [dims], each below 2^bits; bits * dims <= 63. O(bits dims), a few
// operations up to three dimensions.
inline std::uint64_t morton_code(const std::uint64_t* u, Index dims, int bits) {
  using namespace morton_detail;
  if (dims == 1) return u[0];
  if (dims == 2) return spread_by_two(u[0]) << 1 | spread_by_two(u[1]);
  if (dims == 3)
    return spread_by_three(u[0]) << 2 | spread_by_three(u[1]) << 1 | spread_by_three(u[2]);
  std::uint64_t code = 0;
  for (int level = bits - 1; level >= 0; --level)
    for (Index c = 0; c < dims; ++c) code = code << 1 | (u[c] >> level & 1);
  return code;
}

// The grid point of a code: the inverse.
inline void morton_point(std::uint64_t code, Index dims, int bits, std::uint64_t* u) {
  for (Index c = 0; c < dims; ++c) u[c] = 0;
  for (int level = 0; level < bits; ++level)
    for (Index c = 0; c < dims; ++c) u[c] |= (code >> (level * dims + dims - 1 - c) & 1) << level;
}

}  // namespace subquad::engine
