// What the passes of LinearScan share: one thread's work space, and how chunks of the inputs come
// into it. Internal to linear_scan*.cpp.
#pragma once

#include "methods/engines/band.h"
#include "methods/engines/chunk_product.h"
#include "methods/engines/linear_scan.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/vector_math.h"

namespace subquad {

using engine::Decay;
using engine::kLanes;
using engine::load;
using engine::round_up;
using engine::store;
using engine::Vec;

// A scan over the tokens [base, limit) of the keys (or queries), in chunks and groups of chunks.
struct ScanRange {
  Index chunk = 0, group = 1, base = 0, limit = 0;

  Index first(Index c) const { return base + c * chunk; }
  Index count(Index c) const { return std::min(chunk, limit - first(c)); }
  Index rows() const { return chunk * group; }  // of a group
  Index group_first(Index g) const { return base + g * rows(); }
  Index group_count(Index g) const { return std::min(rows(), limit - group_first(g)); }
  Index inside(Index c) const { return c % group * chunk; }  // row of chunk c in its group
};

// Tensors and constants of the present call, and the loads.
struct LinearScanCall {
  const Inputs& in;
  const Problem& problem;
  const FeatureMap& map;
  ConstTensorView out = {}, dout = {};
  const float* inverse_norm = nullptr;
  bool normalize = true;

  static const float* rows(const ConstTensorView& x, Index bh, Index first) {
    return x.data() + (bh * x.n() + first) * x.d();
  }
  const std::uint8_t* mask(Index bh, Index first) const {
    const auto real = keys_of_batch(in, bh / problem.heads);
    return real.empty() ? nullptr : real.data() + first;
  }

  // Asks for `count` keys and values from `first` on.
  void request_keys(Index bh, Index first, Index count, engine::Ahead* ahead) const {
    ahead->add(rows(in.k, bh, first), count * problem.d_k);
    ahead->add(rows(in.v, bh, first), count * problem.d_v);
  }

  static void clear(float* rows_from, Index from, Index to, Index wide) {
    std::fill(rows_from + from * wide, rows_from + to * wide, 0.0f);
  }

  // phi(k) of keys [first, first + count) -> k [rows, wide].
  void keys(Index bh, Index first, Index count, Index total, Index wide, float* k,
            float* scratch) const {
    const Index d = problem.d_k;
    const float* const x = rows(in.k, bh, first);
    map.apply(FeatureMap::Side::key, bh, x, count, d, k, wide, scratch);
    clear(k, count, total, wide);
    if (const std::uint8_t* real = mask(bh, first))
      for (Index j = 0; j < count; ++j)
        if (real[j] == 0) clear(k, j, j + 1, wide);
  }

  // phi(q) of queries [first, first + count) -> q [total, wide].
  void queries(Index bh, Index first, Index count, Index total, Index wide, float* q,
               float* scratch) const {
    const Index d = problem.d_k;
    const float* const x = rows(in.q, bh, first);
    map.apply(FeatureMap::Side::query, bh, x, count, d, q, wide, scratch);
    clear(q, count, total, wide);
  }

  // Values of keys [first, first + count) -> v [total, wide] with masked and missing rows zero.
  void values(Index bh, Index first, Index count, Index total, Index wide, float* v) const {
    const Index d = problem.d_v;
    const float* const x = rows(in.v, bh, first);
    const std::uint8_t* const real = mask(bh, first);
    engine::map_rows(x, count, d, v, wide, [](Vec y) { return y; });
    clear(v, count, total, wide);
    for (Index j = 0; j < count && real != nullptr; ++j)
      if (real[j] == 0) clear(v, j, j + 1, wide);
  }
  // The same where they lie, if that will do (all rows there, of whole vectors, none masked), else
  // null.
  const float* values_as_they_lie(Index bh, Index first, Index count, Index total,
                                  Index wide) const {
    const bool same = count == total && problem.d_v == wide && mask(bh, first) == nullptr;
    return same ? rows(in.v, bh, first) : nullptr;
  }
  // Values of a group: copied where they must be.
  void load_values(const ScanRange& range, Index bh, Index g, Index wide, float* copy) const {
    const Index first = range.group_first(g), count = range.group_count(g);
    if (values_as_they_lie(bh, first, count, range.rows(), wide) == nullptr)
      values(bh, first, count, range.rows(), wide, copy);
  }
  // Of chunk c, after load_values of its group.
  const float* values_of(const ScanRange& range, Index bh, Index c, Index wide,
                         const float* copy) const {
    const Index g = c / range.group;
    const float* const lying =
        values_as_they_lie(bh, range.group_first(g), range.group_count(g), range.rows(), wide);
    return (lying != nullptr ? lying : copy) + range.inside(c) * wide;
  }

