#include "methods/engines/conv_fft.h"

#include <type_traits>

#include "harness/core/parallel.h"
#include "methods/engines/complex_lanes.h"
#include "methods/engines/transpose_columns.h"

namespace subquad {
namespace {

constexpr Index kChunk = 512;              // rows that a thread turns into columns at a time
constexpr Index kShares[] = {8, 4, 2, 1};  // a shared length is n + n / share, for unknown starts
constexpr Index kShortest = 32;            // of the lengths between which local transforms choose

// Long spectra live in the outer caches, where passes over them are what costs. So the products of
// kGroup segments are added to a sum in one pass, for kTogether columns that share the kernels.
constexpr int kGroup = 4, kTogether = 2;

Index aligned(Index values) { return (values + 15) / 16 * 16; }

// to[t] = from[t] unit scale[t]; scale may be null.
template <class T, class Value>
void store_scaled(const T* from, Index n, double unit, const double* scale, Value* to) {
  if (scale == nullptr) {
    for (Index t = 0; t < n; ++t) to[t] = static_cast<Value>(static_cast<double>(from[t]) * unit);
  } else {
    for (Index t = 0; t < n; ++t)
      to[t] = static_cast<Value>(static_cast<double>(from[t]) * (unit * scale[t]));
  }
}

// sums(c) = or += sum over g < group of kernels[g] * products(c, g): see complex_lanes.h.
template <class T>
void add_products(int group, int columns, bool keep, const T* const* kernels, const T* products,
                  Index stride, Index size, T* sums) {
  const auto run = [&](auto groups) {
    constexpr int kCount = decltype(groups)::value;
    const auto add = [&](auto columns_now, auto keep_now) {
      lanes::add_complex_products<kCount, decltype(columns_now)::value, decltype(keep_now)::value,
                                  kGroup>(kernels, products, stride, size, sums, stride);
    };
    const auto with_columns = [&](auto keep_now) {
      if (columns == kTogether) {
        add(std::integral_constant<int, kTogether>(), keep_now);
      } else {
        add(std::integral_constant<int, 1>(), keep_now);
      }
    };
    if (keep) {
      with_columns(std::true_type());
    } else {
      with_columns(std::false_type());
    }
  };
  if (group == 4) return run(std::integral_constant<int, 4>());
  if (group == 3) return run(std::integral_constant<int, 3>());
  if (group == 2) return run(std::integral_constant<int, 2>());
  run(std::integral_constant<int, 1>());
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
    // Few, because the tables of every plan are as long as a spectrum.
    for (const Index share : kShares) all.push_back(good_fft_size(s.n + (s.n + share - 1) / share));
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
// Of one thread: one padded column, spectra of the products and their sums.
template <class T>
Index FftConv<T>::scratch_values(const Sizes& s) {
  const Index spectra = s.shared ? kTogether * (kGroup + 1) : 2;
  return (1 + spectra) * spectrum_values(s);
}
// 16 more, so that neighbouring columns do not lie a power of two apart, in one set of the cache.
template <class T>
Index FftConv<T>::stride(const Sizes& s) {
  return aligned(s.n) + 16;
}
template <class T>
double FftConv<T>::bytes(const Sizes& s) {
  double plans = 0;
  for (const Index length : lengths(s)) plans += RealFft<T>::bytes(length);
  return plans +
         static_cast<double>(sizeof(T)) * static_cast<double>(s.max_segments * spectrum_values(s) +
                                                              thread_count() * scratch_values(s)) +
         16.0 * static_cast<double>(s.max_segments) +
         (s.wide ? 8.0 : 4.0) * static_cast<double>(s.columns * stride(s));
}

template <class T>
void FftConv<T>::prepare(const Sizes& sizes, Planner planner) {
  sizes_ = sizes;
  spectrum_ = spectrum_values(sizes);
  scratch_size_ = scratch_values(sizes);
  fft_.clear();
  for (const Index length : lengths(sizes)) fft_.emplace_back(length, planner);
  plans_.reserve(static_cast<std::size_t>(sizes.max_segments));
  offsets_.reserve(static_cast<std::size_t>(sizes.max_segments));
  kernels_ = AlignedArray<T>(sizes.max_segments * spectrum_);
  columns_ = AlignedArray<float>(sizes.wide ? 0 : sizes.columns * stride(sizes));
  wide_columns_ = AlignedArray<double>(sizes.wide ? sizes.columns * stride(sizes) : 0);
  threads_ = 0;
  grow_scratch();
}

template <class T>
void FftConv<T>::grow_scratch() {
  if (threads_ >= thread_count()) return;
  threads_ = thread_count();
  scratch_ = AlignedArray<T>(threads_ * scratch_size_);
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
    T* padded = scratch_.data() + thread * scratch_size_;
    std::fill_n(padded, fft.length(), T{0});
    const T* profile = w.profile(i);
    std::copy(profile, profile + w.highest(i) + 1, padded);
    if (w.lowest(i) < 0)
      std::copy(profile + w.lowest(i), profile, padded + fft.length() + w.lowest(i));
    fft.forward(padded, kernels_.data() + offsets_[static_cast<std::size_t>(i)]);
  });
}

// Replaces `count` <= kTogether columns by their products. The padded column is zero before and
// after.
template <class T>
template <class Value>
void FftConv<T>::shared_columns(Value* columns, Index count, const double* row_scale,
                                T* work) const {
  const RealFft<T>& fft = *plans_.front();
  const Index size = aligned(fft.length() + 2), segments = w_->count(), ld = stride(sizes_);
  T *padded = work, *products = work + spectrum_;
  T* sums = products + kTogether * kGroup * spectrum_;
  for (Index i0 = 0; i0 < segments; i0 += kGroup) {
    const auto group = static_cast<int>(std::min<Index>(kGroup, segments - i0));
    const T* kernels[kGroup] = {};
    for (int g = 0; g < group; ++g)
      kernels[g] = kernels_.data() + offsets_[static_cast<std::size_t>(i0 + g)];
    for (Index c = 0; c < count; ++c)
      for (int g = 0; g < group; ++g) {
        const Index begin = w_->start(i0 + g), end = w_->end(i0 + g);
        const Value* values = columns + c * ld;
        for (Index j = begin; j < end; ++j) padded[j] = static_cast<T>(values[j]);
        fft.forward(padded, products + (c * kGroup + g) * spectrum_);
        std::fill(padded + begin, padded + end, T{0});
      }
    add_products<T>(group, static_cast<int>(count), i0 > 0, kernels, products, spectrum_, size,
                    sums);
  }
  const double unit = 1.0 / static_cast<double>(fft.length());
  for (Index c = 0; c < count; ++c) {
    fft.inverse(sums + c * spectrum_, products);
    store_scaled(products, sizes_.n, unit, row_scale, columns + c * ld);
  }
}

// Replaces a column by its product.
template <class T>
template <class Value>
void FftConv<T>::local_column(Value* column, const double* row_scale, T* work) const {
  const Index n = sizes_.n;
  T *padded = work, *product = work + spectrum_, *sum = product + spectrum_;
  std::fill_n(sum, n, T{0});  // the longest spectrum has more than n values
  for (Index i = 0; i < w_->count(); ++i) {
    const RealFft<T>& fft = *plans_[static_cast<std::size_t>(i)];
    const Index start = w_->start(i), size = w_->end(i) - start;
    for (Index j = 0; j < size; ++j) padded[j] = static_cast<T>(column[start + j]);
    std::fill(padded + size, padded + fft.length(), T{0});
    fft.forward(padded, product);
    const T* kernel = kernels_.data() + offsets_[static_cast<std::size_t>(i)];
    add_products<T>(1, 1, false, &kernel, product, spectrum_, aligned(fft.length() + 2), product);
    fft.inverse(product, padded);
    const T unit = T{1} / static_cast<T>(fft.length());
    for (Index t = start; t < n; ++t) sum[t] += padded[t - start] * unit;
    const T* before = padded + fft.length() - start;
    for (Index t = 0; !w_->causal() && t < start; ++t) sum[t] += before[t] * unit;
  }
  store_scaled(sum, n, 1.0, row_scale, column);
}

template <class T>
template <class Value>
void FftConv<T>::apply(const Value* x, Index columns, const double* row_scale,
                       const std::uint8_t* skip, Value* out) {
  const Index n = sizes_.n, ld = stride(sizes_);
  Value* buffer = nullptr;
  if constexpr (std::is_same_v<Value, double>) {
    buffer = wide_columns_.data();
  } else {
    buffer = columns_.data();
  }
  SUBQUAD_CHECK(columns <= sizes_.columns && buffer != nullptr, "{} columns, prepared for {}",
                columns, sizes_.columns);
  const Index chunks = (n + kChunk - 1) / kChunk;
  parallel_for(chunks, [&](Index item, int) {
    const Index first = item * kChunk, rows = std::min(kChunk, n - first);
    lanes::rows_to_columns(x + first * columns, columns, rows, columns, buffer + first, ld);
    for (Index j = first; skip != nullptr && j < first + rows; ++j)
      for (Index c = 0; c < columns && skip[j] != 0; ++c) buffer[c * ld + j] = Value{0};
  });
  if (sizes_.shared) {
    for (int thread = 0; thread < threads_; ++thread)
      std::fill_n(scratch_.data() + thread * scratch_size_, plans_.front()->length(), T{0});
    parallel_for((columns + kTogether - 1) / kTogether, [&](Index item, int thread) {
      const Index first = item * kTogether;
      shared_columns(buffer + first * ld, std::min<Index>(kTogether, columns - first), row_scale,
                     scratch_.data() + thread * scratch_size_);
    });
  } else {
    parallel_for(columns, [&](Index c, int thread) {
      local_column(buffer + c * ld, row_scale, scratch_.data() + thread * scratch_size_);
    });
  }
  parallel_for(chunks, [&](Index item, int) {
    const Index first = item * kChunk, rows = std::min(kChunk, n - first);
    lanes::rows_to_columns(buffer + first, ld, columns, rows, out + first * columns, columns);
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
