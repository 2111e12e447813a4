// Which keys every query sees, as stripes: rectangles of the attention matrix whose sides may run
// along the diagonal. Bands are one or two stripes; block-sparse patterns list some for every block
// of queries. The tiled engine works through the stripes; only they know about masks.
#pragma once

#include <algorithm>
#include <vector>

#include "methods/engines/band.h"

namespace subquad {

// Entries (i, j) with q_begin <= i < q_end, k_begin <= j < k_end and i + lo <= j < i + hi.
struct Stripe {
  Index q_begin = 0, q_end = 0, k_begin = 0, k_end = 0, lo = 0, hi = 0;

  Index first(Index i) const {
    return i < q_begin || i >= q_end ? k_end : std::max(k_begin, i + lo);
  }
  Index last(Index i) const { return std::min(k_end, i + hi); }  // one past
  double entries() const {
    double sum = 0;
    for (Index i = q_begin; i < q_end; ++i)
      sum += static_cast<double>(std::max<Index>(0, last(i) - first(i)));
    return sum;
  }
};

// Stripes of one head must not overlap: an entry that two of them hold counts twice.
struct Pattern {
  std::vector<Stripe> common;  // of every head; few, looked through for every tile

  // Stripes that lie within one block of queries: those of block x of head h are
  // listed[starts[y] .. starts[y + 1]) with y = (h % listed_heads) * blocks + x.
  Index query_block = 0;   // 0: nothing is listed
  Index blocks = 0;        // ceil(n / query_block)
  Index listed_heads = 1;  // 1: the same for every head
  std::vector<Stripe> listed;
  std::vector<Index> starts;

  static Pattern of(const Band& band) {
    Pattern pattern;
    const Index far = band.n + band.n_kv;
    if (band.sinks > 0)
      pattern.common.push_back({0, band.n, 0, std::min(band.sinks, band.n_kv), -far,
                                band.causal ? band.offset + 1 : far});
    pattern.common.push_back({0, band.n, band.sinks, band.n_kv, band.offset - band.before,
                              band.offset + band.after + 1});
    return pattern;
  }

  // Entries of the attention matrix of all heads of one batch item.
  double entries(Index heads) const {
    double all = 0, list = 0;
    for (const Stripe& s : common) all += s.entries();
    for (const Stripe& s : listed) list += s.entries();
    return static_cast<double>(heads) * (all + list / static_cast<double>(listed_heads));
  }
  double bytes() const {
    return static_cast<double>(sizeof(Stripe)) *
               static_cast<double>(common.size() + listed.size()) +
           static_cast<double>(sizeof(Index)) * static_cast<double>(starts.size());
  }
  bool sees(Index head, Index i, Index j) const {
    const auto holds = [&](const Stripe& s) { return j >= s.first(i) && j < s.last(i); };
    if (std::any_of(common.begin(), common.end(), holds)) return true;
    if (query_block == 0) return false;
    const auto at = static_cast<std::size_t>(head % listed_heads * blocks + i / query_block);
    return std::any_of(listed.begin() + starts[at], listed.begin() + starts[at + 1], holds);
  }
};

}  // namespace subquad
