#include "methods/engines/conv_profiles.h"

#include <cmath>
#include <limits>

#include "harness/core/parallel.h"
#include "methods/engines/transpose_columns.h"

namespace subquad {
namespace {

constexpr Index kQueries = 64;  // of a tile; with kColumns small enough for Eigen's stack buffers
constexpr Index kColumns = 32;
constexpr Index kFew = 4;       // columns that are not worth a tile
constexpr Index kChunk = 1024;  // rows whose normalisers are found together

constexpr Index kPlainSum = 64;  // values that are added without a carry

Index tile_values(Index d_k) { return kQueries * d_k + kQueries * kColumns; }

// to[r] = key . queries[r, :] for 4 rows at a time; key is in T, sums are too.
template <class T>
void row_products(const float* queries, Index rows, Index d, const T* key, T* to) {
  using lanes::Eight, lanes::kSquare;
  using Vec = typename Eight<T>::Vec;
  const auto block = [&](Index r, auto count) {
    constexpr int kRows = decltype(count)::value;
    Vec sum[kRows] = {};
    Index c = 0;
    for (; c + kSquare <= d; c += kSquare) {
      Vec y;
      std::memcpy(&y, key + c, sizeof y);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        Eight<float>::Vec x;
        std::memcpy(&x, queries + (r + i) * d + c, sizeof x);
        sum[i] += __builtin_convertvector(x, Vec) * y;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      T total = ((sum[i][0] + sum[i][4]) + (sum[i][1] + sum[i][5])) +
                ((sum[i][2] + sum[i][6]) + (sum[i][3] + sum[i][7]));
      for (Index e = c; e < d; ++e) total += static_cast<T>(queries[(r + i) * d + e]) * key[e];
      to[r + i] = total;
    }
  };
  Index r = 0;
  for (; r + 4 <= rows; r += 4) block(r, std::integral_constant<int, 4>());
  for (; r < rows; ++r) block(r, std::integral_constant<int, 1>());
}

// A running sum that keeps what every addition rounds away (Knuth's two-sum): its error is that of
// rounding the result once, up to terms in epsilon^2.
struct CarriedSum {
  double sum = 0, carry = 0;
  void add(double x) {
    const double next = sum + x, part = next - sum;
    carry += (sum - (next - part)) + (x - part);
    sum = next;
  }
  double value() const { return sum + carry; }
};

}  // namespace

template <class T>
double ConvProfiles<T>::bytes(Index, Index d_k, Index max_segments, bool causal) {
  return static_cast<double>(sizeof(T)) *
             static_cast<double>((causal ? 1 : 2) * max_segments * d_k +
                                 thread_count() * tile_values(d_k)) +
         8.0 * static_cast<double>(max_segments + thread_count() * 2 * kChunk);
}

template <class T>
void ConvProfiles<T>::prepare(Index, Index d_k, Index max_segments, bool causal) {
  d_k_ = d_k;
  keys_ = AlignedArray<T>((causal ? 1 : 2) * max_segments * d_k);
  largest_ = AlignedArray<double>(max_segments);
  threads_ = 0;
  grow_scratch();
}

template <class T>
void ConvProfiles<T>::grow_scratch() {
  if (threads_ >= thread_count()) return;
  threads_ = thread_count();
  tiles_ = AlignedArray<T>(threads_ * tile_values(d_k_));
  changes_ = AlignedArray<double>(threads_ * 2 * kChunk);
}

template <class T>
void ConvProfiles<T>::logits(const float* q, const float* k, double scale, ConvKernels<T>* w) {
  grow_scratch();
  const Index n = w->n(), count = w->count(), sides = w->causal() ? 1 : 2;
  for (Index side = 0; side < sides; ++side)
    for (Index i = 0; i < count; ++i) {
      const float* from = k + column(*w, i, side == 1) * d_k_;
      T* to = keys_.data() + (side * count + i) * d_k_;
      for (Index c = 0; c < d_k_; ++c) to[c] = static_cast<T>(scale * static_cast<double>(from[c]));
    }
  using Map = Eigen::Map<MatrixT<T>>;
  parallel_for((n + kQueries - 1) / kQueries, [&](Index item, int thread) {
    const Index first = item * kQueries, rows = std::min(kQueries, n - first);
    if (count <= kFew) {
      for (Index side = 0; side < sides; ++side)
        for (Index i = 0; i < count; ++i) {
          const Index j = column(*w, i, side == 1);
          const Index begin = side == 0 ? std::max(first, j) : first;
          const Index end = side == 0 ? first + rows : std::min(first + rows, j);
          if (begin < end)
            row_products(q + begin * d_k_, end - begin, d_k_,
                         keys_.data() + (side * count + i) * d_k_, w->profile(i) + (begin - j));
        }
      return;
    }
    T* data = tiles_.data() + thread * tile_values(d_k_);
    Map queries(data, rows, d_k_);
    queries = ConstMatrixMap(q + first * d_k_, rows, d_k_).template cast<T>();
    for (Index side = 0; side < sides; ++side)
      for (Index i0 = 0; i0 < count; i0 += kColumns) {
        const Index columns = std::min(kColumns, count - i0);
        // Positive lags exist from the segment on, negative ones up to its last column.
        if (side == 0 && w->start(i0) >= first + rows) break;
        if (side == 1 && column(*w, i0 + columns - 1, true) <= first) continue;
        Map products(data + kQueries * d_k_, columns, rows);
        const Map keys(keys_.data() + (side * count + i0) * d_k_, columns, d_k_);
        products.noalias() = keys * queries.transpose();
        for (Index i = i0; i < i0 + columns; ++i) {
          const Index j = column(*w, i, side == 1);
          const Index begin = side == 0 ? std::max(first, j) : first;
          const Index end = side == 0 ? first + rows : std::min(first + rows, j);
          if (begin >= end) continue;
          const T* from = products.data() + (i - i0) * rows - first;
          std::copy(from + begin, from + end, w->profile(i) + (begin - j));
        }
      }
  });
}

template <class T>
void ConvProfiles<T>::exponentiate(ConvKernels<T>* w) {
  using Map = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
  const auto values = [&](Index i) {
    return Map(w->profile(i) + w->lowest(i), w->highest(i) - w->lowest(i) + 1);
  };
  parallel_for(w->count(), [&](Index i, int) {
    largest_[i] = static_cast<double>(values(i).template maxCoeff<Eigen::PropagateNumbers>());
  });
  const double shift = *std::max_element(largest_.data(), largest_.data() + w->count());
  parallel_for(w->count(), [&](Index i, int) {
    auto x = values(i);
    x = (x - static_cast<T>(shift)).exp();
  });
}

// The bound of the error, with u = epsilon / 2 and all values positive: kPlainSum values added in
// any order are off by (kPlainSum - 1) u of their sum; the change of a row adds up at most 2 count
// values, off by 2 count u of the sum of their sizes; adding these with a carry rounds once more, u
// of the result.
template <class T>
void ConvProfiles<T>::normalizers(const ConvKernels<T>& w, double* sums, double* rounding) {
  using Values = Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>>;
  grow_scratch();
  const Index n = w.n();
  constexpr double kUnit = std::numeric_limits<double>::epsilon() / 2;
  const double per_change = 2 * static_cast<double>(w.count()) * kUnit;
  parallel_for((n + kChunk - 1) / kChunk, [&](Index item, int thread) {
    const Index first = item * kChunk, last = std::min(n, first + kChunk);
    double* change = changes_.data() + thread * 2 * kChunk;  // of D from row to row
    double* touched = change + kChunk;                       // sum of what entered and left
    std::fill_n(change, 2 * kChunk, 0.0);
    CarriedSum sum;
    for (Index i = 0; i < w.count(); ++i) {
      const T* profile = w.profile(i);
      if (w.causal() && w.start(i) >= last) break;
      const Index end = first - w.start(i) + 1;
      for (Index lag = std::max(first - w.end(i) + 1, w.lowest(i)); lag < end; lag += kPlainSum)
        sum.add(
            Values(profile + lag, std::min(kPlainSum, end - lag)).template cast<double>().sum());
      const auto from = [&](Index j) { return std::max(first + 1, w.causal() ? j : first + 1); };
      const T* entering = profile - w.start(i);
      for (Index t = from(w.start(i)); t < last; ++t) {
        change[t - first] += static_cast<double>(entering[t]);
        touched[t - first] += static_cast<double>(entering[t]);
      }
      const T* leaving = profile - w.end(i);
      for (Index t = from(w.end(i)); t < last; ++t) {
        change[t - first] -= static_cast<double>(leaving[t]);
        touched[t - first] += static_cast<double>(leaving[t]);
      }
    }
    double bound = kPlainSum * kUnit * sum.value();
    for (Index t = first; t < last; ++t) {
      sum.add(change[t - first]);
      bound += per_change * touched[t - first];
      sums[t] = sum.value();
      rounding[t] = bound + 2 * kUnit * std::fabs(sum.value());
    }
  });
}

template class ConvProfiles<float>;
template class ConvProfiles<double>;

}  // namespace subquad
