// Backward of LinearScan. With g_i = dout_i / norm_i and e_i = -(dout_i . out_i) / norm_i, and with
// one more column, v+ = [v, 1] and g+ = [g, e] (Katharopoulos et al. 2020, equations 13-15, and the
// same for the denominator):
//   dphi(q_i) = sum_{j <= i} (g+_i . v+_j) phi(k_j)
//   dphi(k_j) = sum_{i >= j} (g+_i . v+_j) phi(q_i)       dv_j = sum_{i >= j} (phi(q_i).phi(k_j))
//   g_i
// The first is the forward scan with g+, v+, phi(k) in the places of phi(q), phi(k), v. The other
// two share one state, R = sum g+ phi(q)^T, and run backward in time.

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
  bool local;
  TensorView dq;

  float factor(Index bh, Index c) const {
    const Decay d = scan.decay_of(bh);
    return d ? d.up[range.count(c)] : 1.0f;
  }

  void load(Index bh, Index g, int thread) {
    const Sizes& s = scan.sizes_;
    const Index first = range.group_first(g), count = range.group_count(g);
    const Work w = scan.work(thread);
    call.keys(bh, first, count, range.rows(), s.wide_f, w.k, w.scratch);
    call.values(bh, first, count, range.rows(), s.wide_plus, call.normalize, w.v);
  }

  template <class Keep>
  void increment(Index bh, Index g, int thread, const float* factors, Keep&& keep) {
    const Sizes& s = scan.sizes_;
    const Work w = scan.work(thread);
    const engine::ChunkRun run{range.group_count(g), range.chunk, false, factors};
    const float* v = w.v;
    if (const Decay d = scan.decay_of(bh)) {
      scale_rows(w.v, run, s.wide_plus, d.up, true, w.scaled);
      v = w.scaled;
    }
    const Problem& p = call.problem;
    const Index next = range.group_first(g + 1), rows = std::min(range.rows(), range.limit - next);
    engine::Ahead ahead;
    ahead.add(call.rows(call.in.k, bh, next), rows * p.d_k);
    ahead.add(call.rows(call.in.v, bh, next), rows * p.d_v);
    engine::chunk_increment(v, s.wide_plus, s.plus, w.k, s.wide_f, s.wide_f, run, ahead, keep);
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
    const Index first = c * s.chunk, count = std::min(s.chunk, p.n - first);
    call.gradient(bh, first, count, s.chunk, s.wide_plus, w.g);
    engine::transpose(w.g, s.wide_plus, s.chunk, s.wide_plus, w.gt, s.chunk);
    const Factors rows{w.gt, NextTo{}, s.chunk};
    const Factors weights{w.dscores, NextTo{}, s.chunk};
    const float* const v = w.v + range.inside(c) * s.wide_plus;
    const float* const k = w.k + range.inside(c) * s.wide_f;
    const auto write = [&](auto ahead) {
      if (local) {
        const Decay d = scan.decay_of(bh);
        engine::chunk_scores(v, s.wide_plus, w.gt, s.plus, s.chunk, w.dscores);
        if (d) engine::decay_scores(d.up, s.chunk, w.dscores);
        engine::chunk_outputs<Local::up_to>(rows, s.plus, state, s.wide_f, d ? d.up + 1 : nullptr,
                                            weights, k, s.wide_f, s.chunk, nullptr, w.tile,
                                            s.wide_f, ahead);
      } else {
        engine::chunk_outputs<Local::none>(rows, s.plus, state, s.wide_f, nullptr, weights, nullptr,
                                           0, s.chunk, nullptr, w.tile, s.wide_f, ahead);
      }
    };
    if (soon != nullptr) {
      request_queries(bh, first + s.chunk, s.chunk, soon);
      write(*soon);
    } else {
      write(engine::Nothing{});
    }
    call.map.pull_back(FeatureMap::Side::query, bh, call.rows(call.in.q, bh, first), nullptr,
                       w.tile, count, p.d_k, s.wide_f, dq.data() + (bh * p.n + first) * p.d_k,
                       w.scratch);
  }
};

// State sum g+ phi(q)^T [plus, wide_f]; chunks of the queries, the last one first when local; emits
// dk and dv.
struct LinearScan::KeyGradient {
  LinearScan& scan;
  const LinearScanCall& call;
  ScanRange range;
  bool local;
  Index chunks;     // of the queries
  Index keys_from;  // first key of chunk 0 of the keys
  Index keys_to;
  TensorView dk, dv;

  Index place(Index c) const { return local ? chunks - 1 - c : c; }
  float factor(Index bh, Index c) const {
    const Decay d = scan.decay_of(bh);
    return d ? d.up[range.count(place(c))] : 1.0f;
  }
  // The queries of a group: from its earliest chunk to the end of its latest.
  Index earliest(Index g) const {
    return local ? std::max<Index>(0, chunks - (g + 1) * range.group) : g;
  }
  Index group_count(Index g) const {
    const Index last = local ? chunks - 1 - g * range.group : g;
    return last < 0 ? 0 : range.first(last) + range.count(last) - range.first(earliest(g));
  }

