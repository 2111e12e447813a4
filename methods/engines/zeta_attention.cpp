#include "methods/engines/zeta_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "harness/core/parallel.h"
#include "methods/engines/band.h"
#include "methods/engines/row_attention.h"
#include "methods/engines/zeta_layout.h"

namespace subquad {

using namespace engine;
using namespace zeta_detail;

Index ZetaOptions::chunk_size(Index n_kv) const {
  if (chunk > 0) return std::min(chunk, std::max<Index>(n_kv, 1));
  return std::min(std::max<Index>(n_kv, 1), std::max(top_k, (n_kv + chunks - 1) / chunks));
}
Index ZetaOptions::list_size(Index n_kv) const {
  return candidates == Candidates::none ? 0 : std::min(top_k, n_kv);
}
Index ZetaOptions::range_size(Index n_kv, bool causal) const {
  if (candidates == Candidates::none) return n_kv;
  return local && causal ? chunk_size(n_kv) : 0;
}
Index ZetaOptions::window(Index n_kv) const {
  if (candidates == Candidates::none) return 0;
  return candidates == Candidates::z_order ? std::min(n_kv, top_k * window_factor) : n_kv;
}

float zeta_width(float theta) {
  const double gamma = 1 / (1 + std::exp(-static_cast<double>(theta)));
  return static_cast<float>(std::max(gamma * gamma, 1e-6));
}

namespace zeta_detail {

void kernel_arguments(const ZetaKernel& kernel, const float* q, Index width, const float* rows,
                      const std::int32_t* index, Index count, float* x) {
  const bool product = kernel.of_product();
  for (Index j = 0; j < count; ++j) {
    const float* const k = rows + static_cast<Index>(index[j]) * width;
    float sum = 0;
    for (Index c = 0; c < width; ++c) {
      const float away = q[c] - k[c];
      sum += product ? q[c] * k[c] : away * away;
    }
    x[j] = sum;
  }
}

Index choose(const ZetaOptions& o, const float* q, const Candidates& candidates, Work& work,
             std::int32_t* index, float* x) {
  const Index count = candidates.count;
  float* const distance = work.distance.data();
  squared_distances(q, o.points.d_key, candidates.points, candidates.first, count, distance);
  const std::int32_t* const position = candidates.position + candidates.first;
  if (count <= o.top_k) {
    std::copy_n(position, count, index);
    std::copy_n(distance, count, x);
    return count;
  }
  choose_nearest(distance, position, count, o.top_k, &work.hint, work.chosen.data());
  for (Index e = 0; e < o.top_k; ++e) {
    index[e] = position[work.chosen[e]];
    x[e] = distance[work.chosen[e]];
  }
  return o.top_k;
}

Candidates window_at(const ZetaOptions& o, const Candidates& sorted, std::uint64_t code,
                     Index* place) {
  Candidates window = sorted;
  const Index wanted = o.top_k * o.window_factor;
  *place = gallop(sorted.code, *place, sorted.count, code);
  window.first =
      std::clamp<Index>(*place - wanted / 2, 0, std::max<Index>(0, sorted.count - wanted));
  window.count = std::min(wanted, sorted.count - window.first);
  return window;
}

}  // namespace zeta_detail

void ZetaAttention::prepare(const Problem& problem, const ZetaOptions& options, const Env& env) {
  problem_ = problem;
  options_ = options;
  gradients_ = env.gradients;
  values_ahead_ = problem.n_kv * problem.d_v * 4 > kNearCache;
  points_.prepare(options.points, problem.d_k, env.seed);
  layout(heads_, options, problem, gradients_,
         [](auto& array, Index count) { array = std::remove_reference_t<decltype(array)>(count); });
  work_.clear();
  grow_work();
}

void ZetaAttention::grow_work() {
  while (static_cast<int>(work_.size()) < thread_count()) {
    work_.emplace_back();
    layout(work_.back(), options_, problem_, gradients_, [](auto& array, Index count) {
      array = std::remove_reference_t<decltype(array)>(count);
    });
  }
}

double ZetaAttention::work_bytes(const Problem& p, const ZetaOptions& o, bool gradients) {
  double bytes = ZetaPoints::bytes(o.points, p.d_k);
  const auto add = [&](double times) {
    return [&bytes, times](const auto& array, Index count) {
      bytes += times * static_cast<double>(count) * static_cast<double>(sizeof(*array.data()));
    };
  };
  Heads heads;
  layout(heads, o, p, gradients, add(1));
  Work work;
  layout(work, o, p, gradients, add(thread_count()));
  return bytes;
}

ZetaKernel ZetaAttention::kernel(const float* theta, Index bh) const {
  return {options_.similarity,
          zeta_width(theta[options_.gamma_per_head ? bh % problem_.heads : 0])};
}

// Candidates among the real keys before `limit`. Where keys are sorted, work keeps them; unless
// `fresh` it holds those of a larger limit from before. O(n_kv), without search O(log n_kv).
Candidates ZetaAttention::prefix(Index bh, Index limit, bool fresh, Work& work) const {
  const Index n_kv = problem_.n_kv, stride = n_kv + kLanes, d_key = options_.points.d_key;
  Candidates all{{heads_.coordinate.data() + bh * d_key * stride, stride},
                 heads_.code.data() + bh * n_kv,
                 heads_.position.data() + bh * n_kv,
                 0,
                 heads_.real[bh]};
  if (limit >= n_kv) return all;
  if (options_.candidates != ZetaOptions::Candidates::z_order) {
    all.count = std::lower_bound(all.position, all.position + all.count, limit) - all.position;
    return all;
  }
  Candidates here{{work.coordinate.data(), stride}, work.code.data(), work.position.data(), 0, 0};
  Candidates from = here;
  from.count = work.filtered;
  if (fresh) from = all;
  std::int32_t* const kept = work.kept.data();
  for (Index e = 0; e < from.count; ++e) {  // without branches
    kept[here.count] = static_cast<std::int32_t>(e);
    here.count += from.position[e] < limit ? 1 : 0;
  }
  for (Index e = 0; e < here.count; ++e) {
    work.code[e] = from.code[kept[e]];
    work.position[e] = from.position[kept[e]];
  }
  for (Index c = 0; c < d_key; ++c)
    for (Index e = 0; e < here.count; ++e)
      work.coordinate[c * stride + e] = from.points.coordinate[c * stride + kept[e]];
  work.filtered = here.count;
  return here;
}

// Of one query: `base` are the keys before its chunk where they are sorted, else all.
Candidates ZetaAttention::candidates_of(Index i, std::uint64_t code, const Candidates& base,
                                        Index* place) const {
  using Kind = ZetaOptions::Candidates;
  if (options_.candidates == Kind::z_order) return window_at(options_, base, code, place);
  if (options_.candidates == Kind::none) return {};
  if (!problem_.causal) return base;
  const Index size = options_.chunk_size(problem_.n_kv);
  const Index limit = options_.candidates == Kind::past
                          ? problem_.visible(i)
                          : (i + problem_.causal_offset()) / size * size;
  Candidates some = base;
  some.count = std::lower_bound(base.position, base.position + base.count, limit) - base.position;
  return some;
}

Index ZetaAttention::add_range(const Inputs& in, Index bh, Index i, Index list,
                               std::int32_t* index) const {
  if (options_.range_size(problem_.n_kv, problem_.causal) == 0) return list;
  const auto real = keys_of_batch(in, bh / problem_.heads);
  const Index size = options_.chunk_size(problem_.n_kv);
  Index j = options_.candidates == ZetaOptions::Candidates::none
                ? 0
                : (i + problem_.causal_offset()) / size * size;
  for (; j < problem_.visible(i); ++j)
    if (real.empty() || real[static_cast<std::size_t>(j)] != 0)
      index[list++] = static_cast<std::int32_t>(j);
  return list;
}

// What the query that is processed as `row` attends to; its values are asked for.
ZetaAttention::Query ZetaAttention::select(const Inputs& in, Index bh, Index row,
                                           const Candidates& base, const ZetaKernel& kernel,
                                           Index* place, int turn, Work& work) const {
  const Index n = problem_.n, width = ZetaPoints::width(options_.points.d_key);
  const bool searched = options_.candidates == ZetaOptions::Candidates::z_order;
  Query query{.row = row, .i = searched ? heads_.q_order[bh * n + row] : row};
  query.index = work.index.data() + turn * work.index.size() / 2;
  query.x = work.x.data() + turn * work.x.size() / 2;
  const float* const q = heads_.q.data() + (bh * n + query.i) * width;
  const Candidates candidates =
      candidates_of(query.i, searched ? heads_.q_code[bh * n + row] : 0, base, place);
  if (candidates.count > 0)
    query.chosen = choose(options_, q, candidates, work, query.index, query.x);
  query.count = add_range(in, bh, query.i, query.chosen, query.index);
  if (values_ahead_) {
    const float* const v = in.v.head(bh).data();
    for (Index e = 0; e < query.chosen; ++e)
      for (Index c = 0; c < problem_.d_v; c += kAlignment / sizeof(float))
        __builtin_prefetch(v + static_cast<Index>(query.index[e]) * problem_.d_v + c);
  }
  const Index known = kernel.of_product() ? 0 : query.chosen;
  kernel_arguments(kernel, q, width, heads_.k.data() + bh * problem_.n_kv * width,
                   query.index + known, query.count - known, query.x + known);
  query.mean = options_.history && heads_.mean_count[bh * n + query.i] > 0;
  const std::int32_t own = 0;
  if (query.mean)
    kernel_arguments(kernel, q, width, heads_.mean_k.data() + (bh * n + query.i) * width, &own, 1,
                     query.x + query.count);
  return query;
}

void ZetaAttention::gather(const Inputs& in, Index bh, const Query& query, const ZetaKernel& kernel,
                           TensorView out, ZetaSaved* saved, Work& work) const {
  const Index d_v = problem_.d_v;
  float* const o = out.head(bh).data() + query.i * d_v;
  const Index all = query.count + (query.mean ? 1 : 0);
  if (all > 0) kernel.weights(query.x, all, work.weight.data());
  if (query.mean) {  // the row holds the mean of the values
    for (Index c = 0; c < d_v; ++c) o[c] *= work.weight[query.count];
  } else {
    std::fill_n(o, d_v, 0.0f);
  }
  add_weighted_rows(work.weight.data(),
                    GatheredRows<std::int32_t>{in.v.head(bh).data(), d_v, query.index}, query.count,
                    d_v, o);
  if (saved == nullptr) return;
  const Index at = bh * problem_.n + query.row, list = options_.list_size(problem_.n_kv);
  saved->query[at] = static_cast<std::int32_t>(query.i);
  saved->count[at] = static_cast<std::int32_t>(query.chosen);
  std::copy_n(query.index, query.chosen, saved->keys.data() + at * list);
}

// Outputs of the queries that are processed as rows [first, last): later chunks first, so that the
// sorted keys only have to lose some. While values are on their way, the next query is chosen for.
void ZetaAttention::attend_rows(const Inputs& in, Index bh, Index first, Index last,
                                const float* theta, TensorView out, ZetaSaved* saved, Work& work) {
  const bool chunked = options_.candidates == ZetaOptions::Candidates::z_order && problem_.causal;
  const Index offset = problem_.causal ? problem_.causal_offset() : 0;
  const Index size = options_.chunk_size(problem_.n_kv);
  const ZetaKernel kernel = this->kernel(theta, bh);
  Candidates base;
  if (!chunked && options_.candidates != ZetaOptions::Candidates::none)
    base = prefix(bh, problem_.n_kv, true, work);
  Query ready;
  bool fresh = true, waits = false;
  int turn = 0;
  for (Index end = last; end > first;) {
    const Index chunk = (end - 1 + offset) / size;
    const Index begin = chunked ? std::max(first, chunk * size - offset) : first;
    if (chunked) base = prefix(bh, chunk * size, fresh, work);
    fresh = false;
    Index place = 0;
    for (Index row = begin; row < end; ++row) {
      const Query next = select(in, bh, row, base, kernel, &place, turn, work);
      if (waits) gather(in, bh, ready, kernel, out, saved, work);
      ready = next, waits = true, turn = 1 - turn;
    }
    end = begin;
  }
  if (waits) gather(in, bh, ready, kernel, out, saved, work);
}

void ZetaAttention::forward(const Inputs& in, const float* theta, TensorView out,
                            ZetaSaved* saved) {
  prepare_call(in, out, {});
  const Index heads = problem_.batch * problem_.heads, n = problem_.n;
  const Index size = options_.chunk_size(problem_.n_kv);
  Index rows = kRowBlock;
  const bool chunked = options_.candidates == ZetaOptions::Candidates::z_order && problem_.causal;
  if (chunked) {  // whole chunks; every item begins with all sorted keys of a head
    const Index chunks = (problem_.n_kv + size - 1) / size;
    const Index parts =
        heads >= 4 * thread_count() || thread_count() == 1 ? 1 : 4 * thread_count() / heads + 1;
    rows = (chunks + parts - 1) / parts * size;
  }
  const Index offset = chunked ? problem_.causal_offset() : 0;
  const Index items = (n + offset + rows - 1) / rows;
  parallel_for(heads * items, [&](Index item, int thread) {
    const Index part = items - 1 - item / heads;  // the later, the more keys
    const Index first = std::max<Index>(0, part * rows - offset);
    const Index last = std::min(n, (part + 1) * rows - offset);
    if (first < last)
      attend_rows(in, item % heads, first, last, theta, out, saved,
                  work_[static_cast<std::size_t>(thread)]);
  });
}

void ZetaAttention::rows(const Inputs& in, const float* theta, Index bh,
                         std::span<const Index> rows, Eigen::Ref<Matrix> weights) {
  prepare_call(in, {}, {});
  const Index width = ZetaPoints::width(options_.points.d_key), n = problem_.n;
  const ZetaKernel kernel = this->kernel(theta, bh);
  const auto real = keys_of_batch(in, bh / problem_.heads);
  Work& work = work_.front();
  weights.setZero();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const Index i = rows[r];
    const float* const q = heads_.q.data() + (bh * n + i) * width;
    const Index chosen = choose_for(in, bh, i, work);
    const Index count = add_range(in, bh, i, chosen, work.index.data());
    kernel_arguments(kernel, q, width, heads_.k.data() + bh * problem_.n_kv * width,
                     work.index.data(), count, work.x.data());
    const bool mean = options_.history && heads_.mean_count[bh * n + i] > 0;
    const std::int32_t own = 0;
    if (mean)
      kernel_arguments(kernel, q, width, heads_.mean_k.data() + (bh * n + i) * width, &own, 1,
                       work.x.data() + count);
    if (count + (mean ? 1 : 0) == 0) continue;
    kernel.weights(work.x.data(), count + (mean ? 1 : 0), work.weight.data());
    auto to = weights.row(static_cast<Index>(r));
    for (Index e = 0; e < count; ++e) to[work.index[e]] += work.weight[e];
    for (Index j = 0; mean && j < problem_.visible(i); ++j)
      if (real.empty() || real[static_cast<std::size_t>(j)] != 0)
        to[j] += work.weight[count] / heads_.mean_count[bh * n + i];
  }
}

