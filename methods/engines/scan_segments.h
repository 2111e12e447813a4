// How a scan over groups of tokens is cut into segments; scan_schedule.h says what for.
#pragma once

#include <algorithm>
#include <cmath>

#include "harness/core/tensor.h"

namespace subquad::engine {

// Runs of groups. The opening is short, for nothing is there yet to be emitted beside it; then they
// are narrow and wide by turns, stretched so that the last one is short again, while what was kept
// before is emitted.
class ScanSegments {
 public:
  ScanSegments() = default;
  ScanSegments(Index of_groups, Index group_tokens)
      : groups_(of_groups), opening_(std::min(of_groups, whole(kOpening, group_tokens))) {
    const Index rest = groups_ - opening_;
    if (rest == 0) {
      count_ = std::min<Index>(groups_, 1);
      return;
    }
    const double tokens = static_cast<double>(rest * group_tokens);
    const double more = tokens / kStretch - (kNarrow + kLast);
    const Index pairs =
        1 + std::max<Index>(0, static_cast<Index>(std::ceil(more / (kNarrow + kWide))));
    count_ = 1 + 2 * pairs;
    per_token_ = static_cast<double>(rest) /
                 static_cast<double>((pairs - 1) * (kNarrow + kWide) + kNarrow + kLast);
  }

  Index count() const { return count_; }
  // First group of segment s, and the one behind its last.
  Index first(Index s) const {
    if (s == 0) return 0;
    if (s >= count_) return groups_;
    const Index before = (s - 1) / 2 * (kWide + kNarrow) + (s % 2 == 0 ? kNarrow : 0);
    return opening_ + static_cast<Index>(std::lround(static_cast<double>(before) * per_token_));
  }
  Index end(Index s) const { return first(s + 1); }
  Index widest() const {
    Index groups_of_widest = 0;
    for (Index s = 0; s < count_; ++s)
      groups_of_widest = std::max(groups_of_widest, end(s) - first(s));
    return groups_of_widest;
  }

 private:
  // Tokens. Measured with two threads, which wait for each other as little as can be; at d = 64
  // the increments of a wide one and of the beginning of the next just fit a cache of 1 MiB.
  static constexpr Index kOpening = 256, kWide = 768, kNarrow = 672, kLast = 480;
  static constexpr double kStretch = 1.1;  // at most
  static Index whole(Index tokens, Index of) { return (tokens + of - 1) / of; }

  Index groups_ = 0, opening_ = 0, count_ = 0;
  double per_token_ = 0;  // groups
};

}  // namespace subquad::engine
