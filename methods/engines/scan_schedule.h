// Order and parallelism of a scan over chunks of tokens:
//
//   for every head, for c = 0, 1, ..: emit(c, state);  state = factor(c) state + increment(c)
//
// Precision. A state is summed in three levels: inside a chunk by the product, inside a segment in
// float32, across segments in double. So a sum over 65,536 tokens carries the rounding of a few
// dozen additions, whatever the inputs are.
//
// Parallelism. Where heads keep the threads busy, one thread takes a whole head and nothing is
// computed twice. Otherwise segments are spread over the threads, in windows of a few segments:
// pass 1 computes and keeps the increment of every chunk, pass 2 adds up the segments, pass 3 emits
// the outputs. Both ways do the same additions in the same order: the segments depend on the
// problem alone, and so do the bits.
#pragma once

#include <algorithm>
#include <vector>

#include "harness/core/parallel.h"
#include "harness/core/tensor.h"
#include "methods/engines/chunk_product.h"

namespace subquad::engine {

class ScanSchedule {
 public:
  ScanSchedule() = default;
  // `tokens` of every head in chunks of `chunk`; state_floats is a multiple of kLanes.
  ScanSchedule(Index heads, Index tokens, Index chunk, Index state_floats)
      : heads_(heads),
        chunks_((tokens + chunk - 1) / chunk),
        segment_(segment_chunks(tokens, chunk)),
        state_floats_(state_floats),
        totals_(heads * state_floats) {
    grow();
  }

  // Chunks of a segment: at least 512 tokens, at most 64 segments.
  static Index segment_chunks(Index tokens, Index chunk) {
    return (std::max<Index>(512, (tokens + 63) / 64) + chunk - 1) / chunk;
  }

  // The state of a head in double, [state_floats]: set it before run(); afterwards it is the state
  // behind the last chunk.
  double* total(Index head) { return totals_.data() + head * state_floats_; }
  const double* total(Index head) const { return totals_.data() + head * state_floats_; }
  void set_total(Index head, const double* from) { std::copy_n(from, state_floats_, total(head)); }
  // The totals in float32; makes its memory at the first call.
  const float* rounded(Index head) const { return rounded_.data() + head * state_floats_; }
  void round_totals() {
    if (rounded_.size() == 0) rounded_ = AlignedArray<float>(totals_.size());
    round_total(totals_.data(), rounded_.data(), totals_.size());
  }
  void clear_totals() { std::fill_n(totals_.data(), totals_.size(), 0.0); }

  // Sweep has
  //   load(Index head, Index c, int thread)       operands of chunk c
  //   emit(Index head, Index c, const float* state, int thread, Ahead* soon)     after load
  //   increment(Index head, Index c, int thread, bool alone, auto&& keep)        after load;
  //                                               calls keep(offset, Vec)
  //   float factor(Index head, Index c)
  // Only one of emit and increment is called for a chunk where emit gets `soon`, what it should ask
  // for besides its own next chunk, or increment gets `alone`.
  template <class Sweep>
  void run(Sweep& sweep) {
    grow();
    if (!spread(heads_, segments())) {
      parallel_for(heads_, [&](Index head, int thread) { run_head(sweep, head, thread); });
      return;
    }
    const Index count = window(heads_);
    for (Index first = 0; first < segments(); first += count)
      run_window(sweep, first, std::min(count, segments() - first));
  }

  // Bytes that are allocated with the present thread count; `rounded`: round_totals() is called.
  static double bytes(Index heads, Index tokens, Index chunk, Index state_floats, bool rounded) {
    const Index segment = segment_chunks(tokens, chunk);
    const Index segments = (tokens + segment * chunk - 1) / (segment * chunk);
    Index states = 2 * thread_count() + (rounded ? 3 : 2) * heads;
    if (spread(heads, segments)) states += heads * window(heads) * (segment + 2);
    return 4.0 * static_cast<double>(states) * static_cast<double>(state_floats);
  }

 private:
  Index segments() const { return (chunks_ + segment_ - 1) / segment_; }
  // Several heads per thread balance themselves.
  static bool spread(Index heads, Index segments) {
    const Index threads = thread_count();
    return threads > 1 && segments > 1 && heads % threads != 0 && heads < 4 * threads;
  }
  // Segments of a head that are under way at once.
  static Index window(Index heads) {
    return std::max<Index>(1, (2 * static_cast<Index>(thread_count()) + heads - 1) / heads);
  }
  void grow() {
    const Index threads = thread_count();
    if (running_.size() < 2 * threads * state_floats_)
      running_ = AlignedArray<float>(2 * threads * state_floats_);
    if (!spread(heads_, segments())) return;
    const Index size = heads_ * window(heads_) * (segment_ + 2) * state_floats_;
    if (kept_.size() < size) kept_ = AlignedArray<float>(size);
  }
  float* running(int thread) { return running_.data() + 2 * thread * state_floats_; }
  // Of segment s of a window: increments of its chunks, its own sum, the state before it.
  float* kept(Index head, Index s, Index slot) {
    return kept_.data() + ((head * window(heads_) + s) * (segment_ + 2) + slot) * state_floats_;
  }

