// Vectors of the widest kind that the build targets, through the compiler's vector extension: the
// same source is AVX-512, AVX2, NEON or SSE code. No architecture's intrinsics appear.
#pragma once

#include <cstdint>
#include <cstring>

#include "harness/core/types.h"

namespace subquad::engine {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;      // floats per vector
inline constexpr int kRegisters = 32;  // vector registers
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
inline constexpr int kRegisters = 16;
#elif defined(__aarch64__)
inline constexpr int kLanes = 4;
inline constexpr int kRegisters = 32;
#else
inline constexpr int kLanes = 4;
inline constexpr int kRegisters = 16;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t BitVec __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {  // any alignment
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(float x) { return x - Vec{}; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// Lane i of the result is combine(all lanes of v[i]): log2(kLanes) rounds that halve the number of
// vectors. v [kLanes] is overwritten.
template <class Combine>
[[gnu::always_inline]] inline Vec reduce_each(Vec* v, Combine combine) {
#pragma GCC unroll 8
  for (int step = 1; step < kLanes; step *= 2) {
    IntVec keep{}, cross{};
    for (int i = 0; i < kLanes; ++i) {
      const bool second = (i & step) != 0;
      keep[i] = second ? kLanes + i : i;
      cross[i] = second ? kLanes + (i ^ step) : i ^ step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * step)
      v[i] = combine(__builtin_shuffle(v[i], v[i + step], keep),
                     __builtin_shuffle(v[i], v[i + step], cross));
  }
  return v[0];
}

inline float horizontal_max(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}
inline float horizontal_sum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// 2^(f + integer), f in [-1/2, 1/2], the integer in the low mantissa bits of `shifted`: it goes
// into the exponent bits, 2^f is a minimax polynomial of degree 5 (relative error 7.5e-8).
inline Vec exp2_of(Vec f, Vec shifted) {
  Vec p = f * 0.0013276472f + 0.009675541f;
  p = p * f + 0.05550713f;
  p = p * f + 0.2402212f;
  p = p * f + 0.69314694f;
  p = p * f + 1.0000001f;
  const BitVec exponent = reinterpret_cast<BitVec>(shifted) << 23;  // unsigned: it may wrap
  return reinterpret_cast<Vec>(reinterpret_cast<BitVec>(p) + exponent);
}

// 2^x for x <= 0; exactly 0 for x <= -126, -infinity included. Relative error below 2.5e-7.
inline Vec exp2_nonpositive(Vec x) {
  const Vec shifted = x + 12582912.0f;  // 1.5 * 2^23: the low mantissa bits hold the integer
  const Vec value = exp2_of(x - (shifted - 12582912.0f), shifted);
  return x < -126.0f ? Vec{} : value;  // a NaN stays a NaN
}

// Bits of 2^(k / 32), less k << 18.
alignas(64) inline constexpr std::uint32_t kExpTable[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};

// e^x for x <= 0, relative error below 3.5e-7 from -3 on, then some 5e-8 for every unit; exactly 0
// below -87.3. The multiplication by log2(e) is fused into the rounding, so that it costs nothing.
// Where two vectors hold a table, x is rounded to 1/32 of a power of two: one lookup for two
// multiply-adds less (a sixth of the time).
inline Vec exp_nonpositive(Vec x) {
  constexpr float kLog2e = 1.44269504088896340736f;
  Vec value;
  if constexpr (kLanes == 16) {
    const Vec shifted = x * (32 * kLog2e) + 12582912.0f;  // ends in 32 e + k
    const Vec f = x * (32 * kLog2e) - (shifted - 12582912.0f);
    Vec low, high;
    std::memcpy(&low, kExpTable, sizeof(Vec));
    std::memcpy(&high, kExpTable + 16, sizeof(Vec));
    const BitVec bits = reinterpret_cast<BitVec>(shifted);
    const Vec root = __builtin_shuffle(low, high, reinterpret_cast<IntVec>(shifted));
    // k << 18 comes back, and e << 23 with it.
    const Vec power = reinterpret_cast<Vec>(reinterpret_cast<BitVec>(root) + (bits << 18));
    value = power * ((f * 2.3459620e-4f + 0.021661174f) * f) + power;
  } else {
    const Vec shifted = x * kLog2e + 12582912.0f;
    value = exp2_of(x * kLog2e - (shifted - 12582912.0f), shifted);
  }
  return x < -87.3f ? Vec{} : value;
}

// 2^x for |x| < 126; the bits of the functions beside it.
inline Vec exp2_bounded(Vec x) {
  const Vec shifted = x + 12582912.0f;
  return exp2_of(x - (shifted - 12582912.0f), shifted);
}

// 2^(x - shift) for x <= shift, a whole number below 2^21 in size: rounding x to whole numbers and
// taking the shift off is one addition. Otherwise like exp2_nonpositive.
struct Exp2Below {
  static constexpr float kMaxShift = 2097152.0f;
  Vec unit, least;
  explicit Exp2Below(float shift)
      : unit(broadcast(12582912.0f - shift)), least(broadcast(shift - 126.0f)) {}
  Vec operator()(Vec x) const {
    const Vec shifted = x + unit;
    const Vec value = exp2_of(x - (shifted - unit), shifted);
    return x < least ? Vec{} : value;
  }
};

}  // namespace subquad::engine
