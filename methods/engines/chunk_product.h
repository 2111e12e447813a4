// The products of one chunk of a causal scan, and the packing in front of them. A chunk is a run of
// `chunk` tokens (a multiple of kLanes and of 8); its queries come as columns, keys and values as
// rows:
//
//   qt [depth, chunk]   k [chunk, ldk]   v [chunk, ldv]   state [depth, width]
//   scores [chunk, chunk], transposed:  scores[j, i] = k_j . q_i  for i >= j
//   out_i = sum_x qt[x, i] state[x, :] + sum_{j <= i} scores[j, i] v_j
//   state = factor state + sum_j k_j v_j^T
//
// Transposed scores put queries side by side in a vector, so that row sums, decays and the triangle
// cost no shuffles; one transposition of the queries is all that has to be paid. What lies above
// the diagonal is never read, not even to be multiplied by zero: it may be NaN.
#pragma once

#include <algorithm>
#include <type_traits>

#include "methods/engines/tile_product.h"
#include "methods/engines/transpose_square.h"

namespace subquad::engine {

// body(stride), where the KNOWN strides are constants for the compiler: addresses then are
// constants beside one pointer, where others need a register each and spill.
template <Index... KNOWN, class Body>
[[gnu::always_inline]] inline void with_stride(Index stride, Body&& body) {
  const bool met =
      (... || (stride == KNOWN && (body(std::integral_constant<Index, KNOWN>{}), true)));
  if (!met) body(stride);
}
constexpr Index kLargerFrom =
    64;  // rows of a chunk; with 16, blocks of six cost more than they gain
constexpr Index kWidth = 64, kWidthPlus = 80;  // of a head, and with one more column

constexpr int chunk_rows(int vectors) { return vectors >= 3 || kRegisters == 16 ? 4 : 8; }

inline IntVec lane_numbers() {
  IntVec lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

// scores[j, i] for i >= j; entries above the diagonal inside its vectors are computed as well, the
// others are left alone.
inline void chunk_scores(const float* k, Index ldk, const float* qt, Index depth, Index chunk,
                         float* scores) {
  constexpr int kRows = 8;
  with_stride<kWidth, kWidthPlus>(ldk, [&](auto stride) {
    for (Index j = 0; j < chunk; j += kRows) {
      const Index first = j / kLanes * kLanes;
      for_column_blocks(chunk - first, [&](Index c, auto vectors) {
        constexpr int kVectors = decltype(vectors)::value;
        constexpr int kBlock = kVectors * kRows <= (kRegisters == 32 ? 24 : 8) ? kRows : 4;
        for (Index r = 0; r < kRows; r += kBlock)
          product_block<kBlock, kVectors, false>(k + (j + r) * stride, stride, 1, depth,
                                                 qt + first + c, chunk,
                                                 scores + (j + r) * chunk + first + c, chunk);
      });
    }
  });
}

// The same query by key, scores[i, j] for j <= i, from keys as columns, kt [depth, chunk]; zero
// behind the diagonal inside its vectors.
inline void chunk_scores_by_query(const float* q, Index ldq, const float* kt, Index depth,
                                  Index chunk, float* scores) {
  constexpr int kRows = 8;
  const IntVec lanes = lane_numbers();
  with_stride<kWidth, kWidthPlus>(ldq, [&](auto stride) {
    for (Index i = 0; i < chunk; i += kRows) {
      const Index diagonal = i / kLanes * kLanes;
      for_column_blocks(diagonal + kLanes, [&](Index c, auto vectors) {
        constexpr int kVectors = decltype(vectors)::value;
        constexpr int kBlock = kVectors * kRows <= (kRegisters == 32 ? 24 : 8) ? kRows : 4;
        for (Index r = 0; r < kRows; r += kBlock)
          product_block<kBlock, kVectors, false>(q + (i + r) * stride, stride, 1, depth, kt + c,
                                                 chunk, scores + (i + r) * chunk + c, chunk);
      });
      for (int r = 0; r < kRows; ++r) {
        float* const place = scores + (i + r) * chunk + diagonal;
        const Vec row = load(place);
        store(place, lanes <= static_cast<int>(i - diagonal) + r - IntVec{} ? row : Vec{});
      }
    }
  });
}

// sums[i] += sum_{j <= i} scores[j, i].
inline void add_score_sums(const float* scores, Index chunk, float* sums) {
  const IntVec lanes = lane_numbers();
  for (Index i = 0; i < chunk; i += kLanes) {
    Vec even{}, odd{};
    for (Index j = 0; j < i; j += 2) {
      even += load(scores + j * chunk + i);
      odd += load(scores + (j + 1) * chunk + i);
    }
    for (int j = 0; j < kLanes; ++j) {
      const Vec row = load(scores + (i + j) * chunk + i);
      even += lanes >= j - IntVec{} ? row : Vec{};
    }
    store(sums + i, load(sums + i) + (even + odd));
  }
}

// scores[j, i] += per_query[i] for i >= j, unless that is null; zero for i < j inside the vectors
// that cross the diagonal.
inline void finish_scores(const float* per_query, Index chunk, float* scores) {
  const IntVec lanes = lane_numbers();
  for (Index i = 0; i < chunk; i += kLanes) {
    const Vec more = per_query == nullptr ? Vec{} : load(per_query + i);
    if (per_query != nullptr)
      for (Index j = 0; j < i; ++j) {
        float* const place = scores + j * chunk + i;
        store(place, load(place) + more);
      }
    for (int j = 0; j < kLanes; ++j) {
      float* const place = scores + (i + j) * chunk + i;
      const Vec row = load(place) + more;
      store(place, lanes >= j - IntVec{} ? row : Vec{});
    }
  }
}

// scores[j, i] *= powers[i - j]; powers has kLanes floats in front of it.
inline void decay_scores(const float* powers, Index chunk, float* scores) {
  for (Index j = 0; j < chunk; ++j)
    for (Index i = j / kLanes * kLanes; i < chunk; i += kLanes) {
      float* const place = scores + j * chunk + i;
      store(place, load(place) * load(powers + (i - j)));
    }
}

// scores[i, j] *= decay^(i - j); powers[e] = decay^(chunk - e), with kLanes floats behind it.
inline void decay_scores_by_query(const float* powers, Index chunk, float* scores) {
  for (Index i = 0; i < chunk; ++i)
    for (Index j = 0; j <= i; j += kLanes) {
      float* const place = scores + i * chunk + j;
      store(place, load(place) * load(powers + (chunk - i + j)));
    }
}

// sums[i] = start + sum_x vector[x] qt[x, i].
inline void column_dots(const float* vector, const float* qt, Index depth, Index chunk, float start,
                        float* sums) {
  for (Index i = 0; i < chunk; i += 2 * kLanes) {
    const bool two = i + 2 * kLanes <= chunk;
    const Index other = two ? kLanes : 0;
    Vec a0{}, a1{}, b0{}, b1{};
    Index x = 0;
    for (; x + 2 <= depth; x += 2) {
      a0 += vector[x] * load(qt + x * chunk + i);
      b0 += vector[x] * load(qt + x * chunk + i + other);
      a1 += vector[x + 1] * load(qt + (x + 1) * chunk + i);
      b1 += vector[x + 1] * load(qt + (x + 1) * chunk + i + other);
    }
    if (x < depth) {
      a0 += vector[x] * load(qt + x * chunk + i);
      b0 += vector[x] * load(qt + x * chunk + i + other);
    }
    store(sums + i, (a0 + a1) + start);
    if (two) store(sums + i + kLanes, (b0 + b1) + start);
  }
}

// Cache lines that later work will need, asked for one by one between multiply-adds: all at once
// they would fill the processor's queue of misses and stall it, and it does not see across a chunk
// by itself.
class Ahead {
 public:
  void add(const float* rows, Index floats) {
    if (streams_ == kStreams || floats <= 0) return;
    next_[streams_] = rows;
    end_[streams_++] = rows + floats;
    lines_ += (floats + kLine - 1) / kLine;
  }
  // Spreads what was added over `steps` steps.
  void spread(Index steps) { pace_ = lines_ > steps ? 2 : 1; }
  Index pace() const { return pace_; }  // lines of a step
  // Where the next `lines` lines to ask for begin (they may reach beyond what was added); null when
  // nothing is left.
  const float* take(Index lines) {
    if (at_ == streams_) return nullptr;
    const float* const from = next_[at_];
    next_[at_] += lines * kLine;
    if (next_[at_] >= end_[at_]) ++at_;
    return from;
  }
  static constexpr Index kLine = 16;  // floats

 private:
  static constexpr int kStreams = 8;
  const float* next_[kStreams] = {};
  const float* end_[kStreams] = {};
  int streams_ = 0, at_ = 0;
  Index lines_ = 0, pace_ = 1;
};

// Where nothing is to be asked for: its calls vanish.
struct Nothing {};

// The requests of one block of `steps` steps, one or two lines a step.
template <class Requests>
class Touches {
 public:
  Touches(Requests& ahead, Index steps, const float* idle) {
    line_ = ahead.take(ahead.pace() * steps);
    step_ = line_ == nullptr ? 0 : ahead.pace() * Ahead::kLine;
    second_ = step_ > Ahead::kLine ? Ahead::kLine : 0;
    if (line_ == nullptr) line_ = idle;  // a line that is there anyway: no branch in the loop
  }
  void touch() {
    __builtin_prefetch(line_, 0, 2);
    __builtin_prefetch(line_ + second_, 0, 2);
    line_ += step_;
  }

 private:
  const float* line_;
  Index step_, second_;
};
template <>
class Touches<Nothing> {
 public:
  Touches(Nothing&, Index, const float*) {}
  void touch() {}
};

// Rows of factors for a block of outputs: factor of row r and term t is p[r * row + t * term]. Row
// is NextTo where rows lie side by side, which the compiler then knows.
using NextTo = std::integral_constant<Index, 1>;
template <class Row = Index>
struct Factors {
  const float* p = nullptr;
  Row row = {};
  Index term = 0;
};
template <class Row>
Factors(const float*, Row, Index) -> Factors<Row>;

// Which tokens of its own chunk a row adds: none, those up to it, those from it on.
enum class Local { none, up_to, from };

// out_r = scale[r] (decay[r] sum_x a(r, x) state[x, :] + sum_t weights(r, t) values[t, :]) for ROWS
// rows. Second sum over t in [begin, end) for every row, and with Local::up_to over [end, end + r]
// as well. `decay` and `scale` may be null (factors of one); rows of `start` [ldo], unless it is
// null, come on top before the scale.
template <int ROWS, int VECTORS, Local LOCAL, class Requests, class A, class B>
[[gnu::always_inline]] inline void output_block(Factors<A> a, Index depth,
                                                const float* __restrict state, Index ldstate,
                                                const float* decay, Factors<B> weights, Index begin,
                                                Index end, const float* __restrict values,
                                                Index ldv, const float* scale, const float* start,
                                                float* out, Index ldo, Requests& ahead) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) sum[r][w] = Vec{};
  const auto add = [&](const float* factor, auto stride, const float* row_of, int first) {
    Vec row[VECTORS];
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) row[w] = load(row_of + w * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      if (r < first) continue;
      const Vec f = broadcast(factor[r * stride]);
#pragma GCC unroll 4
      for (int w = 0; w < VECTORS; ++w) sum[r][w] += f * row[w];
    }
  };
  Touches<Requests> touches(ahead, depth, state);
  constexpr Index kRowsAhead = 8;  // of the state: those of a scan may lie in L2
  for (Index x = 0; x < depth; ++x) {
    touches.touch();
    if constexpr (LOCAL != Local::none && !std::is_same_v<Requests, Nothing>) {
#pragma GCC unroll 4
      for (int w = 0; w < VECTORS; ++w)
        __builtin_prefetch(state + (x + kRowsAhead) * ldstate + w * kLanes);
    }
    add(a.p + x * a.term, a.row, state + x * ldstate, 0);
  }
  if (decay != nullptr) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int w = 0; w < VECTORS; ++w) sum[r][w] *= broadcast(decay[r]);
  }
  for (Index t = begin; t < end; ++t)
    add(weights.p + t * weights.term, weights.row, values + t * ldv, 0);
  if constexpr (LOCAL == Local::up_to) {
#pragma GCC unroll 16
    for (int t = 0; t < ROWS; ++t)
      add(weights.p + (end + t) * weights.term, weights.row, values + (end + t) * ldv, t);
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) {
      if (start != nullptr) sum[r][w] += load(start + r * ldo + w * kLanes);
      if (scale != nullptr) sum[r][w] *= broadcast(scale[r]);
      store(out + r * ldo + w * kLanes, sum[r][w]);
    }
}

