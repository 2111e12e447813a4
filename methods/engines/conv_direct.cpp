#include "methods/engines/conv_direct.h"

#include "harness/core/parallel.h"
#include "methods/engines/pack.h"

namespace subquad {
namespace {

using namespace engine;

constexpr Index kRows = kRowUnit;  // rows of a work item
constexpr Index kKeys = 256;       // columns of a tile, and of a blocked sum
constexpr Index kLong = 64;        // runs of at least this many columns are not gathered

// sums [kRows, width] += a b, where a(r, t) = a[r * a_row + t * a_col] and b [terms, width].
template <class T>
void add_product(const T* a, Index a_row, Index a_col, Index terms, const T* b, Index width,
                 T* sums) {
  if constexpr (std::is_same_v<T, float>) {
    for_column_blocks(width, [&](Index c, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int kBlock = product_rows(kVectors);
      for (Index r = 0; r < kRows; r += kBlock)
        product_block<kBlock, kVectors, true>(a + r * a_row, a_row, a_col, terms, b + c, width,
                                              sums + r * width + c, width);
    });
  } else {
    for (Index r = 0; r < kRows; ++r)
      for (Index t = 0; t < terms; ++t)
        for (Index c = 0; c < width; ++c)
          sums[r * width + c] += a[r * a_row + t * a_col] * b[t * width + c];
  }
}

}  // namespace

template <class T>
Index DirectConv<T>::wide(Index columns) {
  return (columns + kLanes - 1) / kLanes * kLanes;
}
template <class T>
Index DirectConv<T>::tile_values(Index columns) {
  return kRows * kKeys + kRows * wide(columns);
}
template <class T>
double DirectConv<T>::bytes(Index n, Index columns) {
  return static_cast<double>(sizeof(T)) *
         static_cast<double>((columns % kLanes == 0 ? 0 : n * wide(columns)) +
                             thread_count() * tile_values(columns));
}

template <class T>
void DirectConv<T>::prepare(Index n, Index columns) {
  columns_ = columns;
  rows_ = AlignedArray<T>(columns % kLanes == 0 ? 0 : n * wide(columns));
  threads_ = thread_count();
  scratch_ = AlignedArray<T>(threads_ * tile_values(columns));
}

// sums [kRows, width] of rows [first, first + rows). Columns that all rows see go into products:
// long runs of a segment straight from its profile (a step down is a lag more, a step right one
// less), short ones through a gathered tile. The others are added row by row.
template <class T>
void DirectConv<T>::row_block(const ConvKernels<T>& w, const T* x, Index first, Index rows,
                              Index width, T* tile, T* sums) const {
  std::fill_n(sums, kRows * width, T{0});
  const Index common = w.causal() ? first + 1 : w.n();
  Index i = 0;
  for (Index j = 0; j < common;) {
    const Index end = std::min(w.end(i), common);
    if (end - j >= kLong) {
      const Index terms = std::min(kKeys, end - j);
      add_product<T>(w.profile(i) + (first - j), 1, -1, terms, x + j * width, width, sums);
      j += terms;
      if (j == w.end(i)) ++i;
      continue;
    }
    const Index from = j;
    while (j < common && j - from < kKeys) {
      const Index stop = std::min({w.end(i), common, from + kKeys});
      if (stop - j >= kLong) break;
      for (Index r = 0; r < rows; ++r) {
        const T* lag = w.profile(i) + (first + r);
        T* to = tile + r * kKeys - from;
        for (Index y = j; y < stop; ++y) to[y] = lag[-y];
      }
      j = stop;
      if (j == w.end(i)) ++i;
    }
    add_product<T>(tile, kKeys, 1, j - from, x + from * width, width, sums);
  }
  for (Index r = 1; w.causal() && r < rows; ++r) {
    Index segment = i;
    for (Index j = common; j <= first + r; ++j) {
      while (j >= w.end(segment)) ++segment;
      const T weight = w.profile(segment)[first + r - j];
      for (Index c = 0; c < width; ++c) sums[r * width + c] += weight * x[j * width + c];
    }
  }
}

template <class T>
void DirectConv<T>::apply(const ConvKernels<T>& w, const T* x, Index columns,
                          const double* row_scale, T* out) {
  SUBQUAD_CHECK(columns <= columns_, "{} columns, prepared for {}", columns, columns_);
  const Index n = w.n(), width = wide(columns);
  if (threads_ < thread_count()) {
    threads_ = thread_count();
    scratch_ = AlignedArray<T>(threads_ * tile_values(columns_));
  }
  if (width != columns) {
    parallel_for((n + kKeys - 1) / kKeys, [&](Index item, int) {
      for (Index j = item * kKeys; j < std::min(n, (item + 1) * kKeys); ++j) {
        std::copy_n(x + j * columns, columns, rows_.data() + j * width);
        std::fill_n(rows_.data() + j * width + columns, width - columns, T{0});
      }
    });
    x = rows_.data();
  }
  const Index items = (n + kRows - 1) / kRows;
  parallel_for(items, [&](Index item, int thread) {
    const Index first = (items - 1 - item) * kRows, rows = std::min(kRows, n - first);
    T* tile = scratch_.data() + thread * tile_values(columns_);
    T* sums = tile + kRows * kKeys;
    row_block(w, x, first, rows, width, tile, sums);
    for (Index r = 0; r < rows; ++r) {
      const double scale = row_scale != nullptr ? row_scale[first + r] : 1.0;
      for (Index c = 0; c < columns; ++c)
        out[(first + r) * columns + c] =
            static_cast<T>(static_cast<double>(sums[r * width + c]) * scale);
    }
  });
}

template class DirectConv<float>;
template class DirectConv<double>;

void direct_transposed(const ConvKernels<double>& w, const double* x, Index columns, double* out) {
  constexpr Index kBlock = 64;
  const Index n = w.n();
  parallel_for((n + kBlock - 1) / kBlock, [&](Index item, int) {
    Index i = 0;
    for (Index j = item * kBlock; j < std::min(n, (item + 1) * kBlock); ++j) {
      while (j >= w.end(i)) ++i;
      double* to = out + j * columns;
      std::fill_n(to, columns, 0.0);
      for (Index t = w.causal() ? j : 0; t < n; ++t) {
        const double weight = w.profile(i)[t - j];
        for (Index c = 0; c < columns; ++c) to[c] += weight * x[t * columns + c];
      }
    }
  });
}

void direct_correlate(const double* g, const double* x, Index columns, ConvKernels<double>* to) {
  const Index n = to->n();
  parallel_for(to->count(), [&](Index i, int) {
    double* profile = to->profile(i);
    std::fill(profile + to->lowest(i), profile + to->highest(i) + 1, 0.0);
    for (Index j = to->start(i); j < to->end(i); ++j)
      for (Index t = to->causal() ? j : 0; t < n; ++t) {
        double dot = 0;
        for (Index c = 0; c < columns; ++c) dot += g[t * columns + c] * x[j * columns + c];
        profile[t - j] += dot;
      }
  });
}

}  // namespace subquad
