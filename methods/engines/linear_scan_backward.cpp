// Backward of LinearScan. With g_i = dout_i / norm_i and e_i = -(dout_i . out_i) / norm_i, and with
// one more column, v+ = [v, 1] and g+ = [g, e] (Katharopoulos et al. 2020, equations 13-15, and the
// same for the denominator):
//   dphi(q_i) = sum_{j <= i} (g+_i . v+_j) phi(k_j)
//   dphi(k_j) = sum_{i >= j} (g+_i . v+_j) phi(q_i)       dv_j = sum_{i >= j} (phi(q_i).phi(k_j))
//   g_i
// The first is the forward scan with g+, v+, phi(k) in the places of phi(q), phi(k), v, from the
// states that forward has left. The other two share one state, R = sum g+ phi(q)^T, and run
// backward in time.
//
// Causal: segment by segment, the last one first. What a segment's pass for dq has made (features,
// gradients, their products) is kept for its pass for dk and dv.

#include <cmath>

#include "methods/engines/linear_scan_work.h"

namespace subquad {

using engine::Factors;
using engine::Local;
using engine::NextTo;

// State sum v+ phi(k)^T [plus, wide_f]; chunks of the keys; emits dq.
struct LinearScan::QueryGradient {
  LinearScan& scan;
  const LinearScanCall& call;
  ScanRange range;
  TensorView dq;

  // First row of group g, of chunk c in the work space.
  Index group_row(Index g) const { return g % scan.sizes_.near * range.rows(); }
  Index row(Index c) const { return group_row(c / range.group) + range.inside(c); }

  float factor(Index bh, Index c) const {
    const Decay d = scan.decay_of(bh);
    return d ? d.up[range.count(c)] : 1.0f;
  }

  void load(Index bh, Index g, int thread) {
    const Sizes& s = scan.sizes_;
    const Index first = range.group_first(g), count = range.group_count(g), to = group_row(g);
    const Work w = scan.work(thread);
    call.keys(bh, first, count, range.rows(), s.wide_f, w.k + to * s.wide_f, w.scratch);
    call.load_values(range, bh, g, s.wide_v, w.v);
  }

  template <class Keep>
  void increment(Index bh, Index g, Index next, int thread, const float* factors, Keep&& keep) {
    const Sizes& s = scan.sizes_;
    const Work w = scan.work(thread);
    const engine::ChunkRun run{range.group_count(g), range.chunk, false, factors};
    const float* v = call.values_of(range, bh, g * range.group, s.wide_v, w.v);
    if (const Decay d = scan.decay_of(bh)) {
      scale_rows(v, run, s.wide_v, d.up, true, w.scaled);
      v = w.scaled;
    }
    const Problem& p = call.problem;
    engine::Ahead ahead;
    if (next >= 0) call.request_keys(bh, range.group_first(next), range.group_count(next), &ahead);
    const float* const k = w.k + group_row(g) * s.wide_f;
    engine::chunk_increment(v, s.wide_v, p.d_v, k, s.wide_f, s.wide_f, run, ahead, keep);
    if (call.normalize) sum_rows(k, run, s.wide_f, p.d_v * s.wide_f, keep);
  }

  // Asks for what emit reads and writes, from query `first` on.
  void request_queries(Index bh, Index first, Index count, engine::Ahead* ahead) const {
    const Problem& p = call.problem;
    const Index rows = std::min(count, p.n - first);
    ahead->add(call.rows(call.in.q, bh, first), rows * p.d_k);
    ahead->add(call.rows(call.out, bh, first), rows * p.d_v);
    ahead->add(call.rows(call.dout, bh, first), rows * p.d_v);
    ahead->add(dq.data() + (bh * p.n + first) * p.d_k, rows * p.d_k);
  }

  void emit(Index bh, Index c, const float* state, int thread, engine::Ahead* soon) {
    const Sizes& s = scan.sizes_;
    const Problem& p = call.problem;
    const Work w = scan.work(thread);
    const Index first = c * s.chunk, count = std::min(s.chunk, p.n - first), at = row(c);
    float* const q = w.q + at * s.wide_f;
    float* const g = w.g + at * s.wide_plus;
    float* const dscores = w.dscores + at * s.chunk;
    call.queries(bh, first, count, s.chunk, s.wide_f, q, w.scratch);
    call.gradient(bh, first, count, s.chunk, s.wide_plus, g);
    engine::transpose(g, s.wide_plus, s.chunk, s.wide_plus, w.gt, s.chunk);
    const Decay d = scan.decay_of(bh);
    engine::chunk_scores(call.values_of(range, bh, c, s.wide_v, w.v), s.wide_v, w.gt, p.d_v,
                         s.chunk, dscores);
    engine::finish_scores(call.normalize ? w.gt + p.d_v * s.chunk : nullptr, s.chunk, dscores);
    if (d) engine::decay_scores(d.up, s.chunk, dscores);
    request_queries(bh, first + s.chunk, s.chunk, soon);
    engine::chunk_outputs<Local::up_to>(Factors{w.gt, NextTo{}, s.chunk}, s.plus, state, s.wide_f,
                                        d ? d.up + 1 : nullptr, Factors{dscores, NextTo{}, s.chunk},
                                        w.k + at * s.wide_f, s.wide_f, s.chunk, nullptr, w.tile,
                                        s.wide_f, *soon);
    pull_back(bh, first, count, q, w);
  }

