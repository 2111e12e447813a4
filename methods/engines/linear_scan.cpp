#include "methods/engines/linear_scan.h"

#include <cmath>

#include "methods/engines/linear_scan_work.h"
#include "methods/engines/row_attention.h"

namespace subquad {

using engine::Factors;
using engine::Local;
using engine::NextTo;

namespace {

// Our choice: 16 tokens, the fewest that fill a vector, make the products inside a chunk cheap (a
// sixth of the work at d = 64), and groups of 64 amortise loading and storing the state. With
// larger states that costs more.
constexpr Index kChunk = 16, kLargeChunk = 64;
constexpr Index kLargeState = 64 * 96;  // floats; beyond it the state leaves a 32 KiB L1
constexpr Index kSumChunk = 64;         // tokens of a group

}  // namespace

// Numerator and normaliser from the state S = sum phi(k) v^T [features, wide_v], z = sum phi(k).
struct LinearScan::Outputs {
  LinearScan& scan;
  const LinearScanCall& call;
  ScanRange range;  // of the keys
  bool local;       // causal: chunk c of the queries meets chunk c of the keys
  float* out = nullptr;
  LinearScanSaved* saved = nullptr;

  void load(Index bh, Index g, int thread) {
    const Sizes& s = scan.sizes_;
    const Index first = range.group_first(g), count = range.group_count(g);
    const Work w = scan.work(thread);
    call.keys(bh, first, count, range.rows(), s.wide_f, w.k, w.scratch);
    call.load_values(range, bh, g, s.wide_v, w.v);
  }
  Decay decay(Index bh) const { return scan.decay_of(bh); }
  float factor(Index bh, Index c) const {
    const Decay d = decay(bh);
    return d ? d.up[range.count(c)] : 1.0f;
  }

  template <class Keep>
  void increment(Index bh, Index g, Index next, int thread, const float* factors, Keep&& keep) {
    const Sizes& s = scan.sizes_;
    const Work w = scan.work(thread);
    const engine::ChunkRun run{range.group_count(g), range.chunk, false, factors};
    const float* k = w.k;
    if (const Decay d = decay(bh)) {
      scale_rows(w.k, run, s.wide_f, d.up, true, w.scaled);
      k = w.scaled;
    }
    engine::Ahead ahead;
    if (next >= 0) call.request_keys(bh, range.group_first(next), range.group_count(next), &ahead);
    const float* const v = call.values_of(range, bh, g * range.group, s.wide_v, w.v);
    engine::chunk_increment(k, s.wide_f, s.features, v, s.wide_v, s.wide_v, run, ahead, keep);
    if (call.normalize) sum_rows(k, run, s.wide_f, s.features * s.wide_v, keep);
  }

  // Asks for queries and outputs from `first` on.
  void request_queries(Index bh, Index first, Index count, engine::Ahead* ahead) const {
    const Problem& p = call.problem;
    const Index rows = std::min(count, p.n - first);
    ahead->add(call.rows(call.in.q, bh, first), rows * p.d_k);
    ahead->add(out + (bh * p.n + first) * p.d_v, rows * p.d_v);
  }

  // One over the normaliser of `count` rows; zero for a row that sees no key where eps is zero.
  void invert_norm(Index bh, Index first, Index count, Index rows, float* norm) const {
    for (Index i = 0; i < rows; i += kLanes) {
      const Vec sum = engine::load(norm + i);
      engine::store(norm + i, sum == 0.0f ? Vec{} : 1.0f / sum);
    }
    if (saved != nullptr)
      std::copy_n(norm, count, saved->inverse_norm.data() + bh * call.problem.n + first);
  }