  // Gradients of numerator and denominator of queries [first, first + count) -> g [total, wide]:
  // dout_i / norm_i, and -(dout_i . out_i) / norm_i behind it.
  void gradient(Index bh, Index first, Index count, Index total, Index wide, float* g) const {
    const Index d = problem.d_v;
    const float* const from = rows(dout, bh, first);
    const float* const o = rows(out, bh, first);
    if (!normalize) {
      engine::map_rows(from, count, d, g, wide, [](Vec y) { return y; });
    } else {
      for (Index i = 0; i < count; i += kLanes) {
        Vec sums[kLanes] = {};
        const Index rows_here = std::min<Index>(kLanes, count - i);
        for (Index r = 0; r < rows_here; ++r) {
          const float scale = inverse_norm[bh * problem.n + first + i + r];
          const float* const x = from + (i + r) * d;
          const float* const y = o + (i + r) * d;
          float* const to = g + (i + r) * wide;
          Vec sum{};
          Index c = 0;
          for (; c + kLanes <= d; c += kLanes) {
            const Vec scaled = load(x + c) * scale;
            sum += scaled * load(y + c);
            store(to + c, scaled);
          }
          if (c < d) {
            const Vec scaled = engine::load_part(x + c, d - c) * scale;
            sum += scaled * engine::load_part(y + c, d - c);
            store(to + c, scaled);
          } else {
            store(to + c, Vec{});  // wide > d: there is one more column
          }
          sums[r] = sum;
        }
        const Vec dots = engine::reduce_each(sums, [](Vec a, Vec b) { return a + b; });
        for (Index r = 0; r < rows_here; ++r) g[(i + r) * wide + d] = -dots[r];
      }
    }
    clear(g, count, total, wide);
  }
};

// The rows [tokens, wide] of a run of chunks times decay^(rows of its chunk - 1 - row in it), or
// decay^row, -> to.
inline void scale_rows(const float* rows, const engine::ChunkRun& run, Index wide,
                       const float* powers, bool descending, float* to) {
  for (Index s = 0; s < run.count; ++s) {
    const Index first = run.first(s), count = run.rows(s);
    for (Index r = 0; r < count; ++r) {
      const float factor = powers[descending ? count - 1 - r : r];
      for (Index c = (first + r) * wide; c < (first + r + 1) * wide; c += kLanes)
        store(to + c, factor * load(rows + c));
    }
  }
}

// The sums of the rows [tokens, wide] of a run of chunks, to keep as chunk_increment does; `offset`
// is theirs in the state.
template <class Keep>
[[gnu::always_inline]] inline void sum_rows(const float* rows, const engine::ChunkRun& run,
                                            Index wide, Index offset, Keep&& keep) {
  for (Index x = 0; x < wide; x += kLanes) {
    Vec even{}, odd{};
    for (Index c = 0; c < run.count; ++c) {
      const Index end = run.first(c) + run.rows(c);
      Index t = run.first(c);
      for (; t + 2 <= end; t += 2) {
        even += load(rows + t * wide + x);
        odd += load(rows + (t + 1) * wide + x);
      }
      if (t < end) even += load(rows + t * wide + x);
      keep(c, offset)(x, even + odd);
    }
  }
}

// Rows of a tile [count, wide] -> [count, d].
inline void store_rows(const float* tile, Index count, Index wide, Index d, float* to) {
  for (Index r = 0; r < count; ++r) std::copy_n(tile + r * wide, d, to + r * d);
}

}  // namespace subquad
