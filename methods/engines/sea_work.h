// One thread's work space of SEA's forward pass, and the bits of kept cells.
#pragma once

#include "methods/engines/row_attention.h"
#include "methods/engines/sea_attention.h"

namespace subquad {

struct SeaWork {
  float* estimator;     // SeaEstimator's
  float* scores;        // [rows of a block, heads, wide cells]
  float* gates;         // [rows of a block, heads, 2]
  float* p;             // [heads, wide cells]
  float* row;           // [n rounded up]: scores of one query
  float* back;          // [n rounded up]: gradients of them, where there are gradients
  float* y;             // [d_v], likewise
  float* q;             // [d_k]
  float* tail;          // one vector
  float* out;           // [d_v]
  double* sum;          // [heads, d_v]: running sums of values
  std::uint32_t* bits;  // [words]
  std::int32_t* keys;   // [n]
};

struct SeaWorkSizes {
  Index estimator = 0, scores = 0, gates = 0, p = 0, row = 0, q = 0, out = 0, sum = 0, bits = 0;
  Index back = 0, y = 0;
  Index floats = 0;

  static SeaWorkSizes of(const Problem& p, const SeaOptions& o, const SeaShape& s, Index block,
                         bool gradients) {
    using engine::kLanes;
    const auto wide = [](Index x) { return engine::round_up(x, 16); };  // whole cache lines
    const Index cells = engine::round_up(o.cells, kLanes), rows = block / s.skip;
    SeaWorkSizes w;
    if (o.source == SeaOptions::Source::learned) {
      w.estimator = wide(SeaEstimator::work_floats(s, rows));
      w.scores = wide(rows * p.heads * cells);
      w.gates = wide(rows * p.heads * 2);
    }
    w.p = wide(p.heads * cells);
    w.row = wide(p.n);
    if (gradients) {
      w.back = wide(p.n);
      w.y = wide(p.d_v);
    }
    w.q = wide(p.d_k);
    w.out = wide(p.d_v);
    w.sum = wide(2 * p.heads * p.d_v);
    w.bits = wide((o.cells + 31) / 32);
    w.floats = w.estimator + w.scores + w.gates + w.p + w.row + w.back + w.y + w.q + 16 + w.out +
               w.sum + w.bits;
    return w;
  }
  SeaWork at(float* memory, std::int32_t* keys) const {
    const auto take = [&](Index count) {
      float* const here = memory;
      memory += count;
      return here;
    };
    SeaWork work{};
    work.estimator = take(estimator);
    work.scores = take(scores);
    work.gates = take(gates);
    work.p = take(p);
    work.row = take(row);
    work.back = take(back);
    work.y = take(y);
    work.q = take(q);
    work.tail = take(16);
    work.out = take(out);
    work.sum = reinterpret_cast<double*>(take(sum));
    work.bits = reinterpret_cast<std::uint32_t*>(take(bits));
    work.keys = keys;
    return work;
  }
};

// Whether the pooled values depend on the probabilities of all queries.
inline bool uses_pool(const Problem& p, const SeaOptions& o) {
  return !p.causal && o.source == SeaOptions::Source::learned && o.gates;
}
// Whether cells compete over all queries, so that probabilities of all are needed at once.
inline bool whole_matrix(const SeaOptions& o) {
  return o.group == SeaOptions::Group::head || o.group == SeaOptions::Group::batch;
}

// One row of cells. keys(c) is the range of keys [first, last) of a cell.
struct SeaCellRow {
  Index cells, wide;
  bool mask_empty;  // a cell without keys gets no probability
  bool may_be_empty;

  template <class Keys>
  void clear_empty(float* p, float value, const Keys& keys) const {
    for (Index c = 0; c < cells && may_be_empty; ++c) {
      const auto [first, last] = keys(c);
      if (first >= last) p[c] = value;
    }
  }
  // p [wide] = softmax of scores [wide]; -1 beyond the cells, so that nothing there is chosen.
  template <class Keys>
  void softmax(const float* scores, float* p, const Keys& keys) const {
    using namespace engine;
    std::copy_n(scores, wide, p);
    if (mask_empty) clear_empty(p, -kInfinity, keys);
    const Bounds whole = mask_row(p, {0, cells}, nullptr, -kInfinity);
    const float most = horizontal_max(row_max(p, whole));
    Vec sum{};
    for (Index c = 0; c < wide; c += kLanes) {
      const Vec e = exp2_nonpositive((load(p + c) - most) * 1.44269504088896340736f);
      store(p + c, e);
      sum += e;
    }
    const float factor = 1 / horizontal_sum(sum);
    for (Index c = 0; c < wide; c += kLanes) store(p + c, load(p + c) * factor);
    std::fill(p + cells, p + wide, -1.0f);
  }
  // Cells by their distance from the query's own.
  template <class Keys>
  void local(float* p, Index own, const Keys& keys) const {
    for (Index c = 0; c < cells; ++c)
      p[c] = 1 / static_cast<float>(1 + (c > own ? c - own : own - c));
    std::fill(p + cells, p + wide, -1.0f);
    clear_empty(p, 0, keys);
  }
};

// Bit c of `bits` says whether cell c is kept. Ties that are taken are taken off the limit.
inline void keep_bits(const float* p, Index cells, Index wide, engine::SeaLimit* limit,
                      std::uint32_t* bits) {
  using namespace engine;
  std::fill_n(bits, (cells + 31) / 32, 0u);
  if (limit->ties > 0) {
    for (Index c = 0; c < cells; ++c)
      if (limit->keeps(p[c], &limit->ties)) bits[c / 32] |= 1u << (c % 32);
    return;
  }
  IntVec power{};
  for (int i = 0; i < kLanes; ++i) power[i] = 1 << i;
  for (Index c = 0; c < wide; c += kLanes) {
    const IntVec above = reinterpret_cast<IntVec>(load(p + c)) > limit->limit - IntVec{};
    const IntVec lanes = above & power;
    std::uint32_t some = 0;
    for (int i = 0; i < kLanes; ++i) some |= static_cast<std::uint32_t>(lanes[i]);
    bits[c / 32] |= some << (c % 32);
  }
}

}  // namespace subquad
