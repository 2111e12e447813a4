#include "methods/engines/conv_partitioned.h"

#include "harness/core/parallel.h"
#include "methods/engines/complex_lanes.h"
#include "methods/engines/transpose_columns.h"

namespace subquad {
namespace {

using namespace lanes;

// Columns that share the loads of a kernel: their real and imaginary sums fill half the registers.
constexpr Index kTile = engine::kRegisters == 32 ? 8 : 4;

Index whole_vectors(Index values, Index width) { return (values + width - 1) / width; }

// sum over `terms` of kernel x value for kTile columns, or conj(kernel) x value.
// place(term) gives {kernel [2 width], values [kTile, 2 width]}.
template <bool CONJUGATE, class T, class Place>
[[gnu::always_inline]] inline void complex_sum(Index terms, Place&& place, T* out) {
  Vec<T> re[kTile], im[kTile];
#pragma GCC unroll 8
  for (Index c = 0; c < kTile; ++c) re[c] = im[c] = Vec<T>{};
  for (Index term = 0; term < terms; ++term) {
    const auto [kernel, values] = place(term);
    const Vec<T> wr = load_vec<T>(kernel);
    const Vec<T> wi =
        CONJUGATE ? -load_vec<T>(kernel + kWidth<T>) : load_vec<T>(kernel + kWidth<T>);
#pragma GCC unroll 8
    for (Index c = 0; c < kTile; ++c) {
      const Vec<T> xr = load_vec<T>(values + 2 * c * kWidth<T>);
      const Vec<T> xi = load_vec<T>(values + (2 * c + 1) * kWidth<T>);
      re[c] += wr * xr;
      im[c] += wr * xi;
      re[c] -= wi * xi;
      im[c] += wi * xr;
    }
  }
#pragma GCC unroll 8
  for (Index c = 0; c < kTile; ++c) {
    store_vec(out + 2 * c * kWidth<T>, re[c]);
    store_vec(out + (2 * c + 1) * kWidth<T>, im[c]);
  }
}

template <class T>
struct Place {
  const T* kernel;
  const T* values;
};

}  // namespace

template <class T>
Index PartitionedConv<T>::max_kernels(const Sizes& s) {
  return s.max_segments * blocks(s) + (s.causal ? 0 : blocks(s));
}
template <class T>
Index PartitionedConv<T>::vectors(const Sizes& s) {
  return whole_vectors(s.block + 1, kWidth<T>);
}

// One thread: [kTile, 2 B + 16] rows, one spectrum, spectra of the pieces and of the blocks.
template <class T>
Index PartitionedConv<T>::scratch_values(const Sizes& s) {
  const Index spectrum = 2 * vectors(s) * kWidth<T>;
  return kTile * (2 * s.block + 16) + spectrum + kTile * spectrum * (max_pieces(s) + blocks(s));
}

template <class T>
double PartitionedConv<T>::bytes(const Sizes& s) {
  const double windows =
      static_cast<double>(max_kernels(s)) * static_cast<double>(2 * vectors(s) * kWidth<T>);
  return static_cast<double>(sizeof(T)) *
             (windows * (s.correlate ? 2 : 1) +
              static_cast<double>(thread_count()) * static_cast<double>(scratch_values(s))) +
         static_cast<double>(sizeof(Piece)) * static_cast<double>(max_pieces(s)) +
         8.0 * static_cast<double>(s.max_segments) + RealFft<T>::bytes(2 * s.block);
}

template <class T>
void PartitionedConv<T>::prepare(const Sizes& sizes, Planner planner) {
  SUBQUAD_CHECK(sizes.block >= 8, "a block of {}", sizes.block);
  sizes_ = sizes;
  fft_ = RealFft<T>(2 * sizes.block, planner);
  pieces_.reserve(static_cast<std::size_t>(max_pieces(sizes)));
  kernel_base_.reserve(static_cast<std::size_t>(sizes.max_segments));
  const Index values = max_kernels(sizes) * 2 * vectors(sizes) * kWidth<T>;
  kernels_ = AlignedArray<T>(values);
  sums_ = AlignedArray<T>(sizes.correlate ? values : 0);
  threads_ = 0;
  grow_scratch();
}

template <class T>
template <class Body>
void PartitionedConv<T>::for_items(Index count, Body&& body) const {
  if (!sizes_.alone) return parallel_for(count, body);
  for (Index i = 0; i < count; ++i) body(i, 0);
}

template <class T>
void PartitionedConv<T>::grow_scratch() {
  if (threads_ >= thread_count()) return;
  threads_ = thread_count();
  scratch_ = AlignedArray<T>(threads_ * scratch_values(sizes_));
}

template <class T>
void PartitionedConv<T>::scatter(const T* spectrum, Index items, Index slot, T* to) const {
  constexpr Index kStep = 2 * kWidth<T>;
  for (Index f = 0; f < vectors(sizes_); ++f)
    deinterleave(spectrum + f * kStep, to + (f * items + slot) * kStep);
}

template <class T>
void PartitionedConv<T>::gather(const T* from, Index items, Index slot, T* spectrum) const {
  constexpr Index kStep = 2 * kWidth<T>;
  for (Index f = 0; f < vectors(sizes_); ++f)
    interleave(from + (f * items + slot) * kStep, spectrum + f * kStep);
}

// Rows [begin, end) of `count` columns of x, each at its place in `block`, into rows
// [kTile, 2 B + 16]; zero elsewhere.
template <class T>
template <class In>
void PartitionedConv<T>::load(const In* x, Index ld, Index column, Index count, Index begin,
                              Index end, Index block, const std::uint8_t* skip, T* rows) const {
  const Index stride = 2 * sizes_.block + 16, first = block * sizes_.block;
  for (Index c = 0; c < count; ++c) std::fill_n(rows + c * stride, 2 * sizes_.block, T{0});
  rows_to_columns(x + begin * ld + column, ld, end - begin, count, rows + begin - first, stride);
  for (Index j = begin; skip != nullptr && j < end; ++j)
    for (Index c = 0; c < count && skip[j] != 0; ++c) rows[c * stride + j - first] = T{0};
}

// Transforms `count` columns of `rows` into slots (item, 0 .. kTile - 1) of `to`.
template <class T>
void PartitionedConv<T>::transform(T* rows, Index count, T* spectrum, Index items, Index item,
                                   T* to) const {
  const Index stride = 2 * sizes_.block + 16, used = sizes_.block + 1;
  std::fill(spectrum + 2 * used, spectrum + 2 * vectors(sizes_) * kWidth<T>, T{0});
  for (Index c = 0; c < kTile; ++c) {
    if (c < count) {
      fft_.forward(rows + c * stride, spectrum);
    } else {
      std::fill_n(spectrum, 2 * used, T{0});
    }
    scatter(spectrum, items * kTile, item * kTile + c, to);
  }
}

template <class T>
void PartitionedConv<T>::set_kernels(const ConvKernels<T>& w) {
  grow_scratch();
  const Index block = sizes_.block, all = blocks(sizes_);
  SUBQUAD_CHECK(
      w.n() == sizes_.n && w.count() <= sizes_.max_segments && w.causal() == sizes_.causal,
      "{} kernels of length {}", w.count(), w.n());
  causal_ = w.causal();
  pieces_.clear();
  kernel_base_.clear();
  kernel_count_ = 0;
  for (Index i = 0; i < w.count(); ++i) {
    const Index b0 = w.start(i) / block, b1 = (w.end(i) - 1) / block;
    const Index lowest = causal_ ? 0 : -b1;
    for (Index b = b0; b <= b1; ++b)
      pieces_.push_back({i, b, std::max(w.start(i), b * block), std::min(w.end(i), (b + 1) * block),
                         kernel_count_ - b - lowest});
    kernel_base_.push_back(kernel_count_);
    kernel_count_ += all - b0 - lowest;
  }
  // Several windows of a segment per item would save nothing: each is one transform.
  for_items(kernel_count_, [&](Index kernel, int thread) {
    const auto after = std::upper_bound(kernel_base_.begin(), kernel_base_.end(), kernel);
    const Index i = after - kernel_base_.begin() - 1;
    const Index lowest = causal_ ? 0 : -((w.end(i) - 1) / block);
    const Index middle = (kernel - kernel_base_[static_cast<std::size_t>(i)] + lowest) * block;
    T* window = scratch(thread);
    T* spectrum = window + kTile * (2 * block + 16);
    std::fill_n(window, 2 * block, T{0});
    const T* from = w.profile(i);
    const Index low = w.lowest(i), high = w.highest(i);
    const auto copy = [&](Index first, Index last, T* to) {  // lags [first, last) -> to[0 ..]
      const Index a = std::max(first, low), b = std::min(last, high + 1);
      if (a < b) std::copy(from + a, from + b, to + (a - first));
    };
    copy(middle, middle + block, window);
    copy(middle - block + 1, middle, window + block + 1);
    std::fill(spectrum + 2 * (block + 1), spectrum + 2 * vectors(sizes_) * kWidth<T>, T{0});
    fft_.forward(window, spectrum);
    scatter(spectrum, kernel_count_, kernel, kernels_.data());
  });
}

template <class T>
template <class In, class Out>
void PartitionedConv<T>::apply(const In* x, Index columns, const double* row_scale,
                               const std::uint8_t* skip, Out* out) {
  constexpr Index kStep = 2 * kWidth<T>;
  const Index block = sizes_.block, all = blocks(sizes_), stride = 2 * block + 16;
  const auto pieces = static_cast<Index>(pieces_.size());
  const double unit = 1.0 / static_cast<double>(2 * block);
  for_items((columns + kTile - 1) / kTile, [&](Index tile, int thread) {
    const Index column = tile * kTile, count = std::min(kTile, columns - column);
    T* rows = scratch(thread);
    T* spectrum = rows + kTile * stride;
    T* values = spectrum + vectors(sizes_) * kStep;  // [vectors, pieces, kTile, 2, width]
    T* results = values + vectors(sizes_) * pieces * kTile * kStep;
    for (Index p = 0; p < pieces; ++p) {
      const Piece& piece = pieces_[static_cast<std::size_t>(p)];
      load(x, columns, column, count, piece.begin, piece.end, piece.block, skip, rows);
      transform(rows, count, spectrum, pieces, p, values);
    }
    for (Index f = 0; f < vectors(sizes_); ++f) {
      const T* kernels = kernels_.data() + f * kernel_count_ * kStep;
      const T* from = values + f * pieces * kTile * kStep;
      Index seen = causal_ ? 0 : pieces;
      for (Index r = 0; r < all; ++r) {
        while (seen < pieces && pieces_[static_cast<std::size_t>(seen)].block <= r) ++seen;
        complex_sum<false, T>(
            seen,
            [&](Index p) {
              return Place<T>{kernels + (pieces_[static_cast<std::size_t>(p)].kernel + r) * kStep,
                              from + p * kTile * kStep};
            },
            results + (f * all + r) * kTile * kStep);
      }
    }
    for (Index r = 0; r < all; ++r) {
      for (Index c = 0; c < count; ++c) {
        gather(results, all * kTile, r * kTile + c, spectrum);
        fft_.inverse(spectrum, rows + c * stride);
      }
      const Index first = r * block;
      columns_to_rows(rows, stride, std::min(block, sizes_.n - first), count, unit,
                      row_scale != nullptr ? row_scale + first : nullptr,
                      out + first * columns + column, columns);
    }
  });
}

template <class T>
void PartitionedConv<T>::apply_transposed(const T* x, Index columns, T* out) {
  constexpr Index kStep = 2 * kWidth<T>;
  const Index block = sizes_.block, all = blocks(sizes_), stride = 2 * block + 16;
  const auto pieces = static_cast<Index>(pieces_.size());
  const T unit = T{1} / static_cast<T>(2 * block);
  for_items((columns + kTile - 1) / kTile, [&](Index tile, int thread) {
    const Index column = tile * kTile, count = std::min(kTile, columns - column);
    T* rows = scratch(thread);
    T* spectrum = rows + kTile * stride;
    T* values = spectrum + vectors(sizes_) * kStep;  // [vectors, blocks, kTile, 2, width]
    T* results = values + vectors(sizes_) * all * kTile * kStep;
    for (Index r = 0; r < all; ++r) {
      load(x, columns, column, count, r * block, std::min(sizes_.n, (r + 1) * block), r, nullptr,
           rows);
      transform(rows, count, spectrum, all, r, values);
    }
    for (Index f = 0; f < vectors(sizes_); ++f) {
      const T* kernels = kernels_.data() + f * kernel_count_ * kStep;
      const T* from = values + f * all * kTile * kStep;
      for (Index p = 0; p < pieces; ++p) {
        const Piece& piece = pieces_[static_cast<std::size_t>(p)];
        const Index first = causal_ ? piece.block : 0;
        complex_sum<true, T>(
            all - first,
            [&](Index term) {
              return Place<T>{kernels + (piece.kernel + first + term) * kStep,
                              from + (first + term) * kTile * kStep};
            },
            results + (f * pieces + p) * kTile * kStep);
      }
    }
    for (Index p = 0; p < pieces; ++p) {
      const Piece& piece = pieces_[static_cast<std::size_t>(p)];
      for (Index c = 0; c < count; ++c) {
        gather(results, pieces * kTile, p * kTile + c, spectrum);
        fft_.inverse(spectrum, rows + c * stride);
        for (Index j = piece.begin; j < piece.end; ++j)
          out[j * columns + column + c] = rows[c * stride + j - piece.block * block] * unit;
      }
    }
  });
}

// Spectra of the correlations are summed over columns and over the pieces of a segment, so that
// every window needs one inverse transform. Tiles of columns come one after the other: the sums do
// not depend on the number of threads.
template <class T>
void PartitionedConv<T>::correlate(const T* g, const T* x, Index columns, ConvKernels<T>* to) {
  constexpr Index kStep = 2 * kWidth<T>;
  SUBQUAD_CHECK(sizes_.correlate, "prepared without correlate");
  const Index block = sizes_.block, all = blocks(sizes_), stride = 2 * block + 16;
  const auto pieces = static_cast<Index>(pieces_.size());
  std::fill_n(sums_.data(), vectors(sizes_) * kernel_count_ * kStep, T{0});
  T* values = scratch(0) + kTile * stride + vectors(sizes_) * kStep;
  T* others = values + vectors(sizes_) * pieces * kTile * kStep;
  for (Index column = 0; column < columns; column += kTile) {
    const Index count = std::min(kTile, columns - column);
    for_items(pieces + all, [&](Index item, int thread) {
      T* rows = scratch(thread);
      T* spectrum = rows + kTile * stride;
      if (item < pieces) {
        const Piece& piece = pieces_[static_cast<std::size_t>(item)];
        load(x, columns, column, count, piece.begin, piece.end, piece.block, nullptr, rows);
        transform(rows, count, spectrum, pieces, item, values);
      } else {
        const Index r = item - pieces;
        load(g, columns, column, count, r * block, std::min(sizes_.n, (r + 1) * block), r, nullptr,
             rows);
        transform(rows, count, spectrum, all, r, others);
      }
    });
    for_items(vectors(sizes_), [&](Index f, int) {
      for (Index p = 0; p < pieces; ++p) {
        const Piece& piece = pieces_[static_cast<std::size_t>(p)];
        const T* a = values + (f * pieces + p) * kTile * kStep;
        for (Index r = causal_ ? piece.block : 0; r < all; ++r) {
          const T* b = others + (f * all + r) * kTile * kStep;
          T* sum = sums_.data() + (f * kernel_count_ + piece.kernel + r) * kStep;
          Vec<T> re = load_vec<T>(sum), im = load_vec<T>(sum + kWidth<T>);
          for (Index c = 0; c < kTile; ++c) {  // conj(a) b
            const Vec<T> ar = load_vec<T>(a + c * kStep);
            const Vec<T> ai = load_vec<T>(a + c * kStep + kWidth<T>);
            const Vec<T> br = load_vec<T>(b + c * kStep);
            const Vec<T> bi = load_vec<T>(b + c * kStep + kWidth<T>);
            re += ar * br;
            im += ar * bi;
            re += ai * bi;
            im -= ai * br;
          }
          store_vec(sum, re);
          store_vec(sum + kWidth<T>, im);
        }
      }
    });
  }
  const T unit = T{1} / static_cast<T>(2 * block);
  for_items(to->count(), [&](Index i, int thread) {
    T* window = scratch(thread);
    T* spectrum = window + kTile * stride;
    const Index low = to->lowest(i), high = to->highest(i);
    std::fill(to->profile(i) + low, to->profile(i) + high + 1, T{0});
    const Index base = kernel_base_[static_cast<std::size_t>(i)];
    const Index lowest = causal_ ? 0 : -((to->end(i) - 1) / block);
    const Index last = all - to->start(i) / block;
    for (Index q = lowest; q < last; ++q) {
      gather(sums_.data(), kernel_count_, base + q - lowest, spectrum);
      fft_.inverse(spectrum, window);
      for (Index lag = std::max(low, q * block - block + 1);
           lag <= std::min(high, q * block + block - 1); ++lag) {
        const Index place = lag - q * block;
        to->profile(i)[lag] += unit * window[place < 0 ? place + 2 * block : place];
      }
    }
  });
}

template class PartitionedConv<float>;
template class PartitionedConv<double>;
template void PartitionedConv<float>::apply(const float*, Index, const double*, const std::uint8_t*,
                                            float*);
template void PartitionedConv<double>::apply(const float*, Index, const double*,
                                             const std::uint8_t*, float*);
template void PartitionedConv<double>::apply(const double*, Index, const double*,
                                             const std::uint8_t*, double*);

}  // namespace subquad