// All rows of a chunk: out [chunk, ldo], columns [0, width); see output_block. With Local::from the
// weights of earlier tokens inside the first vector must be zero.
template <Local LOCAL, class Requests = Nothing, class A, class B>
inline void chunk_outputs(Factors<A> a, Index depth, const float* state, Index width,
                          const float* decay, Factors<B> weights, const float* values, Index ldv,
                          Index chunk, const float* scale, float* out, Index ldo,
                          Requests ahead = {}, const float* start = nullptr) {
  const auto known = [&](auto stride, auto row, auto local_row) {
    using Row = decltype(row);
    using LocalRow = decltype(local_row);
    for_column_blocks(width, [&](Index c, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      const auto some = [&](Index i, auto count) __attribute__((always_inline)) {
        constexpr int kRows = decltype(count)::value;
        const Factors<Row> rows{a.p + i * row, row, a.term};
        const Factors<LocalRow> local{LOCAL == Local::none ? nullptr : weights.p + i * local_row,
                                      local_row, weights.term};
        output_block<kRows, kVectors, LOCAL, Requests>(
            rows, depth, state == nullptr ? nullptr : state + c, stride,
            decay == nullptr ? nullptr : decay + i, local, LOCAL == Local::from ? i : 0,
            LOCAL == Local::none    ? 0
            : LOCAL == Local::up_to ? i
                                    : chunk,
            LOCAL == Local::none ? nullptr : values + c, ldv,
            scale == nullptr ? nullptr : scale + i,
            start == nullptr ? nullptr : start + i * ldo + c, out + i * ldo + c, ldo, ahead);
      };
      constexpr int kRows = chunk_rows(kVectors);
      Index i = 0;
      // Larger blocks where many rows meet nothing but the state; twice six, so that whole blocks
      // of four remain.
      if constexpr (LOCAL == Local::none && kRows == 4 && kRegisters == 32) {
        const Index larger = chunk < kLargerFrom ? 0 : chunk / 12 * 12;
        for (; i < larger; i += 6) some(i, std::integral_constant<int, 6>{});
      }
      for (; i < chunk; i += kRows) some(i, std::integral_constant<int, kRows>{});
    });
  };
  with_stride<kWidth>(width, [&](auto stride) {
    if constexpr (std::is_same_v<A, Index>) {
      with_stride<kWidth, kWidthPlus>(a.row, [&](auto row) {
        with_stride<kLanes>(weights.row, [&](auto local_row) { known(stride, row, local_row); });
      });
    } else {
      known(stride, a.row, weights.row);
    }
  });
}

