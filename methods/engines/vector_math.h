// Element-wise functions on vectors for any finite argument, built on simd.h. NaN stays NaN.
#pragma once

#include "methods/engines/simd.h"

namespace subquad::engine {

// 2^x for every x: infinity above 128, exactly 0 below -126 (no denormal results). Relative error
// below 2.5e-7: the same polynomial as exp2_nonpositive, of which this is the two-sided form.
inline Vec exp2_any(Vec x) {
  // Half the exponent on each side, so that 2^127.9 passes through representable numbers.
  const Vec shifted = x + 12582912.0f;
  const Vec whole = shifted - 12582912.0f;
  const Vec f = x - whole;
  Vec p = f * 0.0013276472f + 0.009675541f;
  p = p * f + 0.05550713f;
  p = p * f + 0.2402212f;
  p = p * f + 0.69314694f;
  p = p * f + 1.0000001f;
  const IntVec exponent = reinterpret_cast<IntVec>(shifted) - 0x4b400000;
  const IntVec half = exponent >> 1;
  const Vec first = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec second = reinterpret_cast<Vec>((exponent - half + 127) << 23);
  Vec value = p * first * second;
  value = x > 128.0f ? broadcast(__builtin_inff()) : value;
  return x < -126.0f ? Vec{} : value;
}

inline Vec exp_any(Vec x) { return exp2_any(x * 1.44269504088896340736f); }

// sin and cos together, absolute error below 3e-7 for |x| <= 1e4: x = k pi/2 + r with a two-part
// pi/2, |r| <= pi/4, Taylor-like minimax polynomials, then the quadrant.
inline void sin_cos(Vec x, Vec* sine, Vec* cosine) {
  const Vec shifted = x * 0.63661977236758134308f + 12582912.0f;
  const Vec k = shifted - 12582912.0f;
  const IntVec quadrant = reinterpret_cast<IntVec>(shifted);
  Vec r = x - k * 1.5707855224609375f;  // pi/2 in three parts: k times each is exact or small
  r = r - k * 1.080334186553955e-05f;
  r = r - k * 6.0771006282767e-11f;
  const Vec r2 = r * r;
  Vec s = r2 * -1.9515295891e-4f + 8.3321608736e-3f;
  s = s * r2 - 1.6666654611e-1f;
  s = s * r2 * r + r;
  Vec c = r2 * 2.443315711809948e-5f - 1.388731625493765e-3f;
  c = c * r2 + 4.166664568298827e-2f;
  c = c * r2 * r2 - 0.5f * r2 + 1.0f;
  const auto swap = (quadrant & 1) != 0;
  const Vec a = swap ? c : s, b = swap ? s : c;
  *sine = (quadrant & 2) != 0 ? -a : a;
  *cosine = ((quadrant + 1) & 2) != 0 ? -b : b;
}

// The first `count` < kLanes floats at p, the rest zero; and the way back.
inline Vec load_part(const float* p, Index count) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<std::size_t>(count) * sizeof(float));
  return load(lanes);
}
inline void store_part(float* p, Index count, Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<std::size_t>(count) * sizeof(float));
}

// to[r, 0..wide) = function(from[r, 0..d)), zero beyond d; wide is a multiple of kLanes.
template <class Function>
inline void map_rows(const float* from, Index rows, Index d, float* to, Index wide,
                     Function&& function) {
  const Index whole = d / kLanes * kLanes;
  if (whole == wide) {  // one run
    for (Index i = 0; i < rows * d; i += kLanes) store(to + i, function(load(from + i)));
    return;
  }
  for (Index r = 0; r < rows; ++r) {
    const float* const x = from + r * d;
    float* const y = to + r * wide;
    for (Index c = 0; c < whole; c += kLanes) store(y + c, function(load(x + c)));
    if (whole < d) {
      for (Index c = whole; c < wide; c += kLanes) store(y + c, Vec{});
      store_part(y + whole, d - whole, function(load_part(x + whole, d - whole)));
    } else {
      for (Index c = whole; c < wide; c += kLanes) store(y + c, Vec{});
    }
  }
}

}  // namespace subquad::engine
