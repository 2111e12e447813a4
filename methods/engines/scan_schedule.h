// Order and parallelism of a scan over chunks of tokens:
//
//   for every head, for c = 0, 1, ..: emit(c, state);  state = factor(c) state + increment(c)
//
// Chunks come in groups. The increments of a group are computed first, so that its sums stay in
// registers from chunk to chunk and the state is read and written once a chunk, and the sum that
// precision needs once a group.
//
// Precision. A state is summed in three levels: inside a group by the product, inside a segment in
// float32, across segments in double. So a sum over 65,536 tokens carries the rounding of a few
// dozen additions, whatever the inputs are.
//
// Parallelism. Where heads keep the threads busy, one thread takes a whole head and nothing is
// computed twice. Otherwise the threads take one segment each, again and again. The first of them
// knows what comes before its segment, and goes straight through it. The others meanwhile emit the
// segment before, then compute and keep the increments of their next one; what they keep stays in
// their own caches, only sums travel. All but the first begin with two groups of the segment after
// that before they ask for the others' sums, unless a sweep must open it first: so they need not
// wait for a thread that is a little late. A kept increment costs more than one that is used at
// once, hence segments that are planned (scan_segments.h). Either way the additions are the same in
// the same order: the segments depend on the problem alone, and so do the bits.
#pragma once

#include <algorithm>
#include <type_traits>

#include "harness/core/parallel.h"
#include "harness/core/tensor.h"
#include "methods/engines/chunk_product.h"
#include "methods/engines/scan_segments.h"
#include "methods/engines/team_posts.h"

namespace subquad::engine {

enum class ScanOrder { ascending, descending };

class ScanSchedule {
 public:
  ScanSchedule() = default;
  // `tokens` of every head in chunks of `chunk`, of which `group` make a group; state_floats is a
  // multiple of kLanes.
  ScanSchedule(Index heads, Index tokens, Index chunk, Index group, Index state_floats)
      : heads_(heads),
        chunks_((tokens + chunk - 1) / chunk),
        group_(group),
        groups_((chunks_ + group - 1) / group),
        segments_(groups_, chunk * group),
        widest_(segments_.widest()),
        state_floats_(state_floats),
        totals_(heads * state_floats) {
    SUBQUAD_CHECK(group <= kMaxGroup, "{} chunks in a group, at most {}", group, kMaxGroup);
    grow();
  }

  static constexpr Index kMaxGroup = 4;

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
  //   load(Index head, Index g, int thread)       operands of group g
  //   increment(Index head, Index g, Index next, int thread, const float* factors, auto&& keep)
  //                                               after load; calls keep(how many chunks of the
  //                                               group came before, offset into the state)(place
  //                                               behind it, Vec sum since the group's first);
  //                                               factors of the chunks, null where all are one
  //   emit(Index head, Index c, const float* state, int thread, Ahead* soon)
  //                                               chunk c, after its group's load
  //   float factor(Index head, Index c)
  // and may have
  //   open(Index head, Index segment, Index then, int thread)
  //                                               before anything else of the segment
  //   emit_sum(Index head, Index c, Index next, const float* state, const float* more, int thread,
  //            Ahead* soon)                       emit from state + more, or the state alone where
  //                                               that is null: saves forming it where all factors
  //                                               are one
  // increment and emit_sum may ask for the operands of group `next`, which this thread loads after
  // g
  // (-1: none), emit with `soon` for what the next chunk reads and writes; `then` is the segment
  // that this thread opens next (-1: none). Segments, their groups and chunks come in `order`, and
  // are the same in both. `states` [heads, segments(), state_floats], unless it is null, receives
  // the state in front of every segment.
  template <class Sweep>
  void run(Sweep& sweep, ScanOrder order = ScanOrder::ascending, float* states = nullptr) {
    grow();
    if (omp_in_parallel() || !spread(heads_, segments_.count())) {
      parallel_for(heads_,
                   [&](Index head, int thread) { run_head(sweep, head, order, states, thread); });
      return;
    }
    run_team(sweep, order, states);
  }
  // Runs another sweep over one segment, ascending, from the state that fill(state) writes; leaves
  // the totals alone. Only inside the open of a sweep of this schedule: it overwrites the running
  // states, which are set after open.
  template <class Sweep, class Fill>
  void run_alone(Sweep& sweep, Index head, Index segment, Index then, int thread, Fill&& fill) {
    fill(running(thread, 1));
    run_segment(sweep, head, segment, then, ScanOrder::ascending, nullptr, thread);
  }
  Index segments() const { return segments_.count(); }