// What a single query chooses, by itself: O(n_kv).
Index ZetaAttention::choose_for(const Inputs& in, Index bh, Index i, Work& work) {
  using Kind = ZetaOptions::Candidates;
  if (options_.candidates == Kind::none) return 0;
  const Index width = ZetaPoints::width(options_.points.d_key);
  const Index size = options_.chunk_size(problem_.n_kv);
  const bool chunked = options_.candidates == Kind::z_order && problem_.causal;
  const Index limit = chunked ? (i + problem_.causal_offset()) / size * size : problem_.n_kv;
  alignas(64) float point[kMaxPointWidth];
  std::uint64_t code = 0;
  points_.map(in.q.head(bh).data() + i * problem_.d_k, 1, point, &code);
  Index place = 0;
  const Candidates candidates = candidates_of(i, code, prefix(bh, limit, true, work), &place);
  if (candidates.count == 0) return 0;
  return choose(options_, heads_.q.data() + (bh * problem_.n + i) * width, candidates, work,
                work.index.data(), work.x.data());
}

// Allocates; O(sample n_kv d_key).
ZetaAttention::Recall ZetaAttention::recall() const {
  using Kind = ZetaOptions::Candidates;
  constexpr Index kSample = 64;
  if (options_.candidates == Kind::none) return {};
  const Index n = problem_.n, n_kv = problem_.n_kv, d_key = options_.points.d_key;
  const Index width = ZetaPoints::width(d_key), size = options_.chunk_size(n_kv);
  const bool searched = options_.candidates == Kind::z_order;
  Work work;
  layout(work, options_, problem_, false,
         [](auto& array, Index count) { array = std::remove_reference_t<decltype(array)>(count); });
  double hits[2] = {}, all[2] = {};
  for (Index s = 0; s < std::min(n, kSample); ++s) {
    const Index bh = s % (problem_.batch * problem_.heads), row = s * n / std::min(n, kSample);
    const Index i = searched ? heads_.q_order[bh * n + row] : row;
    const Index start = problem_.causal ? (i + problem_.causal_offset()) / size * size : n_kv;
    const float* const q = heads_.q.data() + (bh * n + i) * width;
    Index place = 0;
    const Candidates candidates =
        candidates_of(i, searched ? heads_.q_code[bh * n + row] : 0,
                      prefix(bh, searched ? start : n_kv, true, work), &place);
    const Index chosen = candidates.count == 0 ? 0
                                               : choose(options_, q, candidates, work,
                                                        work.index.data(), work.x.data());
    const auto distance = [&](Index j) {
      double sum = 0;
      for (Index c = 0; c < d_key; ++c)
        sum += std::pow(
            static_cast<double>(q[c]) - static_cast<double>(heads_.k[(bh * n_kv + j) * width + c]),
            2);
      return sum;
    };
    for (const int whole : {0, 1}) {
      std::vector<double> exact;
      for (Index e = 0; e < heads_.real[bh]; ++e) {
        const Index j = heads_.position[bh * n_kv + e];
        if (j < (whole != 0 ? problem_.visible(i) : start)) exact.push_back(distance(j));
      }
      const auto wanted = std::min(options_.top_k, static_cast<Index>(exact.size()));
      if (wanted == 0) continue;
      std::nth_element(exact.begin(), exact.begin() + wanted - 1, exact.end());
      const double border = exact[static_cast<std::size_t>(wanted - 1)];
      Index found = 0;
      for (Index e = 0; e < chosen; ++e) found += distance(work.index[e]) <= border ? 1 : 0;
      hits[whole] += static_cast<double>(std::min(found, wanted));
      all[whole] += static_cast<double>(wanted);
    }
  }
  return {all[0] > 0 ? hits[0] / all[0] : 1, all[1] > 0 ? hits[1] / all[1] : 1};
}

