// Vectors of either precision for spectra: complex numbers interleaved as FFTW has them, or a
// vector of real parts beside a vector of imaginary ones. Through the compiler's vector extension,
// as simd.h.
#pragma once

#include "methods/engines/simd.h"

namespace subquad::lanes {

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float Vec __attribute__((vector_size(engine::kLanes * 4)));
  typedef std::int32_t Mask __attribute__((vector_size(engine::kLanes * 4)));
};
template <>
struct Simd<double> {
  typedef double Vec __attribute__((vector_size(engine::kLanes * 4)));
  typedef std::int64_t Mask __attribute__((vector_size(engine::kLanes * 4)));
};
template <class T>
using Vec = typename Simd<T>::Vec;
template <class T>
constexpr int kWidth = engine::kLanes * 4 / static_cast<int>(sizeof(T));

template <class T>
[[gnu::always_inline]] inline Vec<T> load_vec(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
[[gnu::always_inline]] inline void store_vec(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// re, im [width] of `width` interleaved complex numbers, and back.
template <class T>
void deinterleave(const T* from, T* re_im) {
  typename Simd<T>::Mask even, odd;
  for (int i = 0; i < kWidth<T>; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  const Vec<T> a = load_vec(from), b = load_vec(from + kWidth<T>);
  store_vec(re_im, __builtin_shuffle(a, b, even));
  store_vec(re_im + kWidth<T>, __builtin_shuffle(a, b, odd));
}
template <class T>
void interleave(const T* re_im, T* to) {
  typename Simd<T>::Mask low, high;
  for (int i = 0; i < kWidth<T>; ++i) {
    low[i] = i / 2 + i % 2 * kWidth<T>;
    high[i] = low[i] + kWidth<T> / 2;
  }
  const Vec<T> re = load_vec(re_im), im = load_vec(re_im + kWidth<T>);
  store_vec(to, __builtin_shuffle(re, im, low));
  store_vec(to + kWidth<T>, __builtin_shuffle(re, im, high));
}

// sums(c) = sum over g < GROUP of kernels[g] * values(c, g), added to what is there if KEEP, for
// COLUMNS columns: complex numbers, interleaved, `size` reals of each (whole vectors). values(c, g)
// lies at values + (c * GROUP_STRIDE + g) * stride, sums(c) at sums + c * sums_stride.
//
// One pass over everything, a kernel is loaded once for all columns, and the two halves of a
// complex product are brought together only once for all g.
template <int GROUP, int COLUMNS, bool KEEP, int GROUP_STRIDE, class T>
void add_complex_products(const T* const* kernels, const T* values, Index stride, Index size,
                          T* sums, Index sums_stride) {
  typename Simd<T>::Mask even, odd, swap;
  Vec<T> sign;
  for (int i = 0; i < kWidth<T>; ++i) {
    even[i] = i / 2 * 2, odd[i] = i / 2 * 2 + 1, swap[i] = i ^ 1;
    sign[i] = i % 2 == 0 ? T{-1} : T{1};
  }
  for (Index f = 0; f < size; f += kWidth<T>) {
    Vec<T> straight[COLUMNS], crossed[COLUMNS];  // re(kernel) x and im(kernel) x
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c) {
      straight[c] = KEEP ? load_vec(sums + c * sums_stride + f) : Vec<T>{};
      crossed[c] = Vec<T>{};
    }
#pragma GCC unroll 4
    for (int g = 0; g < GROUP; ++g) {
      const Vec<T> kernel = load_vec(kernels[g] + f);
      const Vec<T> re = __builtin_shuffle(kernel, even), im = __builtin_shuffle(kernel, odd);
#pragma GCC unroll 4
      for (int c = 0; c < COLUMNS; ++c) {
        const Vec<T> x = load_vec(values + (c * GROUP_STRIDE + g) * stride + f);
        straight[c] += re * x;
        crossed[c] += im * x;
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; ++c)
      store_vec(sums + c * sums_stride + f,
                straight[c] + sign * __builtin_shuffle(crossed[c], swap));
  }
}

}  // namespace subquad::lanes
