// Vectors of the widest kind that the build targets, for float and double, by the compiler's vector
// extension. The elementary functions that the training ops spend their time in.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "harness/core/types.h"

namespace subquad::autodiff {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> Int;
  typedef Int int_type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
inline Vec<T> load(const T* p) {  // any alignment
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
inline void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
inline Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}
// The first `count` lanes; the others are zero, or stay as they are.
template <class T>
inline Vec<T> load_part(const T* p, Index count) {
  Vec<T> v{};
  std::memcpy(&v, p, static_cast<std::size_t>(count) * sizeof(T));
  return v;
}
template <class T>
inline void store_part(T* p, Vec<T> v, Index count) {
  std::memcpy(p, &v, static_cast<std::size_t>(count) * sizeof(T));
}

// The lane numbers of a shuffle.
template <class T>
using LaneMask = typename VectorOf<T>::int_type;

// Written as literals, lane by lane: g++ 12 would fill a mask from a loop at run time.
template <class T, int STEP, std::size_t... I>
inline LaneMask<T> swap_mask(std::index_sequence<I...>) {
  return LaneMask<T>{(static_cast<int>(I) ^ STEP)...};
}
template <class T, int STEP, std::size_t... I>
inline LaneMask<T> low_mask(std::index_sequence<I...>) {
  return LaneMask<T>{((static_cast<int>(I) & STEP) == 0
                          ? static_cast<int>(I)
                          : kLanes<T> + static_cast<int>(I) - STEP)...};
}
template <class T, int STEP, std::size_t... I>
inline LaneMask<T> high_mask(std::index_sequence<I...>) {
  return LaneMask<T>{((static_cast<int>(I) & STEP) == 0 ? static_cast<int>(I) + STEP
                                                        : kLanes<T> + static_cast<int>(I))...};
}
template <class T>
using Lanes = std::make_index_sequence<static_cast<std::size_t>(kLanes<T>)>;

// Sum of all lanes, by halves.
template <class T, int STEP = kLanes<T> / 2>
inline T sum_lanes(Vec<T> v) {
  v += __builtin_shuffle(v, swap_mask<T, STEP>(Lanes<T>{}));
  if constexpr (STEP > 1) {
    return sum_lanes<T, STEP / 2>(v);
  } else {
    return v[0];
  }
}

// v[i] lane j <-> v[j] lane i.
template <class T, int STEP = kLanes<T> / 2>
[[gnu::always_inline]] inline void transpose(Vec<T> (&v)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if ((i & STEP) != 0) continue;
    const Vec<T> a = v[i], b = v[i + STEP];
    v[i] = __builtin_shuffle(a, b, low_mask<T, STEP>(Lanes<T>{}));
    v[i + STEP] = __builtin_shuffle(a, b, high_mask<T, STEP>(Lanes<T>{}));
  }
  if constexpr (STEP > 1) transpose<T, STEP / 2>(v);
}
template <class T>
inline T max_lanes(Vec<T> v) {
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// exp(x). float: 2^(integer + f) with a minimax polynomial of degree 6 in f, relative error below
// 3e-7; 0 below -87, and capped at exp(88). double: libm, lane by lane.
template <class T>
inline Vec<T> exp_of(Vec<T> x) {
  if constexpr (std::is_same_v<T, float>) {
    // Unsigned: with a NaN the sum of bits may wrap.
    typedef std::uint32_t Bits __attribute__((vector_size(kVectorBytes)));
    const Vec<float> high = broadcast(88.0f);
    const Vec<float> capped = x > high ? high : x;
    // The product is split so that f keeps its digits: log2(e) = 1.4375 + rest.
    const Vec<float> y = capped * 1.44269504088896341f;
    const Vec<float> shifted = y + 12582912.0f;  // 1.5 * 2^23: the low mantissa bits hold round(y)
    const Vec<float> whole = shifted - 12582912.0f;
    const Vec<float> f = (capped - whole * 0.693359375f) - whole * -2.12194440e-4f;  // in ln 2 / 2
    Vec<float> p = f * 1.9875691500e-4f + 1.3981999507e-3f;                          // Cephes expf
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    const Bits exponent = reinterpret_cast<Bits>(shifted) << 23;
    const Vec<float> value = reinterpret_cast<Vec<float>>(reinterpret_cast<Bits>(p) + exponent);
    return x < -87.0f ? Vec<float>{} : (x == x ? value : x);
  } else {
    for (int i = 0; i < kLanes<T>; ++i) x[i] = std::exp(x[i]);
    return x;
  }
}

// Normal distribution function Phi(x) and exp(-x^2 / 2). float: Abramowitz and Stegun 7.1.26
// (absolute error 1.5e-7), which shares the exponential; double: libm.
template <class T>
inline void normal_cdf(Vec<T> x, Vec<T>* cdf, Vec<T>* bell) {
  if constexpr (std::is_same_v<T, float>) {
    *bell = exp_of<float>(x * x * -0.5f);
    const Vec<float> a = (x < 0.0f ? -x : x) * 0.70710678118654752f;
    const Vec<float> t = 1.0f / (a * 0.3275911f + 1.0f);
    Vec<float> p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec<float> tail = p * t * *bell * 0.5f;
    *cdf = x < 0.0f ? tail : 1.0f - tail;
  } else {
    for (int i = 0; i < kLanes<T>; ++i) {
      (*cdf)[i] = 0.5 * std::erfc(-x[i] * 0.70710678118654752440);
      (*bell)[i] = std::exp(-0.5 * x[i] * x[i]);
    }
  }
}

// Calls body(first, count) over [0, size) in steps of one vector; count < kLanes<T> only at the
// end.
template <class T, class Body>
inline void for_vectors(Index size, Body&& body) {
  Index i = 0;
  for (; i + kLanes<T> <= size; i += kLanes<T>) body(i, Index{kLanes<T>});
  if (i < size) body(i, size - i);
}

}  // namespace subquad::autodiff
