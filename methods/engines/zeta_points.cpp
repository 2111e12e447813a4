#include "methods/engines/zeta_points.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "methods/engines/morton.h"

namespace subquad {
namespace {

constexpr Index kTokens = 8;     // of one pass over the matrix
constexpr Index kMaxWidth = 64;  // of a row of points

// tanh without branches, so that loops over it become vector code; absolute error below 3e-16.
// exp(2 x) = 2^k exp(r), |r| <= log(2) / 2, exp by its series.
inline double branch_free_tanh(double x) {
  double y = 2 * x;
  y = y > 40 ? 40 : y;  // tanh is 1 in double; a NaN stays
  y = y < -40 ? -40 : y;
  const double shifted = y * 1.44269504088896340736 + 6755399441055744.0;  // 1.5 * 2^52
  const double k = shifted - 6755399441055744.0;
  const double r = (y - k * 0.69314718036912381649) - k * 1.9082149292705877e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const double power = std::bit_cast<double>((std::bit_cast<std::uint64_t>(shifted) + 1023) << 52);
  return 1 - 2 / (p * power + 1);
}

}  // namespace

void ZetaPoints::prepare(const ZetaPointOptions& options, Index d, Seed seed) {
  options_ = options;
  d_ = d;
  width_ = width(options.d_key);
  projects_ = d != options.d_key;
  if (!projects_) return;
  matrix_ = AlignedArray<double>(d * width_);
  const double factor = options.gain / std::sqrt(static_cast<double>(d));
  Random random(seed, "zeta.projection");
  for (Index i = 0; i < d; ++i)
    for (Index c = 0; c < options.d_key; ++c) matrix_[i * width_ + c] = factor * random.normal();
}

double ZetaPoints::bytes(const ZetaPointOptions& options, Index d) {
  return d == options.d_key ? 0 : 8.0 * static_cast<double>(d * width(options.d_key));
}

void ZetaPoints::map(const float* x, Index count, float* points, std::uint64_t* codes) const {
  alignas(64) double t[kTokens * kMaxWidth];
  std::uint64_t u[kMaxWidth];
  for (Index first = 0; first < count; first += kTokens) {
    const Index tokens = std::min(kTokens, count - first);
    std::fill_n(t, kTokens * width_, 0.0);
    if (projects_ && width_ == 4 && tokens == kTokens) {
      typedef double Four __attribute__((vector_size(32)));
      Four sum[kTokens] = {};
      for (Index i = 0; i < d_; ++i) {
        Four w;
        std::memcpy(&w, matrix_.data() + i * 4, sizeof w);
#pragma GCC unroll 8
        for (Index r = 0; r < kTokens; ++r)
          sum[r] += w * static_cast<double>(x[(first + r) * d_ + i]);
      }
      std::memcpy(t, sum, sizeof sum);
    } else if (projects_) {
      for (Index r = 0; r < tokens; ++r)
        for (Index i = 0; i < d_; ++i) {
          const auto value = static_cast<double>(x[(first + r) * d_ + i]);
          for (Index c = 0; c < width_; ++c) t[r * width_ + c] += value * matrix_[i * width_ + c];
        }
    } else {
      for (Index r = 0; r < tokens; ++r)
        for (Index c = 0; c < d_; ++c)
          t[r * width_ + c] = options_.gain * static_cast<double>(x[(first + r) * d_ + c]);
    }
    if (options_.clamp) {
      for (Index e = 0; e < kTokens * width_; ++e) {
        t[e] = t[e] > 1 ? 1 : t[e];
        t[e] = t[e] < -1 ? -1 : t[e];
      }
    } else {
      for (Index e = 0; e < kTokens * width_; ++e) t[e] = branch_free_tanh(t[e]);
    }
    for (Index e = 0; e < tokens * width_; ++e)
      points[first * width_ + e] = static_cast<float>(t[e]);
    if (codes == nullptr) continue;
    for (Index r = 0; r < tokens; ++r) {
      for (Index c = 0; c < options_.d_key; ++c)
        u[c] = engine::quantized(t[r * width_ + c], options_.bits);
      codes[first + r] = engine::morton_code(u, options_.d_key, options_.bits);
    }
  }
}

void ZetaPoints::pull_back(const float* points, const float* dpoints, Index count,
                           float* dx) const {
  double slope[kMaxWidth];
  for (Index r = 0; r < count; ++r) {
    const float *const t = points + r * width_, *const g = dpoints + r * width_;
    for (Index c = 0; c < options_.d_key; ++c) {
      const auto value = static_cast<double>(t[c]);
      const double through = options_.clamp ? (std::fabs(value) < 1 ? 1 : 0) : 1 - value * value;
      // Padding may hold anything, but has no gradient.
      slope[c] = g[c] != 0 ? through * static_cast<double>(g[c]) : 0;
    }
    float* const to = dx + r * d_;
    if (!projects_) {
      for (Index c = 0; c < d_; ++c) to[c] = static_cast<float>(options_.gain * slope[c]);
      continue;
    }
    for (Index c = options_.d_key; c < width_; ++c) slope[c] = 0;
    for (Index i = 0; i < d_; ++i) {
      double sum = 0;
      for (Index c = 0; c < width_; ++c) sum += matrix_[i * width_ + c] * slope[c];
      to[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace subquad
