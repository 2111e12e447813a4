// Attention of one query over rows in memory, contiguous or gathered by an index list: the inner
// loops of decoding and of every method that attends to a list of keys.
//
//   score_rows:        scores[r] = q . row(r)
//   add_weighted_rows: out += sum_r weights[r] * row(r)
//
// Any width d is read by whole vectors: the last one overlaps its neighbour, so rows need no
// padding. Nothing outside the named rows is read. The order of every sum depends on the sizes
// alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "methods/engines/score_tile.h"

namespace subquad::engine {

// Rows that lie one after the other, `stride` floats apart. What comes is fetched kAhead floats
// before it is needed.
struct ContiguousRows {
  static constexpr Index kAhead = 1024;
  const float* base;
  Index stride;
  const float* operator()(Index r) const { return base + r * stride; }
};
// Rows picked by `index`.
template <class Int>
struct GatheredRows {
  static constexpr Index kAhead = 0;  // nobody knows where the next row lies
  const float* base;
  Index stride;
  const Int* index;
  const float* operator()(Index r) const { return base + static_cast<Index>(index[r]) * stride; }
};

// Rows of another kind, read from column `shift` on, the last of `count` repeated for ever.
template <class Rows>
struct DerivedRows {
  static constexpr Index kAhead = Rows::kAhead;
  Rows rows;
  Index shift, count;
  const float* operator()(Index r) const { return rows(std::min(r, count - 1)) + shift; }
};

template <class Rows>
[[gnu::always_inline]] inline void fetch(const float* p) {
  if constexpr (Rows::kAhead > 0) __builtin_prefetch(p + Rows::kAhead);
}

// q is prepared once: its last vector is zero where it overlaps the one before.
class RowQuery {
 public:
  // `tail`: kLanes floats of work space that outlive the object.
  RowQuery(const float* q, Index d, float* tail) : q_(q), d_(d), tail_(tail) {
    if (d < kLanes || d % kLanes == 0) return;
    const Index overlap = kLanes - d % kLanes;
    for (Index i = 0; i < kLanes; ++i) tail[i] = i < overlap ? 0.0f : q[d - kLanes + i];
  }

  // scores[0 .. count) of the rows.
  template <class Rows>
  void score(const Rows& row, Index count, float* scores) const {
    if (d_ < kLanes) {
      for (Index r = 0; r < count; ++r) {
        float sum = 0;
        for (Index c = 0; c < d_; ++c) sum += q_[c] * row(r)[c];
        scores[r] = sum;
      }
      return;
    }
    if (d_ == 4 * kLanes) return score_rows<4>(row, count, scores);
    score_rows<0>(row, count, scores);
  }

 private:
  template <int VECTORS, class Rows>
  void score_rows(const Rows& row, Index count, float* scores) const {
    Index r = 0;
    for (; r + kLanes <= count; r += kLanes) store(scores + r, group<VECTORS>(row, r));
    if (r == count) return;
    // The last rows are scored with repetitions of the last one.
    float last[kLanes];
    store(last, group<VECTORS>(DerivedRows<Rows>{row, 0, count}, r));
    std::copy_n(last, count - r, scores + r);
  }

  // VECTORS: width of a row, where the query then stays in registers; 0: any.
  template <int VECTORS, class Rows>
  [[gnu::always_inline]] Vec group(const Rows& row, Index first) const {
    Vec sum[kLanes];
    if constexpr (VECTORS > 0) {
      Vec q[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) q[v] = load(q_ + v * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        const float* const p = row(first + i);
        fetch<Rows>(p);
        sum[i] = load(p) * q[0];
#pragma GCC unroll 4
        for (int v = 1; v < VECTORS; ++v) {
          fetch<Rows>(p + v * kLanes);
          sum[i] += load(p + v * kLanes) * q[v];
        }
      }
      return reduce_each(sum, [](Vec a, Vec b) { return a + b; });
    }
    // Row after row: memory is read in its order, which is what prefetchers follow.
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const float* const p = row(first + i);
      fetch<Rows>(p);
      sum[i] = load(p) * load(q_);
      Index c = kLanes;
      for (; c + kLanes <= d_; c += kLanes) {
        fetch<Rows>(p + c);
        sum[i] += load(p + c) * load(q_ + c);
      }
      if (c < d_) sum[i] += load(p + d_ - kLanes) * load(tail_);
    }
    return reduce_each(sum, [](Vec a, Vec b) { return a + b; });
  }