  // Bytes that are allocated with the present thread count; `rounded`: round_totals() is called.
  static double bytes(Index heads, Index tokens, Index chunk, Index group, Index state_floats,
                      bool rounded) {
    const Index size = chunk * group, threads = thread_count();
    const ScanSegments segments((tokens + size - 1) / size, size);
    Index states = (group + 2) * threads + (rounded ? 3 : 2) * heads;
    Index posts = 0;
    if (spread(heads, segments.count())) {
      states += (kSums + 2) * threads + (threads - 1) * (segments.widest() + kAhead) * group;
      posts = threads * (kSums * 8 + TeamPosts::kBytes);
    }
    return 4.0 * static_cast<double>(states) * static_cast<double>(state_floats) +
           static_cast<double>(posts);
  }

 private:
  static constexpr Index kAhead = ScanSegments::kAhead;
  static constexpr Index kSums = 3;  // turns; see sum()

  // Several heads per thread balance themselves.
  static bool spread(Index heads, Index segments) {
    const Index threads = thread_count();
    return threads > 1 && segments > 1 && heads % threads != 0 && heads < 4 * threads;
  }
  void grow() {
    const Index threads = thread_count();
    const auto hold = [](auto& array, Index size) {
      using Array = std::remove_reference_t<decltype(array)>;
      if (array.size() < size) array = Array(size);
    };
    hold(running_, (group_ + 2) * threads * state_floats_);
    if (!spread(heads_, segments_.count())) return;
    hold(kept_, (threads - 1) * (widest_ + kAhead) * group_ * state_floats_);
    hold(sums_, kSums * threads * state_floats_);
    hold(decays_, kSums * threads);
    hold(before_, threads * state_floats_);
    if (posts_.threads() < threads) posts_ = TeamPosts(threads);
  }
  // Of a thread: the segment's own sum, and group_ + 1 states.
  float* running(int thread, Index slot) {
    return running_.data() + ((group_ + 2) * thread + slot) * state_floats_;
  }
  struct Member {
    Index thread, threads;
    Index ring;  // groups of which it keeps the increments: those of a segment and kAhead
    int worker() const { return static_cast<int>(thread); }
  };
  // Of a member but the first: the increments of the group at a place of its ring. The ring is as
  // short as can be, for all of it passes through the thread's cache again and again.
  float* kept(const Member& m, Index place) {
    return kept_.data() +
           ((m.thread - 1) * (widest_ + kAhead) + place % m.ring) * group_ * state_floats_;
  }
  // The sum of a thread's segment, of three turns: others may still read the last one, and the next
  // one may have begun.
  float* sum(Index thread, Index turn) {
    return sums_.data() + (kSums * thread + turn % kSums) * state_floats_;
  }
  double& decay(Index thread, Index turn) { return decays_[kSums * thread + turn % kSums]; }

  // A range of groups or chunks in the order of a scan.
  struct Walk {
    Index first, count;
    bool down;
    Index at(Index i) const { return down ? first + count - 1 - i : first + i; }
    Index at_or_none(Index i) const { return i < count ? at(i) : -1; }
    Walk part(Index from, Index to) const {
      return {down ? first + count - to : first + from, to - from, down};
    }
  };
  Walk groups_of(Index segment, ScanOrder order) const {
    if (segment < 0) return {0, 0, false};
    const Index first = segments_.first(segment);
    return {first, segments_.end(segment) - first, order == ScanOrder::descending};
  }
  Walk chunks_of(Index g, bool down) const {
    const Index first = g * group_;
    return {first, std::min(group_, chunks_ - first), down};
  }

