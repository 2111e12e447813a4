// The sum of a scan over chunks of tokens without its outputs; scan_schedule.h has the scan.
#pragma once

#include <algorithm>

#include "harness/core/parallel.h"
#include "harness/core/tensor.h"
#include "methods/engines/simd.h"

namespace subquad::engine {

// The sum of the increments of all chunks of every head, in the three levels of a scan; no outputs.
// A group is one chunk.
class ScanTotals {
 public:
  ScanTotals() = default;
  ScanTotals(Index heads, Index tokens, Index chunk, Index state_floats)
      : heads_(heads),
        chunks_((tokens + chunk - 1) / chunk),
        segment_(segment_chunks(tokens, chunk)),
        state_floats_(state_floats),
        sums_(heads * segments() * state_floats),
        totals_(heads * state_floats),
        rounded_(heads * state_floats) {}

  // Sweep as in scan_schedule.h; emit and open are not called, and load once for every group.
  template <class Sweep>
  void run(Sweep& sweep) {
    const Index count = segments();
    parallel_for(heads_ * count, [&](Index item, int thread) {
      const Index head = item / count, first = item % count * segment_;
      float* const own = sums_.data() + item * state_floats_;
      std::fill_n(own, state_floats_, 0.0f);
      for (Index c = first; c < std::min(first + segment_, chunks_); ++c) {
        sweep.load(head, c, thread);
        const float factor = sweep.factor(head, c);
        const Index next = c + 1 < std::min(first + segment_, chunks_) ? c + 1 : -1;
        sweep.increment(head, c, next, thread, nullptr, [&](Index, Index offset) {
          return [to = own + offset, factor](Index at, Vec increment) {
            store(to + at, factor * load(to + at) + increment);
          };
        });
      }
    });
    parallel_for(heads_, [&](Index head, int) {
      double* const total = totals_.data() + head * state_floats_;
      std::fill_n(total, state_floats_, 0.0);
      for (Index s = 0; s < count; ++s) {
        double decay = 1;
        for (Index c = s * segment_; c < std::min((s + 1) * segment_, chunks_); ++c)
          decay *= static_cast<double>(sweep.factor(head, c));
        const float* const own = sums_.data() + (head * count + s) * state_floats_;
        for (Index e = 0; e < state_floats_; ++e)
          total[e] = decay * total[e] + static_cast<double>(own[e]);
      }
      float* const state = rounded_.data() + head * state_floats_;
      for (Index e = 0; e < state_floats_; ++e) state[e] = static_cast<float>(total[e]);
    });
  }
  const double* total(Index head) const { return totals_.data() + head * state_floats_; }
  const float* rounded(Index head) const { return rounded_.data() + head * state_floats_; }

  static double bytes(Index heads, Index tokens, Index chunk, Index state_floats) {
    const Index segment = segment_chunks(tokens, chunk) * chunk;
    return 4.0 * static_cast<double>(heads * ((tokens + segment - 1) / segment + 3)) *
           static_cast<double>(state_floats);
  }

 private:
  Index segments() const { return (chunks_ + segment_ - 1) / segment_; }
  // At least 512 tokens, at most 64 segments.
  static Index segment_chunks(Index tokens, Index chunk) {
    return (std::max<Index>(512, (tokens + 63) / 64) + chunk - 1) / chunk;
  }

  Index heads_ = 0, chunks_ = 0, segment_ = 1, state_floats_ = 0;
  AlignedArray<float> sums_;     // [heads, segments, state_floats]
  AlignedArray<double> totals_;  // [heads, state_floats]
  AlignedArray<float> rounded_;  // likewise
};

}  // namespace subquad::engine
