// A register block of c (6 rows x 4 vectors with AVX-512) stays in registers for a block of terms;
// b is packed once per block of terms into panels as wide as that, zero beyond the last column,
// unless its own rows serve as they are; a is read in place by broadcasts. Loop order: block of
// terms, block of rows (one item of parallel_for), panel, register block: a panel and the rows of a
// stay in L1 and L2.

#include "harness/autodiff/gemm.h"

#include <algorithm>

#include "harness/autodiff/vector.h"
#include "harness/core/parallel.h"

namespace subquad::autodiff {
namespace {

constexpr Index kTerms = 256;    // terms per block: a panel is 64 KiB, half of it in L1
constexpr Index kRowBlock = 96;  // rows per item: a multiple of the register blocks below
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kPanelVectors = 4;
constexpr int block_rows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int kPanelVectors = 2;
constexpr int block_rows(int vectors) { return vectors == 2 ? 6 : 12; }
#endif
constexpr int kMaxBlockRows = 12;

template <class T>
constexpr Index kPanel = kPanelVectors* kLanes<T>;

// Terms [first, first + count) in `segments` runs of constant stride.
struct Terms {
  Index first, count, segments, run;
};

Terms terms_from(const GemmAxis& axis, Index first, Index k) {
  if (axis.group == 0 || first / axis.group == (std::min(first + kTerms, k) - 1) / axis.group) {
    const Index count = std::min(kTerms, k - first);
    return {first, count, 1, count};
  }
  if (first % axis.group != 0 || axis.group > kTerms) {  // up to the end of this group
    const Index count = std::min({kTerms, k - first, axis.group - first % axis.group});
    return {first, count, 1, count};
  }
  const Index groups = std::min(kTerms, k - first) / axis.group;
  if (groups == 0) return {first, k - first, 1, k - first};
  return {first, groups * axis.group, groups, axis.group};
}

template <class T>
void pack_panel(const GemmMatrix<const T>& b, const Terms& terms, Index column, Index columns,
                T* out) {
  const Index width = (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  const bool rows_together =
      b.cols.stride == 1 &&
      (b.cols.group == 0 || (kLanes<T> <= b.cols.group && b.cols.group % kLanes<T> == 0));
  Index offset[kPanelVectors * kLanes<T>];
  for (Index j = 0; j < columns; ++j) offset[j] = b.cols.at(column + j);
  if (rows_together && columns == width) {
    for (Index t = 0; t < terms.count; ++t) {
      const T* const row = b.data + b.rows.at(terms.first + t);
      for (Index j = 0; j < width; j += kLanes<T>)
        store(out + t * width + j, load(row + offset[j]));
    }
    return;
  }
  Index done = 0;
  if (b.rows.group == 0 && b.rows.stride == 1 && columns == width) {  // a transposed matrix
    const T* const corner = b.data + terms.first;
    for (; done + kLanes<T> <= terms.count; done += kLanes<T>)
      for (Index j = 0; j < width; j += kLanes<T>) {
        Vec<T> square[kLanes<T>];
#pragma GCC unroll 16
        for (Index i = 0; i < kLanes<T>; ++i) square[i] = load(corner + offset[j + i] + done);
        transpose<T>(square);
#pragma GCC unroll 16
        for (Index i = 0; i < kLanes<T>; ++i) store(out + (done + i) * width + j, square[i]);
      }
  }
  for (Index t = done; t < terms.count; ++t) {
    const T* const row = b.data + b.rows.at(terms.first + t);
    for (Index j = 0; j < columns; ++j) out[t * width + j] = row[offset[j]];
    for (Index j = columns; j < width; ++j) out[t * width + j] = 0;
  }
}

// Where the panels of b lie: packed one behind the other, or in b itself.
template <class T>
struct Panels {
  const T* packed;       // of one block of terms, or null
  Index terms;           // per packed panel
  const T* rows;         // row 0 of this block of terms in b
  const GemmAxis* axis;  // columns of b
  Index stride;          // from row to row of b
  const T* at(Index column) const {
    return packed != nullptr ? packed + column * terms : rows + axis->at(column);
  }
};

// Whether b's rows can be read in place: whole vectors side by side, and near enough to each other
// to stay in L1 as a packed panel would.
template <class T>
bool serves_unpacked(const Gemm<T>& g) {
  constexpr Index kFarthest = 64;  // floats from row to row
  const GemmAxis &rows = g.b.rows, &cols = g.b.cols;
  return rows.group == 0 && rows.stride <= kFarthest && cols.stride == 1 && cols.group == 0 &&
         g.n % kLanes<T> == 0;
}

// What happens to a finished register block.
template <class T>
struct Place {
  T* rows[kMaxBlockRows];       // of c, at column 0
  const T* residual;            // of row 0 relative to c's data, or null
  T* base;                      // c.data
  Index offset[kPanelVectors];  // of each vector
  const T* bias;                // at the first column of the panel, or null
  Index count;                  // rows
  Index columns;                // of the panel
  bool accumulate, whole;       // whole: vectors lie together and none is cut
  const GemmAxis* axis;
  Index column;
};

template <class T, int ROWS, int V>
[[gnu::always_inline]] inline void finish(Vec<T> (&sum)[ROWS][V], const Place<T>& p) {
  if (p.bias != nullptr) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Index left = p.columns - v * kLanes<T>;
      const Vec<T> bias = left >= kLanes<T> ? load(p.bias + v * kLanes<T>)
                                            : load_part(p.bias + v * kLanes<T>, left);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) sum[r][v] += bias;
    }
  }
  if (p.whole) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      if (r >= p.count) break;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        T* const to = p.rows[r] + p.offset[v];
        Vec<T> x = sum[r][v];
        if (p.accumulate) x += load(to);
        if (p.residual != nullptr) x += load(p.residual + (to - p.base));
        store(to, x);
      }
    }
    return;
  }
  T lanes[ROWS * V * kLanes<T>];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(lanes + (r * V + v) * kLanes<T>, sum[r][v]);
  for (Index r = 0; r < p.count; ++r)
    for (Index j = 0; j < p.columns; ++j) {
      T* const to = p.rows[r] + p.axis->at(p.column + j);
      T x = lanes[r * V * kLanes<T> + j];
      if (p.accumulate) x += *to;
      if (p.residual != nullptr) x += p.residual[to - p.base];
      *to = x;
    }
}