  // Factors of the chunks of a group, each alone and with those before it.
  struct GroupFactors {
    Index count = 0;
    bool any = false;  // is not one
    float one[kMaxGroup], all[kMaxGroup];
    const float* data() const { return any ? one : nullptr; }
    float whole() const { return all[count - 1]; }
  };
  template <class Sweep>
  static GroupFactors factors(Sweep& sweep, Index head, const Walk& chunks) {
    GroupFactors f;
    float all = 1;
    for (Index i = 0; i < chunks.count; ++i) {
      const float factor = sweep.factor(head, chunks.at(i));
      f.any = f.any || factor != 1.0f;
      all *= factor;
      f.one[f.count] = factor;
      f.all[f.count++] = all;
    }
    return f;
  }
  template <class Sweep>
  static void open(Sweep& sweep, Index head, Index segment, Index then, int thread) {
    if constexpr (requires { &Sweep::open; }) sweep.open(head, segment, then, thread);
  }
  // The group behind place i of a segment, or the first one of segment `then`.
  Index next_group(const Walk& groups, Index i, Index then, ScanOrder order) const {
    if (i + 1 < groups.count) return groups.at(i + 1);
    return then < 0 ? -1 : groups_of(then, order).at_or_none(0);
  }
  void keep_state(const float* state, Index head, Index segment, float* states) const {
    if (states != nullptr)
      std::copy_n(state, state_floats_,
                  states + (head * segments_.count() + segment) * state_floats_);
  }

  // Without a factor an addition: it does not compete with the multiply-adds of the products.
  template <bool SCALED = true>
  static Vec advance(float factor, const float* state, Vec increment) {
    return SCALED ? factor * load(state) + increment : load(state) + increment;
  }
  // `before` receives what the total was, unless it is null.
  static void add_to_total(double* total, double factor, const float* sum, Index size,
                           float* before = nullptr) {
    if (before != nullptr) {
      for (Index e = 0; e < size; ++e) {
        before[e] = static_cast<float>(total[e]);
        total[e] = factor * total[e] + static_cast<double>(sum[e]);
      }
      return;
    }
    for (Index e = 0; e < size; ++e) total[e] = factor * total[e] + static_cast<double>(sum[e]);
  }
  static void round_total(const double* total, float* state, Index size) {
    for (Index e = 0; e < size; ++e) state[e] = static_cast<float>(total[e]);
  }

  template <class Sweep>
  void run_head(Sweep& sweep, Index head, ScanOrder order, float* states, int thread) {
    float* const own = running(thread, 0);
    const Walk segments{0, segments_.count(), order == ScanOrder::descending};
    for (Index i = 0; i < segments.count; ++i) {
      const Index segment = segments.at(i);
      const Index then = segments.at_or_none(i + 1);
      open(sweep, head, segment, then, thread);
      round_total(total(head), running(thread, 1), state_floats_);
      keep_state(running(thread, 1), head, segment, states);
      const double decay = run_segment(sweep, head, segment, then, order, own, thread);
      add_to_total(total(head), decay, own, state_floats_);
    }
  }

  // Emits a segment from the state before it, which lies in running(thread, 1); own, unless it is
  // null, = its own sum. Returns its factor.
  template <class Sweep>
  double run_segment(Sweep& sweep, Index head, Index segment, Index then, ScanOrder order,
                     float* own, int thread) {
    float* state = running(thread, 1);
    float* next = running(thread, group_ + 1);
    if (own != nullptr) std::fill_n(own, state_floats_, 0.0f);
    double decay = 1;
    const Walk groups = groups_of(segment, order);
    for (Index i = 0; i < groups.count; ++i) {
      const Index g = groups.at(i);
      const Walk chunks = chunks_of(g, groups.down);
      const GroupFactors f = factors(sweep, head, chunks);
      float* after[kMaxGroup];  // the state behind each chunk
      for (Index s = 0; s < f.count; ++s)
        after[s] = s + 1 == f.count ? next : running(thread, 2 + s);
      sweep.load(head, g, thread);
      const auto increment = [&](auto scaled) {
        constexpr bool kScaled = decltype(scaled)::value;
        sweep.increment(head, g, next_group(groups, i, then, order), thread, f.data(),
                        [&](Index s, Index offset) {
                          float* const total =
                              own != nullptr && s + 1 == f.count ? own + offset : nullptr;
                          return [factor = f.all[s], from = state + offset, to = after[s] + offset,
                                  total](Index at, Vec sum) {
                            store(to + at, advance<kScaled>(factor, from + at, sum));
                            if (total != nullptr)
                              store(total + at, advance<kScaled>(factor, total + at, sum));
                          };
                        });
      };
      f.any ? increment(std::true_type{}) : increment(std::false_type{});
      for (Index s = 0; s < f.count; ++s) {
        Ahead soon;
        sweep.emit(head, chunks.at(s), s == 0 ? state : after[s - 1], thread, &soon);
      }
      std::swap(state, next);
      decay *= static_cast<double>(f.whole());
    }
    return decay;
  }