  // The queries of w.q and w.g, all of which see all keys.
  void emit_whole(Index bh, Index first, Index count, const Work& w) const {
    const Sizes& s = scan.sizes_;
    engine::chunk_outputs<Local::none>(
        Factors{w.g, s.wide_plus, 1}, s.plus, scan.turned_.data() + bh * s.state_plus, s.wide_f,
        nullptr, Factors<>{}, nullptr, 0, s.sum_chunk, nullptr, w.tile, s.wide_f);
    pull_back(bh, first, count, w.q, w);
  }

  void pull_back(Index bh, Index first, Index count, const float* q, const Work& w) const {
    const Problem& p = call.problem;
    call.map.pull_back(FeatureMap::Side::query, bh, call.rows(call.in.q, bh, first), q, w.tile,
                       count, p.d_k, scan.sizes_.wide_f, dq.data() + (bh * p.n + first) * p.d_k,
                       w.scratch);
  }
};

// State sum g+ phi(q)^T [plus, wide_f]; chunks of the queries, the last one first when local; emits
// dk and dv.
struct LinearScan::KeyGradient {
  LinearScan& scan;
  const LinearScanCall& call;
  ScanRange range;  // of the queries
  bool local;
  Index keys_from;  // first key of chunk 0 of the keys
  Index keys_to;
  TensorView dk, dv;
  QueryGradient& query_gradient;
  const LinearScanSaved& saved;

  float factor(Index bh, Index c) const {
    const Decay d = scan.decay_of(bh);
    return d ? d.up[range.count(c)] : 1.0f;
  }

  // dq of the segment, which leaves its operands in the work space.
  void open(Index bh, Index segment, Index then, int thread) {
    const Sizes& s = scan.sizes_;
    scan.dk_scan_.run_alone(query_gradient, bh, segment, then, thread, [&](float* state) {
      scan.turn_state(saved.states.data() + (bh * s.segments + segment) * s.state, state);
    });
  }

  // Local: all is there from the pass for dq. Else emits dq of the group as well, for its operands
  // are there; a sum loads a group once.
  void load(Index bh, Index g, int thread) {
    if (local) return;
    const Sizes& s = scan.sizes_;
    const Work w = scan.work(thread);
    const Index first = range.group_first(g), count = range.group_count(g);
    call.queries(bh, first, count, range.rows(), s.wide_f, w.q, w.scratch);
    call.gradient(bh, first, count, range.rows(), s.wide_plus, w.g);
    query_gradient.emit_whole(bh, first, count, w);
  }

  template <class Keep>
  void increment(Index bh, Index g, Index next, int thread, const float* factors, Keep&& keep) {
    const Sizes& s = scan.sizes_;
    const Work w = scan.work(thread);
    const Index from = local ? query_gradient.group_row(g) : 0;
    const engine::ChunkRun run{range.group_count(g), range.chunk, local, factors};
    const float* gradients = w.g + from * s.wide_plus;
    if (const Decay d = scan.decay_of(bh)) {
      scale_rows(gradients, run, s.wide_plus, d.up, false, w.scaled);
      gradients = w.scaled;
    }
    engine::Ahead ahead;
    if (!local && next >= 0) {
      const Problem& p = call.problem;
      const Index first = range.group_first(next), rows = range.group_count(next);
      ahead.add(call.rows(call.in.q, bh, first), rows * p.d_k);
      ahead.add(call.rows(call.out, bh, first), rows * p.d_v);
      ahead.add(call.rows(call.dout, bh, first), rows * p.d_v);
    }
    engine::chunk_increment(gradients, s.wide_plus, s.plus, w.q + from * s.wide_f, s.wide_f,
                            s.wide_f, run, ahead, keep);
  }