  void load(Index bh, Index g, int thread) {
    const Sizes& s = scan.sizes_;
    const Index first = range.first(earliest(g)), count = group_count(g);
    const Work w = scan.work(thread);
    call.queries(bh, first, count, range.rows(), s.wide_f, w.q, w.scratch);
    call.gradient(bh, first, count, range.rows(), s.wide_plus, w.g);
  }

  template <class Keep>
  void increment(Index bh, Index group, int thread, const float* factors, Keep&& keep) {
    const Sizes& s = scan.sizes_;
    const Work w = scan.work(thread);
    const engine::ChunkRun run{group_count(group), range.chunk, local, factors};
    const float* g = w.g;
    if (const Decay d = scan.decay_of(bh)) {
      scale_rows(w.g, run, s.wide_plus, d.up, false, w.scaled);
      g = w.scaled;
    }
    const Problem& p = call.problem;
    engine::Ahead ahead;
    if (const Index next = range.first(earliest(group + 1)), rows = group_count(group + 1);
        next < range.limit && rows > 0) {
      ahead.add(call.rows(call.in.q, bh, next), rows * p.d_k);
      ahead.add(call.rows(call.out, bh, next), rows * p.d_v);
      ahead.add(call.rows(call.dout, bh, next), rows * p.d_v);
    }
    engine::chunk_increment(g, s.wide_plus, s.plus, w.q, s.wide_f, s.wide_f, run, ahead, keep);
  }

  // Asks for what emit reads and writes, from key `first` on.
  void request_keys(Index bh, Index first, Index count, engine::Ahead* ahead) const {
    const Problem& p = call.problem;
    const Index rows = first < keys_from ? 0 : std::min(count, keys_to - first);
    const Index at = bh * p.n_kv + first;
    ahead->add(call.in.k.data() + at * p.d_k, rows * p.d_k);
    ahead->add(call.in.v.data() + at * p.d_v, rows * p.d_v);
    ahead->add(dk.data() + at * p.d_k, rows * p.d_k);
    ahead->add(dv.data() + at * p.d_v, rows * p.d_v);
  }

  void emit(Index bh, Index c, const float* state, int thread, engine::Ahead* soon) {
    const Sizes& s = scan.sizes_;
    const Problem& p = call.problem;
    const Work w = scan.work(thread);
    const Index first = keys_from + place(c) * s.chunk, count = std::min(s.chunk, keys_to - first);
    call.keys(bh, first, count, s.chunk, s.wide_f, w.k, w.scratch);
    call.values(bh, first, count, s.chunk, s.wide_plus, call.normalize, w.v);
    const Factors v{w.v, s.wide_plus, 1};
    const Factors weights{w.scores, s.chunk, 1}, dweights{w.dscores, s.chunk, 1};
    float* const to_k = dk.data() + (bh * p.n_kv + first) * p.d_k;
    float* const to_v = dv.data() + (bh * p.n_kv + first) * p.d_v;
    // What the state adds to dv: phi(k) times its transpose, which is not formed.
    const auto from_state = [&](const float* decay) {
      engine::transpose(w.k, s.wide_f, s.chunk, s.wide_f, w.kt, s.chunk);
      constexpr int kRows = 8;
      Index row = 0;
      engine::with_stride<engine::kWidth>(s.wide_f, [&](auto stride) {
        for (; row + kRows <= p.d_v; row += kRows)
          for (Index j = 0; j < s.chunk; j += kLanes)
            engine::product_block<kRows, 1, false>(state + row * stride, stride, 1, s.features,
                                                   w.kt + j, s.chunk, w.turned + row * s.chunk + j,
                                                   s.chunk);
      });
      engine::product<false>(state + row * s.wide_f, s.wide_f, 1, p.d_v - row, s.features, w.kt,
                             s.chunk, s.chunk, w.turned + row * s.chunk, s.chunk);
      engine::transpose(w.turned, s.chunk, s.wide_v, s.chunk, w.tile, s.wide_v);
      if (decay == nullptr) return;
      for (Index j = 0; j < s.chunk; ++j)
        for (Index x = 0; x < s.wide_v; x += kLanes) {
          float* const place = w.tile + j * s.wide_v + x;
          store(place, decay[j] * engine::load(place));
        }
    };
    if (local) {
      const Decay d = scan.decay_of(bh);
      const Index inside = range.first(place(c)) - range.first(earliest(c / range.group));
      const float* const q = w.q + inside * s.wide_f;
      const float* const g = w.g + inside * s.wide_plus;
      engine::transpose(q, s.wide_f, s.chunk, s.wide_f, w.qt, s.chunk);
      engine::transpose(g, s.wide_plus, s.chunk, s.wide_plus, w.gt, s.chunk);
      engine::chunk_scores(w.k, s.wide_f, w.qt, s.features, s.chunk, w.scores);
      engine::chunk_scores(w.v, s.wide_plus, w.gt, s.plus, s.chunk, w.dscores);
      engine::clear_above_diagonal(w.scores, s.chunk);
      engine::clear_above_diagonal(w.dscores, s.chunk);
      if (d) {
        engine::decay_scores(d.up, s.chunk, w.scores);
        engine::decay_scores(d.up, s.chunk, w.dscores);
      }
      const float* const decay = d ? d.down : nullptr;
      const auto write = [&](auto ahead) {
        engine::chunk_outputs<Local::from>(v, s.plus, state, s.wide_f, decay, dweights, q, s.wide_f,
                                           s.chunk, nullptr, w.tile, s.wide_f, ahead);
      };
      if (soon != nullptr) {
        request_keys(bh, first - s.chunk, s.chunk, soon);
        write(*soon);
      } else {
        write(engine::Nothing{});
      }
      pull_back(bh, first, count, w, to_k);
      from_state(decay);
      engine::chunk_outputs<Local::from>(Factors<>{}, 0, nullptr, s.wide_v, nullptr, weights, g,
                                         s.wide_plus, s.chunk, nullptr, w.tile, s.wide_v,
                                         engine::Nothing{}, w.tile);
    } else {
      // Keys before the first query: the state has decayed by their distance from it.
      const float* decay = nullptr;
      if (!scan.options_.decay.empty()) {
        const double base = scan.options_.decay[static_cast<std::size_t>(bh % p.heads)];
        for (Index j = 0; j < s.chunk; ++j)
          w.norm[j] = static_cast<float>(
              std::pow(base, static_cast<double>(std::max<Index>(keys_to - first - j, 0))));
        decay = w.norm;
      }
      request_keys(bh, first + s.chunk, s.chunk, soon);
      engine::chunk_outputs<Local::none>(v, s.plus, state, s.wide_f, decay, dweights, nullptr, 0,
                                         s.chunk, nullptr, w.tile, s.wide_f, *soon);
      pull_back(bh, first, count, w, to_k);
      from_state(decay);
    }
    store_rows(w.tile, count, s.wide_v, p.d_v, to_v);
  }

