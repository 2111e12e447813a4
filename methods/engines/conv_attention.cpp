#include "methods/engines/conv_attention.h"

#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "methods/engines/masked_product.h"

namespace subquad {
namespace {

// A row whose normaliser is smaller (the largest kernel value is 1) is computed from its logits:
// its weights may have underflowed.
template <class T>
constexpr double kTiny = std::is_same_v<T, float> ? 1e-28 : 1e-280;

constexpr Index kRows = 64;

}  // namespace

template <class T>
void ConvAttention<T>::prepare(const Sizes& s, const ConvPlan& plan, Planner planner) {
  sizes_ = s;
  plan_ = plan;
  block_ = plan.engine == ConvEngine::partitioned ? plan.block : s.n;
  profiles_.prepare(s.n, s.d_k, s.max_segments, s.causal);
  w_ = ConvKernels<T>(s.n, s.max_segments, s.causal);
  if (plan.engine == ConvEngine::direct) {
    direct_.prepare(s.n, s.d_v);
  } else if (plan.engine == ConvEngine::partitioned) {
    partitioned_.prepare({s.n, s.d_v, s.max_segments, s.causal, plan.block, false}, planner);
  } else {
    fft_.prepare(
        {s.n, s.d_v, s.max_segments, s.causal, plan.engine == ConvEngine::shared, s.starts},
        planner);
  }
  const Index blocks = (s.n + block_ - 1) / block_;
  for (auto* x : {&sums_, &rounding_, &inverse_, &errors_}) *x = AlignedArray<double>(s.n);
  energy_ = AlignedArray<double>(s.max_segments * 2 * blocks);
  value_energy_ = AlignedArray<double>(blocks + s.max_segments);
  accumulators_ = AlignedArray<double>(thread_count() * s.d_v);
  skip_ = AlignedArray<std::uint8_t>(s.n);
  guarded_ = AlignedArray<Index>(s.n);
}

template <class T>
double ConvAttention<T>::bytes(const Sizes& s, const ConvPlan& plan) {
  const Index block = plan.engine == ConvEngine::partitioned ? plan.block : s.n;
  const Index blocks = (s.n + block - 1) / block;
  double bytes = ConvProfiles<T>::bytes(s.n, s.d_k, s.max_segments, s.causal) +
                 ConvKernels<T>::bytes(s.n, s.max_segments, s.causal) +
                 8.0 * static_cast<double>(5 * s.n + 2 * s.max_segments * blocks + blocks +
                                           s.max_segments + thread_count() * s.d_v) +
                 static_cast<double>(s.n);
  if (plan.engine == ConvEngine::direct) {
    bytes += DirectConv<T>::bytes(s.n, s.d_v);
  } else if (plan.engine == ConvEngine::partitioned) {
    bytes += PartitionedConv<T>::bytes({s.n, s.d_v, s.max_segments, s.causal, plan.block, false});
  } else {
    bytes += FftConv<T>::bytes(
        {s.n, s.d_v, s.max_segments, s.causal, plan.engine == ConvEngine::shared, s.starts});
  }
  return bytes;
}

template <class T>
Index ConvAttention<T>::forward(std::span<const Index> starts, const float* q, const float* k,
                                const float* v, double scale, double guard, float* out) {
  w_.set_starts(starts);
  profiles_.logits(q, k, scale, &w_);
  return forward_from_logits(q, k, v, scale, guard, out);
}

template <class T>
Index ConvAttention<T>::forward_from_logits(const float* q, const float* k, const float* v,
                                            double scale, double guard, float* out) {
  const Index n = sizes_.n, d_v = sizes_.d_v;
  profiles_.exponentiate(&w_);
  profiles_.normalizers(w_, sums_.data(), rounding_.data());

  const bool transforms = plan_.engine != ConvEngine::direct;
  const std::uint8_t* skip = nullptr;
  if (transforms && !all_finite(ConstMatrixMap(v, n, d_v))) {
    // A transform would spread a NaN over all rows, also to those that may not see it.
    for (Index j = 0; j < n; ++j)
      skip_[j] = all_finite(ConstMatrixMap(v + j * d_v, 1, d_v)) ? 0 : 1;
    skip = skip_.data();
  }
  if (transforms) {
    if (skip == nullptr) std::fill_n(skip_.data(), n, std::uint8_t{0});
    estimate_errors(v);
  } else {
    std::fill_n(errors_.data(), n, 0.0);
  }
  Index guarded = 0;
  for (Index t = 0; t < n; ++t) {
    inverse_[t] = 1 / sums_[t];
    if (!(sums_[t] > kTiny<T>) || !(errors_[t] + rounding_[t] / sums_[t] <= guard))
      guarded_[guarded++] = t;
  }

  if constexpr (std::is_same_v<T, float>) {
    if (plan_.engine == ConvEngine::direct) direct_.apply(w_, v, d_v, inverse_.data(), out);
  } else {
    SUBQUAD_CHECK(transforms, "the direct engine of a forward pass is float");
  }
  if (plan_.engine == ConvEngine::partitioned) {
    partitioned_.set_kernels(w_);
    partitioned_.apply(v, d_v, inverse_.data(), skip, out);
  } else if (transforms) {
    fft_.set_kernels(w_);
    fft_.apply(v, d_v, inverse_.data(), skip, out);
  }
  if (skip != nullptr)
    parallel_for((n + kRows - 1) / kRows, [&](Index item, int) {
      Index i = 0;
      const Index last = std::min(n, (item + 1) * kRows);
      for (Index j = 0; j < n; ++j) {
        while (j >= w_.end(i)) ++i;
        if (skip[j] == 0) continue;
        for (Index t = std::max(item * kRows, w_.causal() ? j : 0); t < last; ++t)
          for (Index c = 0; c < d_v; ++c)
            out[t * d_v + c] +=
                static_cast<float>(static_cast<double>(w_.profile(i)[t - j]) * inverse_[t]) *
                v[j * d_v + c];
      }
    });
  parallel_for(guarded, [&](Index row, int thread) {
    double* sums = accumulators_.data() + thread * d_v;
    const Index t = guarded_[row], seen = w_.causal() ? t + 1 : n;
    std::fill_n(sums, d_v, 0.0);
    double total = 0;
    const auto add = [&](Index j, double weight) {
      total += weight;
      for (Index c = 0; c < d_v; ++c) sums[c] += weight * static_cast<double>(v[j * d_v + c]);
    };
    if (sums_[t] > kTiny<T>) {
      for (Index i = 0, j = 0; j < seen; ++i)
        for (; j < std::min(w_.end(i), seen); ++j)
          add(j, static_cast<double>(w_.profile(i)[t - j]));
    } else {  // from the logits, with the row's own largest one
      const auto each = [&](auto&& body) {
        for (Index i = 0, j = 0; j < seen; ++i)
          for (; j < std::min(w_.end(i), seen); ++j) {
            const Index column = ConvProfiles<T>::column(w_, i, t < j);
            const float *a = q + (t - j + column) * sizes_.d_k, *b = k + column * sizes_.d_k;
            double logit = 0;
            for (Index c = 0; c < sizes_.d_k; ++c)
              logit += static_cast<double>(a[c]) * static_cast<double>(b[c]);
            body(j, scale * logit);
          }
      };
      double largest = -std::numeric_limits<double>::infinity();
      each([&](Index, double logit) { largest = logit > largest ? logit : largest; });
      each([&](Index j, double logit) { add(j, std::exp(logit - largest)); });
    }
    for (Index c = 0; c < d_v; ++c) out[t * d_v + c] = static_cast<float>(sums[c] / total);
  });
  return guarded;
}

// A transform of length F leaves errors of about eps sqrt(log2 F) times the norm of what it mixes,
// evenly on all rows of a block. For block r:
//   error^2 = eps^2 log2 F sum over pieces p of ||window(i, r - b)||^2 ||v_p||^2,
// divided by D(t) and by the smallest root mean square of the values of a block that is seen.
template <class T>
void ConvAttention<T>::estimate_errors(const float* v) {
  const Index n = sizes_.n, d_v = sizes_.d_v, blocks = (n + block_ - 1) / block_;
  const Index lag_blocks = 2 * blocks;  // lags [(y - blocks) B, (y - blocks + 1) B)
  parallel_for(w_.count(), [&](Index i, int) {
    double* energy = energy_.data() + i * lag_blocks;
    std::fill_n(energy, lag_blocks, 0.0);
    const T* profile = w_.profile(i);
    for (Index lag = w_.lowest(i); lag <= w_.highest(i);) {
      const Index y = (lag + n * block_) / block_ - n + blocks;  // floor for negative lags too
      const Index end = std::min(w_.highest(i) + 1, (y - blocks + 1) * block_);
      double sum = 0;
      for (; lag < end; ++lag) sum += static_cast<double>(profile[lag] * profile[lag]);
      energy[y] += sum;
    }
  });
  const auto norm = [&](Index begin, Index end) {
    double sum = 0;
    for (Index j = begin; j < end; ++j)
      if (skip_[j] == 0)
        sum += static_cast<double>(ConstMatrixMap(v + j * d_v, 1, d_v).squaredNorm());
    return sum / static_cast<double>(d_v);
  };
  Index pieces = 0;
  for (Index i = 0; i < w_.count(); ++i)
    for (Index b = w_.start(i) / block_; b <= (w_.end(i) - 1) / block_; ++b)
      value_energy_[pieces++] =
          norm(std::max(w_.start(i), b * block_), std::min(w_.end(i), (b + 1) * block_));
  const double length = static_cast<double>(2 * block_);
  const double unit =
      static_cast<double>(std::numeric_limits<T>::epsilon()) * std::sqrt(std::log2(length));
  double level = std::numeric_limits<double>::infinity();  // smallest mean square so far
  const auto mean_square = [&](Index b) {
    double sum = 0;
    Index p = 0;
    for (Index i = 0; i < w_.count(); ++i)
      for (Index c = w_.start(i) / block_; c <= (w_.end(i) - 1) / block_; ++c, ++p)
        if (c == b) sum += value_energy_[p];
    return sum / static_cast<double>(std::min(block_, n - b * block_));
  };
  if (!w_.causal())
    for (Index b = 0; b < blocks; ++b)
      if (const double x = mean_square(b); x > 0) level = std::min(level, x);
  for (Index r = 0; r < blocks; ++r) {
    if (w_.causal())
      if (const double x = mean_square(r); x > 0) level = std::min(level, x);
    double sum = 0;
    Index p = 0;
    for (Index i = 0; i < w_.count(); ++i) {
      const double* energy = energy_.data() + i * lag_blocks + blocks;
      for (Index b = w_.start(i) / block_; b <= (w_.end(i) - 1) / block_; ++b, ++p)
        if (!w_.causal() || b <= r) sum += (energy[r - b] + energy[r - b - 1]) * value_energy_[p];
    }
    const double error = sum > 0 ? unit * std::sqrt(sum / level) : 0;
    for (Index t = r * block_; t < std::min(n, (r + 1) * block_); ++t)
      errors_[t] = error / sums_[t];
  }
}

template class ConvAttention<float>;
template class ConvAttention<double>;

}  // namespace subquad