  // Asks for what emit reads unless that is near, and what it writes, from key `first` on.
  void request_keys(Index bh, Index first, Index count, engine::Ahead* ahead) const {
    const Problem& p = call.problem;
    if (first < keys_from || first >= keys_to) return;
    const Index rows = std::min(count, keys_to - first), at = bh * p.n_kv + first;
    if (!local) ahead->add(call.in.k.data() + at * p.d_k, rows * p.d_k);
    ahead->add(call.in.v.data() + at * p.d_v, rows * p.d_v);
    ahead->add(dk.data() + at * p.d_k, rows * p.d_k);
    ahead->add(dv.data() + at * p.d_v, rows * p.d_v);
  }

  void emit(Index bh, Index c, const float* state, int thread, engine::Ahead* soon) {
    if (!local) return emit_whole(bh, c, state, thread, soon);
    const Sizes& s = scan.sizes_;
    const Problem& p = call.problem;
    const Work w = scan.work(thread);
    const Index first = keys_from + c * s.chunk, count = std::min(s.chunk, keys_to - first);
    const Index at = query_gradient.row(c);
    const float* const k = w.k + at * s.wide_f;
    const float* const q = w.q + at * s.wide_f;
    const float* const dscores = w.dscores + at * s.chunk;
    const Decay d = scan.decay_of(bh);
    const float* const decay = d ? d.down : nullptr;
    engine::transpose(k, s.wide_f, s.chunk, s.wide_f, w.kt, s.chunk);
    engine::chunk_scores_by_query(q, s.wide_f, w.kt, s.features, s.chunk, w.scores);
    if (d) engine::decay_scores_by_query(d.down, s.chunk, w.scores);
    request_keys(bh, first - s.chunk, s.chunk, soon);
    const float* const v = values(bh, first, count, s.chunk, w);
    const float* const ones = start(state, s.chunk, w);
    engine::chunk_outputs<Local::from>(Factors{v, s.wide_v, 1}, p.d_v, state, s.wide_f, decay,
                                       Factors{dscores, s.chunk, 1}, q, s.wide_f, s.chunk, nullptr,
                                       w.tile, s.wide_f, *soon, ones);
    pull_back(bh, first, count, k, w);
    from_state(state, s.chunk, decay, w);
    engine::chunk_outputs<Local::from>(Factors<>{}, 0, nullptr, s.wide_v, nullptr,
                                       Factors{w.scores, NextTo{}, s.chunk}, w.g + at * s.wide_plus,
                                       s.wide_plus, s.chunk, nullptr, w.tile, s.wide_v,
                                       engine::Nothing{}, w.tile);
    store_rows(w.tile, count, s.wide_v, p.d_v, dv.data() + (bh * p.n_kv + first) * p.d_v);
  }

  // Keys that all queries see, in chunks of sum_chunk.
  void emit_whole(Index bh, Index c, const float* state, int thread, engine::Ahead* soon) {
    const Sizes& s = scan.sizes_;
    const Problem& p = call.problem;
    const Work w = scan.work(thread);
    const Index chunk = s.sum_chunk, first = c * chunk, count = std::min(chunk, keys_to - first);
    call.keys(bh, first, count, chunk, s.wide_f, w.k, w.scratch);
    const float* const v = values(bh, first, count, chunk, w);
    // Keys before the first query: the state has decayed by their distance from it.
    const float* decay = nullptr;
    if (!scan.options_.decay.empty()) {
      const double base = scan.options_.decay[static_cast<std::size_t>(bh % p.heads)];
      for (Index j = 0; j < chunk; ++j)
        w.norm[j] = static_cast<float>(
            std::pow(base, static_cast<double>(std::max<Index>(keys_to - first - j, 0))));
      decay = w.norm;
    }
    request_keys(bh, first + chunk, chunk, soon);
    engine::chunk_outputs<Local::none>(Factors{v, s.wide_v, 1}, p.d_v, state, s.wide_f, decay,
                                       Factors<>{}, nullptr, 0, chunk, nullptr, w.tile, s.wide_f,
                                       *soon, start(state, chunk, w));
    pull_back(bh, first, count, w.k, w);
    engine::transpose(w.k, s.wide_f, chunk, s.wide_f, w.kt, chunk);
    from_state(state, chunk, decay, w);
    store_rows(w.tile, count, s.wide_v, p.d_v, dv.data() + (bh * p.n_kv + first) * p.d_v);
  }

  // Values of keys [first, first + count) -> rows [total, wide_v].
  const float* values(Index bh, Index first, Index count, Index total, const Work& w) const {
    const Index wide = scan.sizes_.wide_v;
    if (const float* const v = call.values_as_they_lie(bh, first, count, total, wide)) return v;
    call.values(bh, first, count, total, wide, w.v);
    return w.v;
  }