  void pull_back(Index bh, Index first, Index count, const Work& w, float* to) const {
    const Index d = call.problem.d_k;
    call.map.pull_back(FeatureMap::Side::key, bh, call.rows(call.in.k, bh, first), w.k, w.tile,
                       count, d, scan.sizes_.wide_f, to, w.scratch);
    if (const std::uint8_t* real = call.mask(bh, first))
      for (Index j = 0; j < count; ++j)
        if (real[j] == 0) std::fill_n(to + j * d, d, 0.0f);
  }
};

void LinearScan::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                          const float* inverse_norm, const Gradients& grads) {
  SUBQUAD_CHECK(gradients_, "backward without prepare for gradients");
  grow();
  map_->begin(problem_, in);
  const Sizes& s = sizes_;
  const LinearScanCall call{in, problem_, *map_, out, dout, inverse_norm, options_.normalize};
  const Index shared = shared_keys(problem_), n = problem_.n, n_kv = problem_.n_kv;

  QueryGradient dq_sum{*this, call, {s.sum_chunk, 1, 0, shared}, false, grads.dq};
  if (shared > 0) dq_sum_.run(dq_sum);
  // The keys that every query sees get their gradients from all queries at once.
  KeyGradient dk_sum{*this, call, {s.sum_chunk, 1, 0, n}, false, 0, 0, shared, grads.dk, grads.dv};
  if (!problem_.causal) {
    emit_all(dq_sum, s.chunk, n, [&](Index bh) { return dq_sum_.rounded(bh); });
    dk_sum_.run(dk_sum);
    emit_all(dk_sum, s.chunk, n_kv, [&](Index bh) { return dk_sum_.rounded(bh); });
    return;
  }
  start(dq_scan_, dq_sum_, shared);
  QueryGradient dq_scan{*this, call, {s.chunk, s.group, shared, n_kv}, true, grads.dq};
  dq_scan_.run(dq_scan);
  dk_scan_.clear_totals();
  KeyGradient dk_scan{
      *this,    call,    {s.chunk, s.group, 0, n}, true, (n + s.chunk - 1) / s.chunk, shared, n_kv,
      grads.dk, grads.dv};
  dk_scan_.run(dk_scan);
  if (shared == 0) return;
  dk_scan_.round_totals();
  emit_all(dk_sum, s.chunk, shared, [&](Index bh) { return dk_scan_.rounded(bh); });
}

}  // namespace subquad
