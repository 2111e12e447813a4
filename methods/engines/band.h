// Which keys a query sees, for every pattern that is a band around the diagonal plus a prefix:
// dense (causal or not) and sliding windows with sinks. The only place where masks are decided.
#pragma once

#include <algorithm>
#include <limits>
#include <span>

#include "harness/core/method.h"

namespace subquad {

// Query i stands at position i + offset of the key axis. It sees the keys
//   [0, sink_end(i))  and  [begin(i), end(i)),   sink_end(i) <= begin(i) <= end(i);
// all three bounds grow with i.
struct Band {
  Index n = 0, n_kv = 0;
  Index offset = 0;
  Index before = 0;  // keys before its own position that a query sees
  Index after = 0;   // keys after it
  Index sinks = 0;   // first keys that are seen from any distance, but never from before them
  bool causal = false;

  // Every key that the problem allows.
  static Band dense(const Problem& p) {
    const Index far = p.n + p.n_kv;
    return {p.n, p.n_kv, p.causal ? p.causal_offset() : 0, far, p.causal ? 0 : far, 0, p.causal};
  }

  Index end(Index i) const {
    return std::max(begin(i), std::clamp<Index>(i + offset + after + 1, 0, n_kv));
  }
  Index sink_end(Index i) const {
    return std::min({sinks, n_kv, causal ? std::max<Index>(i + offset + 1, 0) : n_kv});
  }
  Index begin(Index i) const {
    return std::max(sink_end(i), std::clamp<Index>(i + offset - before, 0, n_kv));
  }
  bool sees(Index i, Index j) const { return j < sink_end(i) || (j >= begin(i) && j < end(i)); }
  // Entries of the attention matrix of one head.
  double entries() const {
    double sum = 0;
    for (Index i = 0; i < n; ++i) sum += static_cast<double>(sink_end(i) + end(i) - begin(i));
    return sum;
  }
  // Queries [first, last) outside of which no query sees a key of [c0, c1); c0 and c1 lie on the
  // same side of `sinks`.
  struct Range {
    Index first, last;
  };
  Range queries_of(Index c0, Index c1) const {
    const Index last = c0 < sinks ? n : c1 - offset + before;
    const Index first = c0 < sinks && !causal ? 0 : c0 - offset - after;
    return {std::clamp<Index>(first, 0, n), std::clamp<Index>(last, 0, n)};
  }
};

// The part of Inputs::key_mask that belongs to batch item b: [n_kv], or empty.
inline std::span<const std::uint8_t> keys_of_batch(const Inputs& in, Index b) {
  if (in.key_mask.empty()) return {};
  const auto n_kv = static_cast<std::size_t>(in.k.n());
  return in.key_mask.subspan(static_cast<std::size_t>(b) * n_kv, n_kv);
}

// True when every query of rows [r0, r1) sees every key of [c0, c1).
inline bool sees_all(const Band& band, std::span<const std::uint8_t> real, Index r0, Index r1,
                     Index c0, Index c1) {
  for (Index i : {r0, r1 - 1}) {  // the bounds grow with i: the rows between see no less
    const bool sinks = c1 <= band.sink_end(i);
    const bool window = c0 >= band.begin(i) && c1 <= band.end(i);
    const bool joined = band.sink_end(i) == band.begin(i) && c1 <= band.end(i);
    if (!sinks && !window && !joined) return false;
  }
  for (Index j = c0; j < c1 && !real.empty(); ++j)
    if (real[static_cast<std::size_t>(j)] == 0) return false;
  return true;
}

// Sets the entries of a tile (rows from r0, keys from c0) that are not seen to `value`.
template <class Tile>
void fill_hidden(Tile& tile, const Band& band, std::span<const std::uint8_t> real, Index r0,
                 Index c0, float value) {
  const Index keys = tile.cols();
  const auto column = [&](Index j) { return std::clamp<Index>(j - c0, 0, keys); };
  for (Index r = 0; r < tile.rows(); ++r) {
    const Index gap = column(band.sink_end(r0 + r)), begin = column(band.begin(r0 + r)),
                end = column(band.end(r0 + r));
    tile.row(r).segment(gap, begin - gap).setConstant(value);
    tile.row(r).segment(end, keys - end).setConstant(value);
  }
  for (Index j = 0; j < keys && !real.empty(); ++j)
    if (real[static_cast<std::size_t>(c0 + j)] == 0) tile.col(j).setConstant(value);
}

// Rows `rows` of softmax(scale q k^T) over the keys that `sees(i, j)` and the key mask let through,
// computed in double -> weights [rows, n_kv]. A row that sees no key is zero. For
// Method::attention_rows: clear rather than fast.
template <class Sees>
void masked_attention_rows(const Inputs& in, const Sees& sees, double scale, Index b, Index h,
                           std::span<const Index> rows, Eigen::Ref<Matrix> weights) {
  const auto real = keys_of_batch(in, b);
  const auto q = in.q.head(b, h), k = in.k.head(b, h);
  VectorD score(in.k.n());
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const Index i = rows[r];
    double max = -std::numeric_limits<double>::infinity();
    const auto seen = [&](Index j) {
      return sees(i, j) && (real.empty() || real[static_cast<std::size_t>(j)] != 0);
    };
    for (Index j = 0; j < in.k.n(); ++j)
      if (seen(j)) {
        score[j] = scale * q.row(i).cast<double>().dot(k.row(j).cast<double>());
        max = std::max(max, score[j]);
      }
    double sum = 0;
    for (Index j = 0; j < in.k.n(); ++j) {
      score[j] = seen(j) ? std::exp(score[j] - max) : 0;
      sum += score[j];
    }
    if (sum > 0) score /= sum;
    weights.row(static_cast<Index>(r)) = score.cast<float>();
  }
}

inline void band_attention_rows(const Inputs& in, const Band& band, double scale, Index b, Index h,
                                std::span<const Index> rows, Eigen::Ref<Matrix> weights) {
  const auto sees = [&](Index i, Index j) { return band.sees(i, j); };
  masked_attention_rows(in, sees, scale, b, h, rows, weights);
}

}  // namespace subquad