  // What the column of ones adds to dphi(k) of `chunk` keys, the state's last row, -> w.tile; null
  // without a normaliser.
  const float* start(const float* state, Index chunk, const Work& w) const {
    if (!call.normalize) return nullptr;
    const Index wide = scan.sizes_.wide_f;
    for (Index j = 0; j < chunk; ++j)
      std::copy_n(state + call.problem.d_v * wide, wide, w.tile + j * wide);
    return w.tile;
  }

  // What the state adds to dv of the `chunk` keys of w.kt, phi(k) times its transpose, which is not
  // formed -> w.tile [chunk, wide_v].
  void from_state(const float* state, Index chunk, const float* decay, const Work& w) const {
    const Sizes& s = scan.sizes_;
    const Index d_v = call.problem.d_v;
    constexpr int kRows = engine::kRegisters == 32 ? 16 : 8;
    Index row = 0;
    if (chunk < engine::kLargerFrom)
      engine::with_stride<engine::kWidth>(s.wide_f, [&](auto stride) {
        for (; row + kRows <= d_v; row += kRows)
          for (Index j = 0; j < chunk; j += kLanes)
            engine::product_block<kRows, 1, false>(state + row * stride, stride, 1, s.features,
                                                   w.kt + j, chunk, w.turned + row * chunk + j,
                                                   chunk);
      });
    engine::product<false>(state + row * s.wide_f, s.wide_f, 1, d_v - row, s.features, w.kt, chunk,
                           chunk, w.turned + row * chunk, chunk);
    engine::transpose(w.turned, chunk, s.wide_v, chunk, w.tile, s.wide_v);
    if (decay == nullptr) return;
    for (Index j = 0; j < chunk; ++j)
      for (Index x = 0; x < s.wide_v; x += kLanes) {
        float* const place = w.tile + j * s.wide_v + x;
        store(place, decay[j] * engine::load(place));
      }
  }

  void pull_back(Index bh, Index first, Index count, const float* k, const Work& w) const {
    const Index d = call.problem.d_k;
    float* const to = dk.data() + (bh * call.problem.n_kv + first) * d;
    call.map.pull_back(FeatureMap::Side::key, bh, call.rows(call.in.k, bh, first), k, w.tile, count,
                       d, scan.sizes_.wide_f, to, w.scratch);
    if (const std::uint8_t* real = call.mask(bh, first))
      for (Index j = 0; j < count; ++j)
        if (real[j] == 0) std::fill_n(to + j * d, d, 0.0f);
  }
};

void LinearScan::turn_state(const float* state, float* to) const {
  const Sizes& s = sizes_;
  std::fill_n(to, s.state_plus, 0.0f);
  const Index whole = s.features / kLanes * kLanes;
  engine::transpose(state, s.wide_v, whole, s.wide_v, to, s.wide_f);
  for (Index x = whole; x < s.features; ++x)
    for (Index v = 0; v < problem_.d_v; ++v) to[v * s.wide_f + x] = state[x * s.wide_v + v];
  if (options_.normalize)
    std::copy_n(state + s.features * s.wide_v, s.wide_f, to + problem_.d_v * s.wide_f);
}

void LinearScan::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                          const LinearScanSaved& saved, const Gradients& grads) {
  SUBQUAD_CHECK(gradients_, "backward without prepare for gradients");
  grow();
  map_->begin(problem_, in);
  const Sizes& s = sizes_;
  const LinearScanCall call{
      in, problem_, *map_, out, dout, saved.inverse_norm.data(), options_.normalize};
  const Index shared = shared_keys(problem_), n = problem_.n, n_kv = problem_.n_kv;

  QueryGradient dq{*this, call, {s.chunk, s.group, shared, n_kv}, grads.dq};
  // The keys that every query sees get their gradients from all queries at once.
  KeyGradient all{*this, call, {s.sum_chunk, 1, 0, n}, false, 0, shared, grads.dk, grads.dv,
                  dq,    saved};
  if (!problem_.causal) {
    parallel_for(head_count(), [&](Index bh, int) {
      turn_state(saved.states.data() + bh * s.state, turned_.data() + bh * s.state_plus);
    });
    dk_sum_.run(all);
    emit_all(all, s.sum_chunk, n_kv, [&](Index bh) { return dk_sum_.rounded(bh); });
    return;
  }
  dk_scan_.clear_totals();
  KeyGradient scan{*this, call, {s.chunk, s.group, 0, n}, true, shared, n_kv, grads.dk, grads.dv,
                   dq,    saved};
  dk_scan_.run(scan, engine::ScanOrder::descending);
  if (shared == 0) return;
  dk_scan_.round_totals();
  emit_all(all, s.sum_chunk, shared, [&](Index bh) { return dk_scan_.rounded(bh); });
}

}  // namespace subquad
