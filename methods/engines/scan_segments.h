// How a scan over groups of tokens is cut into segments; scan_schedule.h says what for.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <utility>
#include <vector>

#include "harness/core/tensor.h"

namespace subquad::engine {

// Runs of groups, by turns for the first of two threads, which goes straight through them, and for
// the second, which sums them, waits for what comes before and emits. Each must find the other
// done, or nearly: so the cuts come from a model of both clocks in a forward pass, in whole
// numbers, for bits depend on them. They depend on the number of groups and the tokens of one,
// never on the threads: larger teams, and scans from the last to the first, use the same.
class ScanSegments {
 public:
  // Groups of its next segment that the second thread sums before it waits.
  static constexpr Index kAhead = 2;

  ScanSegments() = default;
  ScanSegments(Index groups, Index group_tokens) {
    if (groups == 0) return;
    cuts_ = {0, groups};
    if (groups == 1 || groups * group_tokens <= kWhole) return;
    const Costs& costs = groups * group_tokens <= kNear ? kFromCache : kFromMemory;
    const Index pair = kUnit + costs.sum + costs.emit;
    const Index most = std::max<Index>(1, kKept / group_tokens);
    const Index least = (groups * kUnit - 1) / (most * pair) + 1;
    Index best = kNever;
    std::vector<Index> cuts;
    const auto long_end = [&] { return end(count() - 1) - first(count() - 1) > 2 * most; };
    for (Index turns = std::max<Index>(1, least - 1);
         turns <= least + 1 || (turns < groups && long_end()); ++turns) {
      const auto done = [&](Index kept) { return plan(groups, turns, kept, costs, cuts); };
      Index fits = 0, too_many = turns * most * kUnit + 1;
      while (too_many - fits > 1) {
        const Index middle = (fits + too_many) / 2;
        (done(middle) == kNever ? too_many : fits) = middle;
      }
      for (Index kept = std::max<Index>(0, fits - kSearch); kept <= fits; kept += kStep) {
        const Index end = done(kept);
        if (end == kNever || end + turns * kTurnBoth >= best) continue;
        best = end + turns * kTurnBoth;
        std::swap(cuts, cuts_);
      }
    }
  }

  Index count() const { return cuts_.empty() ? 0 : static_cast<Index>(cuts_.size()) - 1; }
  // First group of segment s, and the one behind its last.
  Index first(Index s) const { return cuts_[static_cast<std::size_t>(s)]; }
  Index end(Index s) const { return first(s + 1); }
  Index widest() const {
    Index groups = 0;
    for (Index s = 0; s < count(); ++s) groups = std::max(groups, end(s) - first(s));
    return groups;
  }
  // The widest that a thread other than the first takes, in a team of `threads`, in either order of
  // the scan.
  Index widest_kept(Index threads) const {
    Index groups = 0;
    for (Index s = 0; s < count(); ++s)
      if (s % threads != 0 || (count() - 1 - s) % threads != 0)
        groups = std::max(groups, end(s) - first(s));
    return groups;
  }

 private:
  // Thousandths of the time for a group that is summed and emitted at once; measured at d = 64.
  struct Costs {
    Index sum, emit;
  };
  static constexpr Index kUnit = 1000;
  static constexpr Costs kFromCache{430, 730}, kFromMemory{400, 690};
  // What a turn costs the first and the second thread beside their groups; and what it costs in all
  // beyond that, which only decides between numbers of turns.
  static constexpr Index kTurnFirst = 160, kTurnSecond = 280, kTurnBoth = 250;
  static constexpr Index kWhole = 256;   // tokens that are not cut
  static constexpr Index kNear = 20480;  // tokens that a cache of 32 MiB holds, at d = 64
  static constexpr Index kKept = 704;    // tokens; with kAhead groups .83 of 1 MiB at d = 64
  static constexpr Index kSearch = 6000, kStep = 250;  // thousandths of a group
  static constexpr Index kNever = std::numeric_limits<Index>::max();

  // Cuts for so many turns of the second thread, which together take `kept` thousandths of
  // a group.
  // Returns when both threads are done, or kNever where there are too few groups.
  static Index plan(Index groups, Index turns, Index kept, const Costs& costs,
                    std::vector<Index>& cuts) {
    const auto width = [&](Index turn) -> Index {
      if (turn >= turns) return 0;
      return std::max<Index>(1, rounded((turn + 1) * kept / turns) - rounded(turn * kept / turns));
    };
    cuts.assign(1, 0);
    Index first = 0, second = 0;  // clocks
    Index left = groups, begun = 0;
    for (Index turn = 0; turn <= turns; ++turn) {
      const Index own = width(turn), ahead = std::min(kAhead, width(turn + 1));
      const Index posted = second + (own - begun) * costs.sum;
      const Index free = posted + ahead * costs.sum;  // from here on the second thread would wait
      const Index straight =
          turn == turns ? left : std::max<Index>(1, rounded((posted + free) / 2 - first));
      left -= straight + own;
      if (left < 0) return kNever;
      const Index through = first + straight * kUnit;
      first = std::max(through, posted) + kTurnFirst;
      second = std::max(through, free) + kTurnSecond + own * costs.emit;
      begun = ahead;
      if (straight > 0) cuts.push_back(cuts.back() + straight);
      if (own > 0) cuts.push_back(cuts.back() + own);
    }
    return std::max(first, second);
  }
  static Index rounded(Index thousandths) { return (thousandths + kUnit / 2) / kUnit; }

  std::vector<Index> cuts_;  // the first group of each segment, and the end
};

}  // namespace subquad::engine