  void emit(Index bh, Index c, const float* state, int thread, engine::Ahead* soon) {
    if (!local) return emit_whole(bh, c, state, thread, soon);
    emit_from<false>(bh, c, state, nullptr, thread, soon);
  }
  // Asks for a part of the keys of the next group too, as increment does before emit.
  void emit_sum(Index bh, Index c, Index next, const float* state, const float* more, int thread,
                engine::Ahead* soon) {
    if (next >= 0) {
      const Index first = range.group_first(next) + range.inside(c);
      call.request_keys(bh, first, std::min(range.chunk, range.limit - first), soon);
    }
    more == nullptr ? emit_from<false>(bh, c, state, more, thread, soon)
                    : emit_from<true>(bh, c, state, more, thread, soon);
  }
  // From state + more where SUM, else from the state.
  template <bool SUM>
  [[gnu::always_inline]] void emit_from(Index bh, Index c, const float* state, const float* more,
                                        int thread, engine::Ahead* soon) {
    const Sizes& s = scan.sizes_;
    const Problem& p = call.problem;
    const Work w = scan.work(thread);
    const Index first = c * s.chunk, count = std::min(s.chunk, p.n - first);
    float* const to = out + (bh * p.n + first) * p.d_v;
    call.queries(bh, first, count, s.chunk, s.wide_f, w.q, w.scratch);
    engine::transpose(w.q, s.wide_f, s.chunk, s.wide_f, w.qt, s.chunk);
    const Decay d = decay(bh);
    const float* const keys = w.k + range.inside(c) * s.wide_f;
    engine::chunk_scores(keys, s.wide_f, w.qt, s.features, s.chunk, w.scores);
    if (d) engine::decay_scores(d.up, s.chunk, w.scores);
    if (call.normalize) {
      const float* z = state + s.features * s.wide_v;
      if constexpr (SUM) {
        const float* const more_z = more + s.features * s.wide_v;
        for (Index x = 0; x < s.wide_f; x += kLanes)
          store(w.tile + x, engine::load(z + x) + engine::load(more_z + x));
        z = w.tile;
      }
      engine::column_dots(z, w.qt, s.features, s.chunk, static_cast<float>(scan.options_.eps),
                          w.norm);
      engine::add_score_sums(w.scores, s.chunk, w.norm);
      invert_norm(bh, first, count, s.chunk, w.norm);
    }
    const bool direct = count == s.chunk && p.d_v == s.wide_v;
    float* const rows = direct ? to : w.tile;
    request_queries(bh, first + s.chunk, s.chunk, soon);
    const float* const v = call.values_of(range, bh, c, s.wide_v, w.v);
    const float* const scale = call.normalize ? w.norm : nullptr;
    if constexpr (SUM) {
      engine::chunk_outputs_of_sum(w.qt, s.features, state, more, s.wide_v, w.scores, v, s.wide_v,
                                   s.chunk, scale, rows, s.wide_v, *soon);
    } else {
      engine::chunk_outputs<Local::up_to>(
          Factors{w.qt, NextTo{}, s.chunk}, s.features, state, s.wide_v, d ? d.up + 1 : nullptr,
          Factors{w.scores, NextTo{}, s.chunk}, v, s.wide_v, s.chunk, scale, rows, s.wide_v, *soon);
    }
    if (!direct) store_rows(rows, count, s.wide_v, p.d_v, to);
  }