  const float* q_;
  Index d_;
  const float* tail_;
};

template <int VECTORS, class Rows>
[[gnu::always_inline]] inline void add_weighted_columns(const float* weights, const Rows& row,
                                                        Index count, const Index* column,
                                                        float* out) {
  Vec even[VECTORS], odd[VECTORS];  // two chains hide the latency of the multiply-add
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) even[v] = load(out + column[v]), odd[v] = Vec{};
  Index r = 0;
  for (; r + 2 <= count; r += 2) {
    const float *const a = row(r), *const b = row(r + 1);
    const Vec wa = broadcast(weights[r]), wb = broadcast(weights[r + 1]);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      fetch<Rows>(a + column[v]);
      fetch<Rows>(b + column[v]);
      even[v] += wa * load(a + column[v]);
      odd[v] += wb * load(b + column[v]);
    }
  }
  if (r < count) {
    const Vec w = broadcast(weights[r]);
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) even[v] += w * load(row(r) + column[v]);
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) store(out + column[v], even[v] + odd[v]);
}

// out [d] += sum over r < count of weights[r] * row(r). The last vector overlaps its neighbour: the
// shared lanes are computed twice from the value that `out` held before, with the same result.
template <class Rows>
inline void add_weighted_rows(const float* weights, const Rows& row, Index count, Index d,
                              float* out) {
  if (d < kLanes) {
    for (Index r = 0; r < count; ++r)
      for (Index c = 0; c < d; ++c) out[c] += weights[r] * row(r)[c];
    return;
  }
  const Index whole = d / kLanes * kLanes, tail = d - kLanes;
  float before[kLanes], after[kLanes];
  if (whole < d) store(before, load(out + tail));
  Index c = 0;
  for (; c + 4 * kLanes <= whole; c += 4 * kLanes) {
    const Index column[4] = {c, c + kLanes, c + 2 * kLanes, c + 3 * kLanes};
    add_weighted_columns<4>(weights, row, count, column, out);
  }
  for (; c + kLanes <= whole; c += kLanes) add_weighted_columns<1>(weights, row, count, &c, out);
  if (whole < d) {
    const Index zero = 0;
    std::copy_n(before, kLanes, after);
    add_weighted_columns<1>(weights, DerivedRows<Rows>{row, tail, count}, count, &zero, after);
    store(out + tail, load(after));
  }
}

// Softmax attention of one query over part of its keys: out = sum_r 2^(s_r - max) v_r, not divided.
struct Part {
  float max = -kInfinity;  // of the scores s_r = q . k_r, in units of log 2
  float sum = 0;           // sum_r 2^(s_r - max)
};

// weights [count, rounded up to whole vectors] receives 2^(s_r - max); out [d_v] is overwritten.
template <class Keys, class Values>
inline Part attend_rows(const RowQuery& q, const Keys& key, const Values& value, Index count,
                        Index d_v, float* weights, float* out) {
  Part part;
  std::fill_n(out, d_v, 0.0f);
  if (count == 0) return part;
  q.score(key, count, weights);
  const Bounds whole = mask_row(weights, {0, count}, nullptr, -kInfinity);
  part.max = whole_shift(horizontal_max(row_max(weights, whole)));
  part.sum = horizontal_sum(exponentiate(weights, whole, part.max, Vec{}));
  add_weighted_rows(weights, value, count, d_v, out);
  return part;
}

// out [d_v] = the softmax average of `parts` partial ones, outs [parts, d_v]; parts are summed in
// their order. Returns the whole: its maximum and sum.
inline Part merge_parts(const Part* part, const float* outs, Index parts, Index d_v, float* out) {
  Part all;
  for (Index p = 0; p < parts; ++p) all.max = std::max(all.max, part[p].max);
  std::fill_n(out, d_v, 0.0f);
  if (all.max == -kInfinity) return all;  // nothing was seen
  for (Index p = 0; p < parts; ++p) {
    const float factor = std::exp2(part[p].max - all.max);
    all.sum += factor * part[p].sum;
    for (Index c = 0; c < d_v; ++c) out[c] += factor * outs[p * d_v + c];
  }
  for (Index c = 0; c < d_v; ++c) out[c] /= all.sum;
  return all;
}

}  // namespace subquad::engine