// chunk_outputs with Local::up_to and no decay, from a state that is the sum of two, formed on the
// way; `more` may lie in L2. Same sums in the same order. One vector of columns at a time, so that
// what is formed serves as many rows as there are accumulators.
template <class Requests>
inline void chunk_outputs_of_sum(const float* qt, Index depth, const float* state,
                                 const float* more, Index width, const float* scores,
                                 const float* values, Index ldv, Index chunk, const float* scale,
                                 float* out, Index ldo, Requests ahead) {
  constexpr int kRows = kLanes;
  constexpr Index kFormedAhead = 24;  // rows; measured
  const auto block = [&](Index i, Index c, auto stride) __attribute__((always_inline)) {
    Vec sum[kRows] = {};
    const auto add = [&](const float* factors, Vec row, int first) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        if (r >= first) sum[r] += broadcast(factors[r]) * row;
    };
    Touches<Requests> touches(ahead, depth, state);
    for (Index x = 0; x < depth; ++x) {
      touches.touch();
      const Index at = x * stride + c;
      __builtin_prefetch(more + at + kFormedAhead * stride);
      add(qt + x * chunk + i, load(state + at) + load(more + at), 0);
    }
    for (Index t = 0; t < i; ++t) add(scores + t * chunk + i, load(values + t * ldv + c), 0);
#pragma GCC unroll 16
    for (int t = 0; t < kRows; ++t)
      add(scores + (i + t) * chunk + i, load(values + (i + t) * ldv + c), t);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      store(out + (i + r) * ldo + c, scale == nullptr ? sum[r] : sum[r] * broadcast(scale[i + r]));
  };
  with_stride<kWidth>(width, [&](auto stride) {
    for (Index c = 0; c < width; c += kLanes)
      for (Index i = 0; i < chunk; i += kRows) block(i, c, stride);
  });
}