  template <class Sweep>
  void run_team(Sweep& sweep, ScanOrder order, float* states) {
    posts_.clear();
#pragma omp parallel
    {
      const Index threads = omp_get_num_threads();
      const Member member{omp_get_thread_num(), threads, segments_.widest_kept(threads) + kAhead};
      Index turn = 0;
      for (Index head = 0; head < heads_; ++head)
        turn = run_member(sweep, head, order, states, member, turn);
    }
  }

  // What one thread of a team does for a head; returns the turn behind it. Sweeps do not throw, nor
  // does this.
  template <class Sweep>
  Index run_member(Sweep& sweep, Index head, ScanOrder order, float* states, const Member& member,
                   Index turn) noexcept {
    constexpr bool kOpens = requires { &Sweep::open; };
    const Index thread = member.thread, threads = member.threads;
    const int worker = member.worker();
    float* const state = running(worker, 1);
    double* const before = before_.data() + thread * state_floats_;
    std::copy_n(total(head), state_floats_, before);
    const Walk segments{0, segments_.count(), order == ScanOrder::descending};
    Index place = 0;  // in the ring, of the segment's first group
    Index begun = 0;  // groups of the segment that are kept already
    for (Index window = 0; window < segments.count; window += threads, ++turn) {
      const Index at = window + thread;
      const Index segment = segments.at_or_none(at), then = segments.at_or_none(at + threads);
      const Walk groups = groups_of(segment, order), later = groups_of(then, order);
      // Nothing of a segment comes before its open; the first thread keeps nothing.
      const Index ahead = kOpens || thread == 0 ? 0 : std::min(kAhead, later.count);
      if (segment >= 0) {
        open(sweep, head, segment, then, worker);
        if (thread == 0) {  // what comes before it is known
          if (window == 0 || kOpens) round_total(before, state, state_floats_);
          keep_state(state, head, segment, states);
          decay(thread, turn) =
              run_segment(sweep, head, segment, then, order, sum(thread, turn), worker);
        } else {
          if (begun == 0) begin_sum(thread, turn);
          sum_groups(sweep, head, groups.part(begun, groups.count), place + begun,
                     (ahead > 0 ? later : groups).at(0), turn, member);
        }
      }
      posts_.post(thread, turn + 1);
      if (ahead > 0) {
        begin_sum(thread, turn + 1);
        sum_groups(sweep, head, later.part(0, ahead), place + groups.count, groups.at(0), turn + 1,
                   member);
      }
      posts_.wait(threads, turn + 1);
      add_sums(before, state, thread, std::min(threads, segments.count - window), turn);
      if (segment >= 0 && thread > 0) {
        keep_state(state, head, segment, states);
        emit_kept(sweep, head, groups, place, later.at_or_none(ahead), state, member);
        place += groups.count;
      }
      begun = ahead;
    }
    if (thread == 0) std::copy_n(before, state_floats_, total(head));
    return turn;
  }

  // Adds the sums of a turn, which every thread does for itself. `state` receives, in float32, what
  // is in front of the thread's own segment; for thread 0 what is behind all of the turn, which is
  // in front of its next one.
  void add_sums(double* total, float* state, Index thread, Index members, Index turn) {
    constexpr Index kBlock = 512;  // stays in L1
    for (Index e = 0; e < state_floats_; e += kBlock) {
      const Index size = std::min(kBlock, state_floats_ - e);
      for (Index s = 0; s < members; ++s)
        add_to_total(total + e, decay(s, turn), sum(s, turn) + e, size,
                     thread > 0 && s == thread ? state + e : nullptr);
      if (thread == 0) round_total(total + e, state + e, size);
    }
  }