double ZetaAttention::flops(const Problem& p, const ZetaOptions& o, Pass pass) {
  const auto d_key = static_cast<double>(o.points.d_key), d_v = static_cast<double>(p.d_v);
  const Index size = o.chunk_size(p.n_kv), offset = p.causal ? p.causal_offset() : 0;
  double met = 0, kept = 0;
  for (Index i = 0; i < p.n; ++i) {
    const Index start = p.causal ? (i + offset) / size * size : 0;
    Index pool = p.causal ? start : p.n_kv;
    if (o.candidates == ZetaOptions::Candidates::past) pool = p.visible(i);
    Index range = o.local && p.causal ? p.visible(i) - start : 0;
    if (o.candidates == ZetaOptions::Candidates::none) pool = 0, range = p.visible(i);
    const Index window = std::min(pool, o.window(p.n_kv)), list = std::min(pool, o.top_k);
    met += static_cast<double>(window + range);
    kept += static_cast<double>(list + range + (o.history ? 1 : 0));
  }
  const auto heads = static_cast<double>(p.batch * p.heads);
  const double projection =
      p.d_k == o.points.d_key ? 0 : 2.0 * static_cast<double>((p.n + p.n_kv) * p.d_k) * d_key;
  const double forward = heads * (projection + 3 * met * d_key + kept * (3 + 2 * d_v));
  const double backward = heads * (projection + kept * (10 + 9 * d_key + 4 * d_v));
  if (pass == Pass::forward || pass == Pass::decode) return forward;
  return pass == Pass::backward ? backward : forward + backward;
}

}  // namespace subquad