  // All keys are in the state: rows of queries meet it as they are, in chunks of sum_chunk.
  void emit_whole(Index bh, Index c, const float* state, int thread, engine::Ahead* soon) {
    const Sizes& s = scan.sizes_;
    const Problem& p = call.problem;
    const Work w = scan.work(thread);
    const Index chunk = s.sum_chunk, first = c * chunk, count = std::min(chunk, p.n - first);
    float* const to = out + (bh * p.n + first) * p.d_v;
    call.queries(bh, first, count, chunk, s.wide_f, w.q, w.scratch);
    if (call.normalize) {
      engine::RowQuery(state + s.features * s.wide_v, s.wide_f, w.qt)
          .score(engine::ContiguousRows{w.q, s.wide_f}, chunk, w.norm);
      for (Index i = 0; i < chunk; ++i) w.norm[i] += static_cast<float>(scan.options_.eps);
      invert_norm(bh, first, count, chunk, w.norm);
    }
    const bool direct = count == chunk && p.d_v == s.wide_v;
    float* const rows = direct ? to : w.tile;
    request_queries(bh, first + chunk, chunk, soon);
    engine::chunk_outputs<Local::none>(Factors{w.q, s.wide_f, 1}, s.features, state, s.wide_v,
                                       nullptr, Factors<>{}, nullptr, 0, chunk,
                                       call.normalize ? w.norm : nullptr, rows, s.wide_v, *soon);
    if (!direct) store_rows(rows, count, s.wide_v, p.d_v, to);
  }
};

LinearScan::Sizes LinearScan::sizes_of(const Problem& problem, const FeatureMap& map,
                                       const LinearScanOptions& options, bool gradients) {
  Sizes s;
  s.features = map.features(problem.d_k);
  s.wide_f = round_up(s.features, kLanes);
  s.wide_v = round_up(problem.d_v, kLanes);
  s.plus = problem.d_v + (options.normalize ? 1 : 0);
  s.wide_plus = round_up(s.plus, kLanes);
  s.chunk = options.chunk != 0                   ? options.chunk
            : s.wide_f * s.wide_v <= kLargeState ? kChunk
                                                 : kLargeChunk;
  s.group = std::max<Index>(1, kSumChunk / s.chunk);
  s.sum_chunk = s.group * s.chunk;
  s.state = s.features * s.wide_v + s.wide_f;
  s.state_plus = s.wide_plus * s.wide_f;
  s.segments = s.near = 1;
  if (problem.causal) {
    const engine::ScanSegments segments((problem.n + s.sum_chunk - 1) / s.sum_chunk, s.sum_chunk);
    s.segments = segments.count();
    if (gradients) s.near = segments.widest();
  }
  Work unused;
  s.work = Work::layout(s, map.scratch_floats(problem.d_k, s.sum_chunk), gradients,
                        !options.decay.empty(), nullptr, &unused);
  return s;
}

void LinearScan::prepare(const Problem& problem, std::shared_ptr<FeatureMap> map,
                         const LinearScanOptions& options, bool gradients) {
  SUBQUAD_CHECK(options.chunk % 16 == 0, "a chunk of {} is not a multiple of 16", options.chunk);
  SUBQUAD_CHECK(options.decay.empty() || (!options.normalize && problem.causal),
                "a decay needs causal attention without a normaliser");
  problem_ = problem;
  map_ = std::move(map);
  options_ = options;
  gradients_ = gradients;
  sizes_ = sizes_of(problem, *map_, options, gradients);
  const Sizes& s = sizes_;
  work_ = {};
  works_.clear();
  grow();

  const Index heads = head_count(), shared = shared_keys(problem);
  const auto scan_of = [&](Index state) {
    return problem.causal ? engine::ScanSchedule(heads, problem.n, s.chunk, s.group, state)
                          : engine::ScanSchedule();
  };
  const auto sum_of = [&](Index tokens, Index state) {
    return tokens > 0 ? engine::ScanTotals(heads, tokens, s.sum_chunk, state)
                      : engine::ScanTotals();
  };
  scan_ = scan_of(s.state);
  SUBQUAD_CHECK(!problem.causal || scan_.segments() == s.segments, "{} segments, {} counted",
                scan_.segments(), s.segments);
  sum_ = sum_of(shared, s.state);
  if (gradients) {
    dk_scan_ = scan_of(s.state_plus);
    if (problem.causal && shared > 0) dk_scan_.round_totals();
    dk_sum_ = sum_of(problem.causal ? 0 : problem.n, s.state_plus);
    turned_ = AlignedArray<float>(problem.causal ? 0 : heads * s.state_plus);
  }

  const Index floats = Decay::floats(s.sum_chunk);
  powers_ = AlignedArray<float>(static_cast<Index>(options.decay.size()) * floats);
  for (std::size_t h = 0; h < options.decay.size(); ++h) {
    float* const up = powers_.data() + static_cast<Index>(h) * floats + kLanes;
    for (Index e = 0; e <= s.sum_chunk; ++e)
      up[e] = static_cast<float>(std::pow(options.decay[h], static_cast<double>(e)));
    for (Index a = 0; a <= s.chunk; ++a) up[s.sum_chunk + 1 + a] = up[s.chunk - a];
  }
}

double LinearScan::work_bytes(const Problem& p, const FeatureMap& map,
                              const LinearScanOptions& options, bool gradients) {
  const Sizes s = sizes_of(p, map, options, gradients);
  const Index heads = p.batch * p.heads, shared = shared_keys(p);
  double bytes =
      4.0 * static_cast<double>(thread_count() * s.work + static_cast<Index>(options.decay.size()) *
                                                              Decay::floats(s.sum_chunk));
  const auto add_scan = [&](Index state, bool rounded) {
    if (p.causal)
      bytes += engine::ScanSchedule::bytes(heads, p.n, s.chunk, s.group, state, rounded);
  };
  const auto add_sum = [&](Index tokens, Index state) {
    if (tokens > 0) bytes += engine::ScanTotals::bytes(heads, tokens, s.sum_chunk, state);
  };
  add_scan(s.state, false);
  add_sum(shared, s.state);
  if (gradients) {
    add_scan(s.state_plus, shared > 0);
    add_sum(p.causal ? 0 : p.n, s.state_plus);
    if (!p.causal) bytes += 4.0 * static_cast<double>(heads * s.state_plus);
  }
  return bytes;
}

double LinearScan::saved_bytes(const Problem& p, const FeatureMap& map,
                               const LinearScanOptions& options) {
  const Sizes s = sizes_of(p, map, options, true);
  const Index floats = (options.normalize ? p.n : 0) + s.segments * s.state;
  return 4.0 * static_cast<double>(p.batch * p.heads * floats);
}

Decay LinearScan::decay_of(Index bh) const {
  if (options_.decay.empty()) return {};
  const float* const up =
      powers_.data() + bh % problem_.heads * Decay::floats(sizes_.sum_chunk) + kLanes;
  return {up, up + sizes_.sum_chunk + 1};
}

Index LinearScan::Work::layout(const Sizes& s, Index map_scratch, bool gradients, bool decay,
                               float* base, Work* work) {
  const Index group = s.sum_chunk, rows = s.near * group;
  const Index widest = std::max(s.wide_f, s.wide_plus);
  Index used = 0;
  const auto take = [&](float*& to, Index floats) {
    to = base == nullptr ? nullptr : base + used;
    used += round_up(floats, 16);
  };
  take(work->q, rows * s.wide_f);
  take(work->qt, s.wide_f * group);
  take(work->k, rows * s.wide_f);
  take(work->v, group * s.wide_v);
  take(work->g, gradients ? rows * s.wide_plus : 0);
  take(work->gt, gradients ? s.wide_plus * s.chunk : 0);
  take(work->kt, gradients ? s.wide_f * group : 0);
  take(work->scaled, decay ? group * widest : 0);
  take(work->scores, s.chunk * s.chunk);
  take(work->dscores, gradients ? rows * s.chunk : 0);
  take(work->turned, gradients ? s.wide_v * group : 0);
  take(work->tile, group * std::max(s.wide_f, s.wide_v));
  take(work->norm, group);
  take(work->scratch, map_scratch);
  return used;
}

void LinearScan::grow() {
  const Index threads = thread_count();
  if (work_.size() >= threads * sizes_.work && !works_.empty()) return;
  work_ = AlignedArray<float>(threads * sizes_.work);
  works_.resize(static_cast<std::size_t>(threads));
  for (Index t = 0; t < threads; ++t)
    Work::layout(sizes_, map_->scratch_floats(problem_.d_k, sizes_.sum_chunk), gradients_,
                 !options_.decay.empty(), work_.data() + t * sizes_.work,
                 &works_[static_cast<std::size_t>(t)]);
}

std::unique_ptr<LinearScanSaved> LinearScan::make_saved() const {
  const Sizes& s = sizes_;
  const Index heads = head_count();
  auto saved = std::make_unique<LinearScanSaved>();
  saved->inverse_norm = AlignedArray<float>(options_.normalize ? heads * problem_.n : 0);
  saved->states = AlignedArray<float>(heads * s.segments * s.state);
  return saved;
}

void LinearScan::forward(const Inputs& in, TensorView out, LinearScanSaved* saved) {
  grow();
  map_->begin(problem_, in);
  const Sizes& s = sizes_;
  const LinearScanCall call{in, problem_, *map_, {}, {}, nullptr, options_.normalize};
  const Index shared = shared_keys(problem_);
  float* const states = saved == nullptr ? nullptr : saved->states.data();
  Outputs sum{*this, call, {s.sum_chunk, 1, 0, shared}, false, out.data(), saved};
  if (shared > 0) sum_.run(sum);
  if (!problem_.causal) {
    emit_all(sum, s.sum_chunk, problem_.n, [&](Index bh) { return sum_.rounded(bh); });
    if (saved != nullptr)
      parallel_for(head_count(), [&](Index bh, int) {
        std::copy_n(sum_.rounded(bh), s.state, states + bh * s.state);
      });
    return;
  }
  start(scan_, sum_, shared);
  Outputs scan{*this, call, {s.chunk, s.group, shared, problem_.n_kv}, true, out.data(), saved};
  scan_.run(scan, engine::ScanOrder::ascending, states);
}

double LinearScan::flops(const Problem& p, Index features, bool normalize, Pass pass) {
  const double heads = static_cast<double>(p.batch * p.heads);
  const double state = static_cast<double>(features * (p.d_v + (normalize ? 1 : 0)));
  const double n = static_cast<double>(p.n), n_kv = static_cast<double>(p.n_kv);
  const double forward = 2.0 * heads * state * (n + n_kv);
  // Backward: the state of the keys and dq from it; the state of the queries, dk and dv.
  const double backward = 2.0 * heads * state * (2 * n + 3 * n_kv);
  if (pass == Pass::backward) return backward;
  if (pass == Pass::forward_backward) return forward + backward;
  return forward;
}

void linear_attention_rows(const Inputs& in, const Problem& p, FeatureMap& map,
                           const LinearScanOptions& options, Index b, Index h,
                           std::span<const Index> rows, Eigen::Ref<Matrix> weights) {
  map.begin(p, in);
  const Index bh = b * p.heads + h, features = map.features(p.d_k);
  const Index wide = round_up(features, kLanes);
  AlignedArray<float> scratch(map.scratch_floats(p.d_k, 1));
  Matrix q(1, wide), k(p.n_kv, wide);
  for (Index j = 0; j < p.n_kv; ++j)
    map.apply(FeatureMap::Side::key, bh, in.k.head_data(b, h) + j * p.d_k, 1, p.d_k,
              k.data() + j * wide, wide, scratch.data());
  const auto real = keys_of_batch(in, b);
  const double decay = options.decay.empty() ? 1 : options.decay[static_cast<std::size_t>(h)];
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const Index i = rows[r];
    map.apply(FeatureMap::Side::query, bh, in.q.head_data(b, h) + i * p.d_k, 1, p.d_k, q.data(),
              wide, scratch.data());
    VectorD row = VectorD::Zero(p.n_kv);
    for (Index j = 0; j < p.visible(i); ++j)
      if (real.empty() || real[static_cast<std::size_t>(j)] != 0)
        row[j] = q.row(0).cast<double>().dot(k.row(j).cast<double>()) *
                 std::pow(decay, static_cast<double>(p.visible(i) - 1 - j));
    const double sum = row.sum() + options.eps;
    if (options.normalize && sum != 0) row /= sum;
    weights.row(static_cast<Index>(r)) = row.cast<float>();
  }
}

}  // namespace subquad