template <class T, int ROWS, int V>
void block(const T* const* rows, Index stride, const Terms& terms, Index segment_stride, const T* b,
           Index ldb, const Place<T>& place) {
  Vec<T> sum[ROWS][V];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = Vec<T>{};
  const T* a[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) a[r] = rows[r];
  for (Index s = 0; s < terms.segments; ++s) {
    for (Index t = 0; t < terms.run; ++t) {
      Vec<T> row[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) row[v] = load(b + v * kLanes<T>);
      b += ldb;
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Vec<T> factor = broadcast(a[r][t * stride]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] += factor * row[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) a[r] += segment_stride;
  }
  finish<T, ROWS, V>(sum, place);
}

template <class T, int V>
void panel_rows(const Gemm<T>& g, const Terms& terms, const Panels<T>& panels, Place<T> place,
                Index first, Index last) {
  constexpr int kRows = block_rows(V);
  const T* const panel = panels.at(place.column);
  const Index ldb = panels.packed != nullptr ? V * kLanes<T> : panels.stride;
  const T* const a = g.a.data + g.a.cols.at(terms.first);
  for (Index r0 = first; r0 < last; r0 += kRows) {
    place.count = std::min<Index>(kRows, last - r0);
    const T* rows[kMaxBlockRows];
    for (Index r = 0; r < kRows; ++r) {  // missing rows repeat the last: computed, not stored
      const Index row = std::min(r0 + r, last - 1);
      rows[r] = a + g.a.rows.at(row);
      place.rows[r] = g.c.data + g.c.rows.at(row);
    }
    block<T, kRows, V>(rows, g.a.cols.stride, terms, g.a.cols.group_stride, panel, ldb, place);
  }
}

template <class T>
void rows_by_panel(const Gemm<T>& g, const Terms& terms, const Panels<T>& panels, Index first,
                   Index last) {
  const bool grouped = g.c.cols.group != 0;
  for (Index column = 0; column < g.n; column += kPanel<T>) {
    Place<T> place{};
    place.columns = std::min(kPanel<T>, g.n - column);
    place.base = g.c.data;
    place.axis = &g.c.cols;
    place.column = column;
    place.accumulate = g.accumulate || terms.first > 0;
    if (terms.first == 0) {
      place.bias = g.bias == nullptr ? nullptr : g.bias + column;
      place.residual = g.residual;
    }
    const Index vectors = (place.columns + kLanes<T> - 1) / kLanes<T>;
    place.whole = g.c.cols.stride == 1 && place.columns % kLanes<T> == 0 &&
                  (!grouped || g.c.cols.group % kLanes<T> == 0);
    for (Index v = 0; v < vectors; ++v) place.offset[v] = g.c.cols.at(column + v * kLanes<T>);
    if (vectors == 1) panel_rows<T, 1>(g, terms, panels, place, first, last);
    if constexpr (kPanelVectors >= 2)
      if (vectors == 2) panel_rows<T, 2>(g, terms, panels, place, first, last);
    if constexpr (kPanelVectors == 4) {
      if (vectors == 3) panel_rows<T, 3>(g, terms, panels, place, first, last);
      if (vectors == 4) panel_rows<T, 4>(g, terms, panels, place, first, last);
    }
  }
}

// An empty sum: only what is added to it.
template <class T>
void without_terms(const Gemm<T>& g) {
  for (Index i = 0; i < g.m; ++i)
    for (Index j = 0; j < g.n; ++j) {
      const Index at = g.c.rows.at(i) + g.c.cols.at(j);
      T x = g.accumulate ? g.c.data[at] : T(0);
      if (g.bias != nullptr) x += g.bias[j];
      if (g.residual != nullptr) x += g.residual[at];
      g.c.data[at] = x;
    }
  if (g.done.call != nullptr) g.done.call(g.done.context, 0, g.m);
}

}  // namespace