// The chunks that a run of tokens falls into, in the order in which a scan meets them: only the one
// at the end of the run may be shorter.
struct ChunkRun {
  Index chunk, count;              // tokens of a whole chunk; chunks
  Index start, step;               // first token of the first chunk met; from one chunk to the next
  Index ragged, left;              // the chunk at the end of the run, and its tokens
  const float* factors = nullptr;  // of each chunk: what is there before it shrinks by that

  ChunkRun(Index tokens, Index of_chunk, bool reversed = false, const float* shrink = nullptr)
      : chunk(of_chunk),
        count((tokens + of_chunk - 1) / of_chunk),
        start(reversed ? (count - 1) * of_chunk : 0),
        step(reversed ? -of_chunk : of_chunk),
        ragged(reversed ? 0 : count - 1),
        left(tokens - (count - 1) * of_chunk),
        factors(shrink) {}
  Index tokens() const { return (count - 1) * chunk + left; }
  Index first(Index s) const { return start + s * step; }
  Index rows(Index s) const { return s == ragged ? left : chunk; }
};

// sum_t a[t, row]  b[t, :] for one block of state rows, row 0 at `offset`; handed to keep after
// every chunk, with those before it in the sum.
template <int ROWS, int VECTORS, class Keep>
[[gnu::always_inline]] inline void outer_block(const float* __restrict a, Index lda,
                                               const float* __restrict b, Index ldb,
                                               const ChunkRun& run, Ahead& ahead, Index offset,
                                               Index width, Keep&& keep) {
  Vec sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int w = 0; w < VECTORS; ++w) sum[r][w] = Vec{};
  Touches<Ahead> touches(ahead, run.tokens(), b);
  for (Index s = 0; s < run.count; ++s) {
    if (run.factors != nullptr && s > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) sum[r][w] *= broadcast(run.factors[s]);
    }
    const float* factors = a + run.first(s) * lda;
    const float* values = b + run.first(s) * ldb;
    for (Index t = run.rows(s); t > 0; --t, factors += lda, values += ldb) {
      touches.touch();
      Vec row[VECTORS];
#pragma GCC unroll 4
      for (int w = 0; w < VECTORS; ++w) row[w] = load(values + w * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; ++r) {
        const Vec factor = broadcast(factors[r]);
#pragma GCC unroll 4
        for (int w = 0; w < VECTORS; ++w) sum[r][w] += factor * row[w];
      }
    }
    const auto put = keep(s, offset);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int w = 0; w < VECTORS; ++w) put(r * width + w * kLanes, sum[r][w]);
  }
}

// The increment of a state over a run of chunks, sum_t a[t, :]^T b[t, :]; a [tokens, lda], b
// [tokens, ldb]. keep(chunk, offset into the state)(place behind it, sums up to the end of that
// chunk) takes it, vector by vector. What keep returns holds pointers to the offset by value:
// places are then constants beside them, and no store makes the compiler read them again.
template <class Keep>
inline void chunk_increment(const float* a, Index lda, Index depth, const float* b, Index ldb,
                            Index width, const ChunkRun& run, Ahead ahead, Keep&& keep) {
  ahead.spread(depth * width / (chunk_rows(kProductVectors) * kProductVectors * kLanes) *
               run.tokens());
  with_stride<kWidth>(width, [&](auto stride) {
    for_column_blocks(width, [&](Index c, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int kRows = chunk_rows(kVectors);
      Index x = 0;
      for (; x + kRows <= depth; x += kRows)
        outer_block<kRows, kVectors>(a + x, lda, b + c, ldb, run, ahead, x * stride + c, stride,
                                     keep);
      for (; x < depth; ++x)
        outer_block<1, kVectors>(a + x, lda, b + c, ldb, run, ahead, x * stride + c, stride, keep);
    });
  });
}

}  // namespace subquad::engine