  static Vec advance(float factor, const float* state, Vec increment) {
    return factor * load(state) + increment;
  }
  static void add_to_total(double* total, double factor, const float* sum, Index size) {
    for (Index e = 0; e < size; ++e) total[e] = factor * total[e] + static_cast<double>(sum[e]);
  }
  static void round_total(const double* total, float* state, Index size) {
    for (Index e = 0; e < size; ++e) state[e] = static_cast<float>(total[e]);
  }

  template <class Sweep>
  void run_head(Sweep& sweep, Index head, int thread) {
    float* const state = running(thread);
    float* const own = state + state_floats_;
    for (Index first = 0; first < chunks_; first += segment_) {
      round_total(total(head), state, state_floats_);
      std::fill_n(own, state_floats_, 0.0f);
      double decay = 1;
      for (Index c = first; c < std::min(first + segment_, chunks_); ++c) {
        sweep.load(head, c, thread);
        sweep.emit(head, c, state, thread, nullptr);
        const float factor = sweep.factor(head, c);
        sweep.increment(head, c, thread, false, [&](Index at, Vec increment) {
          store(state + at, advance(factor, state + at, increment));
          store(own + at, advance(factor, own + at, increment));
        });
        decay *= static_cast<double>(factor);
      }
      add_to_total(total(head), decay, own, state_floats_);
    }
  }

  template <class Sweep>
  void run_window(Sweep& sweep, Index first_segment, Index count) {
    const auto chunks_of = [&](Index s, auto&& body) {
      const Index first = (first_segment + s) * segment_;
      for (Index c = first; c < std::min(first + segment_, chunks_); ++c) body(c, c - first);
    };
    parallel_for(heads_ * count, [&](Index item, int thread) {
      const Index head = item / count, s = item % count;
      float* const own = kept(head, s, segment_);
      std::fill_n(own, state_floats_, 0.0f);
      chunks_of(s, [&](Index c, Index slot) {
        sweep.load(head, c, thread);
        const float factor = sweep.factor(head, c);
        float* const keep = kept(head, s, slot);
        sweep.increment(head, c, thread, true, [&](Index at, Vec increment) {
          store(keep + at, increment);
          store(own + at, advance(factor, own + at, increment));
        });
      });
    });
    constexpr Index kParts = 8;  // of a state: its elements are independent
    const Index part = (state_floats_ + kParts - 1) / kParts;
    parallel_for(heads_ * kParts, [&](Index item, int) {
      const Index head = item / kParts, from = item % kParts * part;
      const Index size = std::min(part, state_floats_ - from);
      for (Index s = 0; s < count && size > 0; ++s) {
        double decay = 1;
        chunks_of(s, [&](Index c, Index) { decay *= static_cast<double>(sweep.factor(head, c)); });
        round_total(total(head) + from, kept(head, s, segment_ + 1) + from, size);
        add_to_total(total(head) + from, decay, kept(head, s, segment_) + from, size);
      }
    });
    parallel_for(heads_ * count, [&](Index item, int thread) {
      const Index head = item / count, s = item % count;
      float* const state = kept(head, s, segment_ + 1);
      chunks_of(s, [&](Index c, Index slot) {
        sweep.load(head, c, thread);
        const float* const increment = kept(head, s, slot);
        Ahead soon;
        soon.add(increment, state_floats_);
        sweep.emit(head, c, state, thread, &soon);
        const float factor = sweep.factor(head, c);
        for (Index e = 0; e < state_floats_; e += kLanes)
          store(state + e, advance(factor, state + e, load(increment + e)));
      });
    });
  }

  Index heads_ = 0, chunks_ = 0, segment_ = 1, state_floats_ = 0;
  AlignedArray<double> totals_;  // [heads, state_floats]
  AlignedArray<float> rounded_;  // likewise, on request
  AlignedArray<float> running_;  // [threads, 2, state_floats]: the state, the segment's own sum
  AlignedArray<float> kept_;     // [heads, window, segment chunks + 2, state_floats]
};

// The sum of the increments of all chunks of every head, in the same three levels; no outputs.
class ScanTotals {
 public:
  ScanTotals() = default;
  ScanTotals(Index heads, Index tokens, Index chunk, Index state_floats)
      : heads_(heads),
        chunks_((tokens + chunk - 1) / chunk),
        segment_(ScanSchedule::segment_chunks(tokens, chunk)),
        state_floats_(state_floats),
        sums_(heads * segments() * state_floats),
        totals_(heads * state_floats),
        rounded_(heads * state_floats) {}

  // Sweep as above; emit is not called.
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
        sweep.increment(head, c, thread, true, [&](Index at, Vec increment) {
          store(own + at, factor * load(own + at) + increment);
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
    const Index segment = ScanSchedule::segment_chunks(tokens, chunk) * chunk;
    return 4.0 * static_cast<double>(heads * ((tokens + segment - 1) / segment + 3)) *
           static_cast<double>(state_floats);
  }

 private:
  Index segments() const { return (chunks_ + segment_ - 1) / segment_; }

  Index heads_ = 0, chunks_ = 0, segment_ = 1, state_floats_ = 0;
  AlignedArray<float> sums_;     // [heads, segments, state_floats]
  AlignedArray<double> totals_;  // [heads, state_floats]
  AlignedArray<float> rounded_;  // likewise
};

}  // namespace subquad::engine
