#include "methods/engines/conv_fft.h"

#include <complex>

#include "harness/core/parallel.h"

namespace subquad {
namespace {

constexpr Index kTile = 8;       // columns that are copied together
constexpr Index kEighths = 8;    // steps of a shared length between n and 2 n
constexpr Index kShortest = 32;  // of the lengths between which local transforms choose

Index aligned(Index values) { return (values + 15) / 16 * 16; }

template <class T>
using Spectrum = Eigen::Map<Eigen::Array<std::complex<T>, Eigen::Dynamic, 1>>;
template <class T>
Spectrum<T> spectrum(T* data, Index size) {
  return Spectrum<T>(reinterpret_cast<std::complex<T>*>(data), size);
}

}  // namespace

template <class T>
Index FftConv<T>::needed(const Sizes& s, Index start, Index end) {
  return (s.shared || !s.causal ? s.n : s.n - start) + (end - start) - 1;
}

template <class T>
std::vector<Index> FftConv<T>::lengths(const Sizes& s) {
  std::vector<Index> all;
  if (!s.starts.empty()) {
    for (std::size_t i = 0; i < s.starts.size(); ++i)
      all.push_back(
          good_fft_size(needed(s, s.starts[i], i + 1 < s.starts.size() ? s.starts[i + 1] : s.n)));
    std::sort(all.begin(), all.end());
    if (s.shared) all = {all.back()};
  } else if (s.shared) {
    for (Index m = 1; m <= kEighths; ++m)
      all.push_back(good_fft_size(s.n + (s.n * m + kEighths - 1) / kEighths));
  } else {
    for (Index power = kShortest; all.empty() || all.back() < 2 * s.n; power *= 2) {
      all.push_back(power);
      all.push_back(power + power / 2);
    }
  }
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

template <class T>
Index FftConv<T>::spectrum_values(const Sizes& s) {
  return aligned(lengths(s).back() + 2);
}
// [kTile, n] columns, one padded column, one spectrum and one sum of spectra.
template <class T>
Index FftConv<T>::column_values(const Sizes& s) {
  return kTile * aligned(s.n) + 3 * spectrum_values(s);
}
template <class T>
double FftConv<T>::bytes(const Sizes& s) {
  return static_cast<double>(sizeof(T)) * static_cast<double>(s.max_segments * spectrum_values(s) +
                                                              thread_count() * column_values(s)) +
         16.0 * static_cast<double>(s.max_segments);
}

template <class T>
void FftConv<T>::prepare(const Sizes& sizes, Planner planner) {
  sizes_ = sizes;
  fft_.clear();
  for (const Index length : lengths(sizes)) fft_.emplace_back(length, planner);
  plans_.reserve(static_cast<std::size_t>(sizes.max_segments));
  offsets_.reserve(static_cast<std::size_t>(sizes.max_segments));
  kernels_ = AlignedArray<T>(sizes.max_segments * spectrum_values(sizes));
  threads_ = 0;
  grow_scratch();
}

template <class T>
void FftConv<T>::grow_scratch() {
  if (threads_ >= thread_count()) return;
  threads_ = thread_count();
  scratch_ = AlignedArray<T>(threads_ * column_values(sizes_));
}

template <class T>
const RealFft<T>& FftConv<T>::plan_for(Index length) const {
  for (const RealFft<T>& fft : fft_)
    if (fft.length() >= length) return fft;
  throw InternalError(fmt::format("no transform of length {} was prepared", length));
}

template <class T>
void FftConv<T>::set_kernels(const ConvKernels<T>& w) {
  grow_scratch();
  SUBQUAD_CHECK(
      w.n() == sizes_.n && w.count() <= sizes_.max_segments && w.causal() == sizes_.causal,
      "{} kernels of length {}", w.count(), w.n());
  w_ = &w;
  plans_.clear();
  offsets_.clear();
  Index longest = 0, next = 0;
  for (Index i = 0; i < w.count(); ++i)
    longest = std::max(longest, needed(sizes_, w.start(i), w.end(i)));
  for (Index i = 0; i < w.count(); ++i) {
    plans_.push_back(&plan_for(sizes_.shared ? longest : needed(sizes_, w.start(i), w.end(i))));
    offsets_.push_back(next);
    next += aligned(plans_.back()->length() + 2);
  }
  parallel_for(w.count(), [&](Index i, int thread) {
    const RealFft<T>& fft = *plans_[static_cast<std::size_t>(i)];
    T* padded = scratch_.data() + thread * column_values(sizes_) + kTile * aligned(sizes_.n);
    std::fill_n(padded, fft.length(), T{0});
    const T* profile = w.profile(i);
    std::copy(profile, profile + w.highest(i) + 1, padded);
    if (w.lowest(i) < 0)
      std::copy(profile + w.lowest(i), profile, padded + fft.length() + w.lowest(i));
    fft.forward(padded, kernels_.data() + offsets_[static_cast<std::size_t>(i)]);
  });
}

template <class T>
template <class In, class Out>
void FftConv<T>::apply(const In* x, Index columns, const double* row_scale,
                       const std::uint8_t* skip, Out* out) {
  const Index n = sizes_.n, stride = aligned(n);
  parallel_for((columns + kTile - 1) / kTile, [&](Index tile, int thread) {
    const Index column = tile * kTile, count = std::min(kTile, columns - column);
    T* rows = scratch_.data() + thread * column_values(sizes_);  // [kTile, stride]
    T* padded = rows + kTile * stride;
    T* product = padded + spectrum_values(sizes_);
    T* sum = product + spectrum_values(sizes_);
    for (Index j = 0; j < n; ++j) {
      const bool zero = skip != nullptr && skip[j] != 0;
      for (Index c = 0; c < count; ++c)
        rows[c * stride + j] = zero ? T{0} : static_cast<T>(x[j * columns + column + c]);
    }
    for (Index c = 0; c < count; ++c) {
      T* values = rows + c * stride;
      if (sizes_.shared) {
        const RealFft<T>& shared = fft();
        const Index bins = shared.spectrum_size();
        std::fill_n(padded, shared.length(), T{0});
        for (Index i = 0; i < w_->count(); ++i) {
          T* segment = padded + w_->start(i);
          std::copy(values + w_->start(i), values + w_->end(i), segment);
          shared.forward(padded, product);
          std::fill_n(segment, w_->end(i) - w_->start(i), T{0});
          auto total = spectrum(sum, bins);
          const auto kernel =
              spectrum(kernels_.data() + offsets_[static_cast<std::size_t>(i)], bins);
          if (i == 0) {
            total = kernel * spectrum(product, bins);
          } else {
            total += kernel * spectrum(product, bins);
          }
        }
        shared.inverse(sum, padded);
        const T unit = T{1} / static_cast<T>(shared.length());
        for (Index t = 0; t < n; ++t) values[t] = padded[t] * unit;
      } else {
        std::fill_n(sum, n, T{0});  // the longest spectrum has more than n values
        for (Index i = 0; i < w_->count(); ++i) {
          const RealFft<T>& fft = *plans_[static_cast<std::size_t>(i)];
          const Index size = w_->end(i) - w_->start(i), bins = fft.spectrum_size();
          std::copy(values + w_->start(i), values + w_->end(i), padded);
          std::fill(padded + size, padded + fft.length(), T{0});
          fft.forward(padded, product);
          auto total = spectrum(product, bins);
          total *= spectrum(kernels_.data() + offsets_[static_cast<std::size_t>(i)], bins);
          fft.inverse(product, padded);
          const T unit = T{1} / static_cast<T>(fft.length());
          for (Index t = w_->start(i); t < n; ++t) sum[t] += padded[t - w_->start(i)] * unit;
          const T* before = padded + fft.length() - w_->start(i);
          for (Index t = 0; !w_->causal() && t < w_->start(i); ++t) sum[t] += before[t] * unit;
        }
        std::copy_n(sum, n, values);
      }
    }
    for (Index t = 0; t < n; ++t) {
      const double scale = row_scale != nullptr ? row_scale[t] : 1.0;
      for (Index c = 0; c < count; ++c)
        out[t * columns + column + c] =
            static_cast<Out>(static_cast<double>(rows[c * stride + t]) * scale);
    }
  });
}

template class FftConv<float>;
template class FftConv<double>;
template void FftConv<float>::apply(const float*, Index, const double*, const std::uint8_t*,
                                    float*);
template void FftConv<double>::apply(const float*, Index, const double*, const std::uint8_t*,
                                     float*);
template void FftConv<double>::apply(const double*, Index, const double*, const std::uint8_t*,
                                     double*);

}  // namespace subquad