  void begin_sum(Index thread, Index turn) {
    std::fill_n(sum(thread, turn), state_floats_, 0.0f);
    decay(thread, turn) = 1;
  }
  // Keeps the increments of groups from `place` of the ring on, and adds them to this thread's sum
  // of the turn; `after` is the group that it loads next.
  template <class Sweep>
  void sum_groups(Sweep& sweep, Index head, const Walk& groups, Index place, Index after,
                  Index turn, const Member& member) {
    const int thread = member.worker();
    float* const own = sum(thread, turn);
    double factor_of_all = decay(thread, turn);
    for (Index i = 0; i < groups.count; ++i) {
      const Index g = groups.at(i);
      const GroupFactors f = factors(sweep, head, chunks_of(g, groups.down));
      float* const keep = kept(member, place + i);
      sweep.load(head, g, thread);
      sweep.increment(head, g, i + 1 < groups.count ? groups.at(i + 1) : after, thread, f.data(),
                      [&](Index c, Index offset) {
                        float* const sum_of_all = c + 1 == f.count ? own + offset : nullptr;
                        return [factor = f.all[c], to = keep + c * state_floats_ + offset,
                                sum_of_all](Index at, Vec sum) {
                          store(to + at, sum);
                          if (sum_of_all != nullptr)
                            store(sum_of_all + at, advance(factor, sum_of_all + at, sum));
                        };
                      });
      factor_of_all *= static_cast<double>(f.whole());
    }
    decay(thread, turn) = factor_of_all;
  }

  // Emits a segment whose increments were kept from `place` on, from the state before it; `after`
  // as above, or -1.
  template <class Sweep>
  void emit_kept(Sweep& sweep, Index head, const Walk& groups, Index place, Index after,
                 float* state, const Member& member) {
    const int thread = member.worker();
    float* const inside = running(thread, 2);
    for (Index i = 0; i < groups.count; ++i) {
      const Walk chunks = chunks_of(groups.at(i), groups.down);
      const GroupFactors f = factors(sweep, head, chunks);
      sweep.load(head, groups.at(i), thread);
      if constexpr (requires { &Sweep::emit_sum; }) {
        if (!f.any) {
          const float* increment = nullptr;
          for (Index c = 0; c < f.count; ++c) {
            Ahead soon;
            sweep.emit_sum(head, chunks.at(c), i + 1 < groups.count ? groups.at(i + 1) : after,
                           state, increment, thread, &soon);
            increment = kept(member, place + i) + c * state_floats_;
          }
          for (Index e = 0; e < state_floats_; e += kLanes)
            store(state + e, advance<false>(1, state + e, load(increment + e)));
          continue;
        }
      }
      for (Index c = 0; c < f.count; ++c) {
        const float* const increment = kept(member, place + i) + c * state_floats_;
        Ahead soon;
        sweep.emit(head, chunks.at(c), c == 0 ? state : inside, thread, &soon);
        float* const to = c + 1 == f.count ? state : inside;
        for (Index e = 0; e < state_floats_; e += kLanes)
          store(to + e, advance(f.all[c], state + e, load(increment + e)));
      }
    }
  }

  Index heads_ = 0, chunks_ = 0, group_ = 1, groups_ = 0;
  ScanSegments segments_;
  Index widest_ = 0;  // groups
  Index state_floats_ = 0;
  AlignedArray<double> totals_;  // [heads, state_floats]
  AlignedArray<float> rounded_;  // likewise, on request
  AlignedArray<float> running_;  // [threads, group + 2, state_floats]
  AlignedArray<float> kept_;     // [threads - 1, widest + kAhead, group, state_floats]
  AlignedArray<float> sums_;     // [threads, kSums, state_floats]
  AlignedArray<double> decays_;  // [threads, kSums]: factors of those segments
  AlignedArray<double> before_;  // [threads, state_floats]: totals, of each thread of a team
  TeamPosts posts_;              // turns whose sums are there
};

}  // namespace subquad::engine