Index gemm_work(Index n, Index k) { return (n + 63) / 64 * 64 * std::min(k, kTerms); }

template <class T>
void gemm(const Gemm<T>& g, T* work) {
  if (g.k == 0) return without_terms(g);
  const Index blocks = (g.m + kRowBlock - 1) / kRowBlock;
  for (Index first = 0; first < g.k;) {
    const Terms terms = terms_from(g.a.cols, first, g.k);
    const Index panels = (g.n + kPanel<T> - 1) / kPanel<T>;
    const bool unpacked = serves_unpacked(g);
    const Panels<T> places{unpacked ? nullptr : work, terms.count,
                           g.b.data + g.b.rows.at(terms.first), &g.b.cols, g.b.rows.stride};
    parallel_for(unpacked ? 0 : panels, [&](Index p, int) {
      const Index column = p * kPanel<T>;
      pack_panel(g.b, terms, column, std::min(kPanel<T>, g.n - column),
                 work + column * terms.count);
    });
    first += terms.count;
    parallel_for(blocks, [&](Index block, int) {
      const Index r0 = block * kRowBlock, r1 = std::min(g.m, r0 + kRowBlock);
      rows_by_panel(g, terms, places, r0, r1);
      if (first >= g.k && g.done.call != nullptr) g.done.call(g.done.context, r0, r1);
    });
  }
}

template void gemm<float>(const Gemm<float>&, float*);
template void gemm<double>(const Gemm<double>&, double*);

}  // namespace subquad::autodiff
