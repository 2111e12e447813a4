#include "methods/engines/clustered_method.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "harness/core/parallel.h"
#include "methods/engines/chunk_product.h"
#include "methods/engines/pack.h"

namespace subquad {

using namespace engine;

namespace {

constexpr Index kCentroids = kRowUnit;  // that are scored together
constexpr Index kKeyItem = 256;         // keys whose gradients one work item adds up

bool better(float a, std::int32_t key_a, float b, std::int32_t key_b) {
  return a > b || (a == b && key_a < key_b);
}

// How many of the keys, ascending, each query may see; queries ascend as well.
void visible_keys(const Problem& p, const std::int32_t* key, Index keys, const std::int32_t* query,
                  Index rows, std::int32_t* visible) {
  Index up_to = p.causal ? 0 : keys;
  for (Index r = 0; r < rows; ++r) {
    while (up_to < keys && key[up_to] < p.visible(query[r])) ++up_to;
    visible[r] = static_cast<std::int32_t>(up_to);
  }
}

// Calls body(queries, GatheredTile) for every tile of the members that see the keys.
template <class Body>
void for_member_tiles(const Problem& p, const std::int32_t* key, Index keys,
                      std::span<const std::int32_t> members, Body&& body) {
  const auto all = static_cast<Index>(members.size());
  for (Index m = 0; m < all; m += kGatheredRows) {
    const Index rows = std::min<Index>(kGatheredRows, all - m);
    const std::int32_t* const query = members.data() + m;
    std::int32_t visible[kGatheredRows];
    visible_keys(p, key, keys, query, rows, visible);
    body(query, GatheredTile{query, rows, visible, nullptr});
  }
}

Problem centroid_problem(const Problem& p, Index clusters) {
  Problem q = p;
  q.n = clusters;
  q.causal = false;
  q.scale = p.logit_scale();
  return q;
}

}  // namespace

// Floats of the work space of one thread.
struct ClusteredMethod::Sizes {
  Index scoring, members;
  Sizes(const Problem& p, Index top_k, bool gradients) {
    const Index wide = round_up(p.d_k, kLanes);
    scoring = kCentroids * (wide + round_up(p.n_kv, kPanel)) + 2 * kPanel * wide;
    members = GatheredAttention::floats(kGatheredRows, top_k, p.d_k, p.d_v, gradients);
  }
  Index total(Index top_k) const { return top_k == 0 ? 0 : std::max(scoring, members); }
};

ClusteredCall ClusteredMethod::make_call() const {
  const Index all = heads() * clusters(), k = top_k(problem_);
  ClusteredCall call;
  call.groups = QueryGroups(heads(), problem_.n, clusters());
  call.centroid = AlignedArray<float>(all * problem_.d_k);
  call.centroid_out = AlignedArray<float>(whole(problem_) ? all * problem_.d_v : 0);
  call.centroid_lse = AlignedArray<float>(whole(problem_) ? all : 0);
  call.top = AlignedArray<std::int32_t>(all * k);
  if (k == 0) return call;
  call.count = AlignedArray<std::int32_t>(all);
  call.mass = AlignedArray<float>(all);
  call.bottom = AlignedArray<float>(whole(problem_) ? all * problem_.d_v : 0);
  call.lse = AlignedArray<float>(heads() * problem_.n);
  return call;
}

void ClusteredMethod::prepare(const Problem& problem, const Env& env) {
  problem_ = problem;
  gradients_ = env.gradients;
  clusters_.prepare(problem, options_, derive(env.seed, "clustered"));
  if (whole(problem)) {
    const Problem centroids = centroid_problem(problem, clusters());
    attention_.prepare(centroids, Pattern::of(Band::dense(centroids)), gradients_);
  }
  call_ = make_call();
  const Index k = top_k(problem), all = gradients_ ? heads() * clusters() : 0;
  scratch_floats_ = Sizes(problem, k, gradients_).total(k);
  scratch_ = {};
  best_.clear();
  dcentroid_out_ = AlignedArray<float>(whole(problem) ? all * problem.d_v : 0);
  dcentroid_ = AlignedArray<float>(whole(problem) ? all * problem.d_k : 0);
  delta_ = AlignedArray<float>(whole(problem) ? all : 0);
  dtop_ = AlignedArray<float>(all * k * (problem.d_k + problem.d_v));
  grow_scratch();
}

std::unique_ptr<Saved> ClusteredMethod::make_saved() const {
  return std::make_unique<ClusteredCall>(make_call());
}

void ClusteredMethod::grow_scratch() {
  const Index floats = thread_count() * scratch_floats_;
  if (scratch_.size() < floats) scratch_ = AlignedArray<float>(floats);
  const auto candidates = static_cast<std::size_t>(2 * top_k(problem_));
  while (static_cast<int>(best_.size()) < thread_count()) best_.emplace_back(candidates);
}

GatheredHead ClusteredMethod::head(const Inputs& in, Index bh) const {
  return {in.q.head(bh).data(), in.k.head(bh).data(), in.v.head(bh).data(), nullptr,
          static_cast<float>(problem_.logit_scale())};
}

Inputs ClusteredMethod::centroid_inputs(const Inputs& in, const ClusteredCall& call) const {
  Inputs centroids = in;
  centroids.q = {call.centroid.data(),
                 Shape{problem_.batch, problem_.heads, clusters(), problem_.d_k}};
  return centroids;
}

void ClusteredMethod::forward(const Inputs& in, TensorView out, Saved* saved) {
  grow_scratch();
  ClusteredCall& call = saved == nullptr ? call_ : static_cast<ClusteredCall&>(*saved);
  find_centroids(in, call);
  const Shape shape{problem_.batch, problem_.heads, clusters(), problem_.d_v};
  if (whole(problem_))
    attention_.forward(centroid_inputs(in, call), {call.centroid_out.data(), shape},
                       call.centroid_lse.data());
  if (top_k(problem_) > 0) choose_keys(in, call);
  parallel_for(heads() * clusters(), [&](Index item, int thread) {
    attend_members(in, call, item / clusters(), item % clusters(), thread, out);
  });
}

// Groups the queries; q_c = mean of the members, added in double; zero for an empty cluster.
void ClusteredMethod::find_centroids(const Inputs& in, ClusteredCall& call) {
  clusters_.group(in.q.data(), call.groups);
  const Index count = clusters(), d = problem_.d_k;
  parallel_for(heads() * count, [&](Index item, int) {
    const Index bh = item / count, c = item % count;
    const std::int32_t* const order = call.groups.order.data() + bh * problem_.n;
    const std::int32_t* const start = call.groups.start.data() + bh * (count + 1) + c;
    const auto q = in.q.head(bh);
    constexpr Index kColumns = 64;
    for (Index x = 0; x < d; x += kColumns) {
      const Index width = std::min(kColumns, d - x);
      double sum[kColumns] = {};
      for (Index m = start[0]; m < start[1]; ++m)
        for (Index y = 0; y < width; ++y) sum[y] += static_cast<double>(q(order[m], x + y));
      const double size = std::max(1, start[1] - start[0]);
      for (Index y = 0; y < width; ++y)
        call.centroid[item * d + x + y] = static_cast<float>(sum[y] / size);
    }
  });
}

// T_c of every cluster: tiles of centroids against all keys, then the best of each row.
void ClusteredMethod::choose_keys(const Inputs& in, ClusteredCall& call) {
  const Index count = clusters(), items = (count + kCentroids - 1) / kCentroids;
  const Index k = top_k(problem_), n_kv = problem_.n_kv, d = problem_.d_k;
  const Index wide = round_up(d, kLanes), ld = round_up(n_kv, kPanel);
  parallel_for(heads() * items, [&](Index item, int thread) {
    const Index bh = item / items, c0 = item % items * kCentroids;
    const Index centroids = std::min(kCentroids, count - c0);
    float* const q = scratch(thread);               // [centroids, wide]
    float* const rows = q + kCentroids * wide;      // [kPanel, wide]
    float* const columns = rows + kPanel * wide;    // [wide, kPanel]
    float* const scores = columns + kPanel * wide;  // [centroids, ld]
    pack_rows(call.centroid.data() + (bh * count + c0) * d, centroids, d, wide, nullptr, q);
    const auto real = keys_of_batch(in, bh / problem_.heads);
    for (Index j = 0; j < n_kv; j += kPanel) {
      const Index keys = std::min<Index>(kPanel, n_kv - j);
      pack_rows(in.k.head(bh).data() + j * d, keys, d, wide,
                real.empty() ? nullptr : real.data() + j, rows);
      std::fill(rows + keys * wide, rows + kPanel * wide, 0.0f);
      transpose(rows, wide, kPanel, wide, columns, kPanel);
      product<false>(q, wide, 1, centroids, wide, columns, kPanel, kPanel, scores + j, ld);
    }
    std::vector<Candidate>& best = best_[static_cast<std::size_t>(thread)];
    const auto ahead = [](const Candidate& a, const Candidate& b) {
      return better(a.score, a.key, b.score, b.key);
    };
    for (Index r = 0; r < centroids; ++r) {
      const float* const row = scores + r * ld;
      Index found = 0;
      bool full = false;
      float worst = 0;  // of the k best so far, once there are as many
      const auto keep_best = [&] {
        std::nth_element(best.begin(), best.begin() + k - 1, best.begin() + found, ahead);
        found = k;
        worst = best[static_cast<std::size_t>(k - 1)].score;
        full = true;
      };
      for (Index j = 0; j < n_kv; ++j) {
        if (full && row[j] <= worst) continue;
        if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
        // A score that is no number is chosen first, so that it shows in the output.
        const float score = row[j] == row[j] ? row[j] : kInfinity;
        best[static_cast<std::size_t>(found++)] = {score, static_cast<std::int32_t>(j)};
        if (found == 2 * k) keep_best();
      }
      if (found > k) keep_best();
      const Index cluster = bh * count + c0 + r;
      std::int32_t* const top = call.top.data() + cluster * k;
      for (Index x = 0; x < found; ++x) top[x] = best[static_cast<std::size_t>(x)].key;
      std::sort(top, top + found);
      call.count[cluster] = static_cast<std::int32_t>(found);
    }
  });
}

// m_c and the part of the centroid's output that comes from other keys than T_c.
void ClusteredMethod::split_output(const Inputs& in, ClusteredCall& call, Index bh, Index c,
                                   int thread) {
  const Index cluster = bh * clusters() + c, k = top_k(problem_), d_v = problem_.d_v;
  const Index count = call.count[cluster];
  float* const bottom = call.bottom.data() + cluster * d_v;
  GatheredAttention own(1, k, problem_.d_k, d_v, false, scratch(thread));
  GatheredHead from = head(in, bh);
  from.q = call.centroid.data() + cluster * problem_.d_k;
  own.load_keys(from, call.top.data() + cluster * k, count);
  const std::int32_t first = 0;
  own.attend(from, {&first, 1, nullptr, nullptr});
  const float all = call.centroid_lse[cluster];
  const float mass = all == -kInfinity ? 0 : std::min(1.0f, std::exp(own.lse(0) - all));
  call.mass[cluster] = mass;
  // With every key in T_c nothing is left, not even what rounding would leave.
  const bool left = count < problem_.n_kv;
  for (Index x = 0; x < d_v; ++x)
    bottom[x] = left ? call.centroid_out[cluster * d_v + x] - mass * own.out(0)[x] : 0.0f;
}

void ClusteredMethod::attend_members(const Inputs& in, ClusteredCall& call, Index bh, Index c,
                                     int thread, TensorView out) {
  const Index cluster = bh * clusters() + c, k = top_k(problem_), d_v = problem_.d_v;
  const std::int32_t* const start = call.groups.start.data() + bh * (clusters() + 1) + c;
  const std::int32_t* const order = call.groups.order.data() + bh * problem_.n;
  if (start[0] == start[1]) return;
  auto rows_out = out.head(bh);
  if (k == 0) {
    const float* const from = call.centroid_out.data() + cluster * d_v;
    for (Index m = start[0]; m < start[1]; ++m)
      std::copy_n(from, d_v, rows_out.row(order[m]).data());
    return;
  }
  if (whole(problem_)) split_output(in, call, bh, c, thread);
  const std::int32_t* const top = call.top.data() + cluster * k;
  const Index count = call.count[cluster];
  const float mass = whole(problem_) ? call.mass[cluster] : 1.0f;
  GatheredAttention attention(kGatheredRows, k, problem_.d_k, d_v, false, scratch(thread));
  const GatheredHead from = head(in, bh);
  attention.load_keys(from, top, count);
  const auto members = std::span(order, static_cast<std::size_t>(start[1]))
                           .subspan(static_cast<std::size_t>(start[0]));
  for_member_tiles(problem_, top, count, members,
                   [&](const std::int32_t* query, GatheredTile tile) {
                     attention.attend(from, tile);
                     for (Index r = 0; r < tile.rows; ++r) {
                       const Index i = query[r];
                       call.lse[bh * problem_.n + i] = attention.lse(r);
                       float* const to = rows_out.row(i).data();
                       for (Index x = 0; x < d_v; ++x) to[x] = mass * attention.out(r)[x];
                       if (!whole(problem_)) continue;
                       const float* const bottom = call.bottom.data() + cluster * d_v;
                       for (Index x = 0; x < d_v; ++x) to[x] += bottom[x];
                     }
                   });
}

// With dout_c and e_c the sums of dout_i and dout_i . out_i over the members, the centroid's logits
// get A_cj (dout_c . v_j - e_c) for j not in T_c: the whole gradient without top_k. For j in T_c it
// is A_cj (u_c - e_c), m_c u_c = e_c - dout_c . bottom_c: differentiate_members puts it right.
void ClusteredMethod::backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                               const Saved& saved, const Gradients& grads) {
  grow_scratch();
  const auto& call = static_cast<const ClusteredCall&>(saved);
  const Index count = clusters(), k = top_k(problem_), d_v = problem_.d_v;
  if (whole(problem_)) {
    parallel_for(heads() * count, [&](Index item, int) {
      const Index bh = item / count, c = item % count;
      const std::int32_t* const order = call.groups.order.data() + bh * problem_.n;
      const std::int32_t* const start = call.groups.start.data() + bh * (count + 1) + c;
      Eigen::Map<RowVector> sum(dcentroid_out_.data() + item * d_v, d_v);
      sum.setZero();
      double dots = 0;
      for (Index m = start[0]; m < start[1]; ++m) {
        const auto g = dout.head(bh).row(order[m]);
        sum += g;
        dots += static_cast<double>(g.dot(out.head(bh).row(order[m])));
      }
      delta_[item] = static_cast<float>(dots);
    });
    const auto shape = [&](Index d) { return Shape{problem_.batch, problem_.heads, count, d}; };
    attention_.backward(centroid_inputs(in, call), {call.centroid_out.data(), shape(d_v)},
                        {dcentroid_out_.data(), shape(d_v)}, call.centroid_lse.data(),
                        {{dcentroid_.data(), shape(problem_.d_k)}, grads.dk, grads.dv, {}},
                        delta_.data());
  } else {
    std::fill_n(grads.dk.data(), grads.dk.size(), 0.0f);
    std::fill_n(grads.dv.data(), grads.dv.size(), 0.0f);
  }
  parallel_for(heads() * count, [&](Index item, int thread) {
    differentiate_members(in, call, item / count, item % count, thread, dout, grads);
  });
  if (k == 0) return;
  const Index items = (problem_.n_kv + kKeyItem - 1) / kKeyItem;
  parallel_for(heads() * items, [&](Index item, int) {
    const Index first = item % items * kKeyItem;
    add_key_gradients(call, item / items, first, std::min(problem_.n_kv, first + kKeyItem), grads);
  });
}

// dq of the members; dtop_ of the keys in T_c.
void ClusteredMethod::differentiate_members(const Inputs& in, const ClusteredCall& call, Index bh,
                                            Index c, int thread, ConstTensorView dout,
                                            const Gradients& grads) {
  const Index cluster = bh * clusters() + c, k = top_k(problem_);
  const Index d_k = problem_.d_k, d_v = problem_.d_v;
  const std::int32_t* const start = call.groups.start.data() + bh * (clusters() + 1) + c;
  const std::int32_t* const order = call.groups.order.data() + bh * problem_.n;
  const std::int32_t* const top = call.top.data() + cluster * k;
  const Index count = k == 0 ? 0 : call.count[cluster];
  const auto row = [&](const float* x, Index d) { return Eigen::Map<const RowVector>(x, d); };
  float* const dtop = dtop_.data() + cluster * k * (d_k + d_v);  // [count, d_k + d_v]
  std::fill_n(dtop, count * (d_k + d_v), 0.0f);
  if (start[0] == start[1]) return;
  Eigen::Map<RowVector> share(whole(problem_) ? dcentroid_.data() + cluster * d_k : nullptr,
                              whole(problem_) ? d_k : 0);
  if (whole(problem_) && count > 0 && call.mass[cluster] > 0) {
    const auto scale = static_cast<float>(problem_.logit_scale());
    const auto centroid = row(call.centroid.data() + cluster * d_k, d_k);
    const auto g = row(dcentroid_out_.data() + cluster * d_v, d_v);
    const float mass = call.mass[cluster];
    const float inside =  // m_c u_c
        delta_[cluster] - g.dot(row(call.bottom.data() + cluster * d_v, d_v));
    for (Index j = 0; j < count; ++j) {
      const auto key = in.k.head(bh).row(top[j]);
      const float weight = std::exp(scale * centroid.dot(key) - call.centroid_lse[cluster]);
      const float ds = scale * weight * (inside / mass - g.dot(in.v.head(bh).row(top[j])));
      float* const to = dtop + j * (d_k + d_v);
      for (Index x = 0; x < d_k; ++x) to[x] = ds * centroid[x];
      for (Index x = 0; x < d_v; ++x) to[d_k + x] = -weight * g[x];
      share += ds * key;
    }
  }
  if (whole(problem_)) share /= static_cast<float>(start[1] - start[0]);
  if (k == 0) {
    for (Index m = start[0]; m < start[1]; ++m) grads.dq.head(bh).row(order[m]) = share;
    return;
  }
  GatheredAttention attention(kGatheredRows, k, d_k, d_v, true, scratch(thread));
  const GatheredHead from = head(in, bh);
  attention.load_keys(from, top, count);
  const auto members = std::span(order, static_cast<std::size_t>(start[1]))
                           .subspan(static_cast<std::size_t>(start[0]));
  for_member_tiles(problem_, top, count, members,
                   [&](const std::int32_t* query, GatheredTile tile) {
                     attention.differentiate(from, tile, dout.head(bh).data(),
                                             whole(problem_) ? call.mass[cluster] : 1.0f,
                                             call.lse.data() + bh * problem_.n, nullptr);
                     for (Index r = 0; r < tile.rows; ++r) {
                       auto to = grads.dq.head(bh).row(query[r]);
                       to = row(attention.dq(r), d_k);
                       if (whole(problem_)) to += share;
                     }
                   });
  for (Index j = 0; j < count; ++j) {
    float* const to = dtop + j * (d_k + d_v);
    for (Index x = 0; x < d_k; ++x) to[x] += attention.dk(j)[x];
    for (Index x = 0; x < d_v; ++x) to[d_k + x] += attention.dv(j)[x];
  }
}

// Adds dtop_ of all clusters to the keys [first, last), cluster after cluster.
void ClusteredMethod::add_key_gradients(const ClusteredCall& call, Index bh, Index first,
                                        Index last, const Gradients& grads) const {
  const Index k = top_k(problem_), d_k = problem_.d_k, d_v = problem_.d_v;
  float* const dk = grads.dk.head(bh).data();
  float* const dv = grads.dv.head(bh).data();
  for (Index cluster = bh * clusters(); cluster < (bh + 1) * clusters(); ++cluster) {
    const std::int32_t* const top = call.top.data() + cluster * k;
    const std::int32_t* const end = top + call.count[cluster];
    for (const std::int32_t* key = std::lower_bound(top, end, first); key < end && *key < last;
         ++key) {
      const float* const from = dtop_.data() + (cluster * k + (key - top)) * (d_k + d_v);
      for (Index x = 0; x < d_k; ++x) dk[*key * d_k + x] += from[x];
      for (Index x = 0; x < d_v; ++x) dv[*key * d_v + x] += from[d_k + x];
    }
  }
}

bool ClusteredMethod::attention_rows(const Inputs& in, Index b, Index h,
                                     std::span<const Index> rows, Eigen::Ref<Matrix> weights) {
  grow_scratch();
  ClusteredCall call = make_call();
  find_centroids(in, call);
  const Index k = top_k(problem_), bh = b * problem_.heads + h, n_kv = problem_.n_kv;
  if (k > 0) choose_keys(in, call);
  const auto real = keys_of_batch(in, b);
  const auto keys = in.k.head(bh);
  // softmax over the keys that `sees` lets through, in double; zero when there are none.
  const auto softmax = [&](const auto& query, const auto& sees) {
    VectorD s(n_kv);
    double max = -std::numeric_limits<double>::infinity();
    for (Index j = 0; j < n_kv; ++j) {
      s[j] = problem_.logit_scale() *
             query.template cast<double>().dot(keys.row(j).template cast<double>());
      if (sees(j)) max = std::max(max, s[j]);
    }
    for (Index j = 0; j < n_kv; ++j) s[j] = sees(j) ? std::exp(s[j] - max) : 0;
    const double sum = s.sum();
    if (sum > 0) s /= sum;
    return s;
  };
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const Index cluster = bh * clusters() + call.groups.cluster[bh * problem_.n + rows[r]];
    std::vector<bool> top(static_cast<std::size_t>(n_kv), false);
    for (Index x = 0; k > 0 && x < call.count[cluster]; ++x)
      top[static_cast<std::size_t>(call.top[cluster * k + x])] = true;
    VectorD row = VectorD::Zero(n_kv);
    double mass = 1;
    if (whole(problem_)) {
      const Eigen::Map<const RowVector> centroid(call.centroid.data() + cluster * problem_.d_k,
                                                 problem_.d_k);
      row = softmax(centroid, [&](Index j) {
        return real.empty() || real[static_cast<std::size_t>(j)] != 0;
      });
      mass = 0;
      for (Index j = 0; j < n_kv; ++j)
        if (top[static_cast<std::size_t>(j)]) mass += std::exchange(row[j], 0.0);
    }
    if (k > 0)
      row += mass * softmax(in.q.head(bh).row(rows[r]), [&](Index j) {
               return top[static_cast<std::size_t>(j)] && j < problem_.visible(rows[r]);
             });
    weights.row(static_cast<Index>(r)) = row.transpose().cast<float>();
  }
  return true;
}

double ClusteredMethod::extra_bytes(const Problem& p, Pass pass) const {
  const bool gradients = pass == Pass::backward || pass == Pass::forward_backward;
  const Index all = p.batch * p.heads, count = QueryClusters::clusters(p, options_);
  const Index k = top_k(p), each = all * count, d_v = whole(p) ? p.d_v : 0;
  double call = QueryGroups::bytes(all, p.n, count) +
                4.0 * static_cast<double>(each * (p.d_k + d_v + (whole(p) ? 1 : 0)));
  if (k > 0) call += 4.0 * static_cast<double>(each * (k + 2 + d_v) + all * p.n);
  const Problem centroids = centroid_problem(p, count);
  double bytes = QueryClusters::bytes(p, options_) + (gradients ? 2 : 1) * call;
  if (whole(p))
    bytes += TiledAttention::work_bytes(centroids, Pattern::of(Band::dense(centroids)), gradients);
  bytes += 4.0 * static_cast<double>(thread_count() * Sizes(p, k, gradients).total(k)) +
           static_cast<double>(thread_count() * 2 * k) * static_cast<double>(sizeof(Candidate));
  if (gradients)
    bytes += 4.0 *
             static_cast<double>(each * (k * (p.d_k + p.d_v) + (whole(p) ? p.d_k + p.d_v + 1 : 0)));
  return bytes;
}

// Hashing, centroids against all keys (with top_k their scores twice), members against T_c; without
// Lloyd's algorithm, which counts bits.
double ClusteredMethod::flops(const Problem& p, Pass pass) const {
  const auto heads = static_cast<double>(p.batch * p.heads);
  const auto d_k = static_cast<double>(p.d_k), d_v = static_cast<double>(p.d_v);
  const auto count = static_cast<double>(QueryClusters::clusters(p, options_));
  const auto n = static_cast<double>(p.n), n_kv = static_cast<double>(p.n_kv);
  const auto k = static_cast<double>(top_k(p));
  const double centroids = whole(p) ? 2 * heads * count * n_kv : 0, members = 2 * heads * n * k;
  const double hashing = 2 * heads * n * static_cast<double>(options_.bits) * d_k;
  const double choice = k > 0 ? 2 * heads * count * n_kv * d_k : 0;
  const double forward = hashing + choice + (centroids + members) * (d_k + d_v);
  const double backward = (centroids + members) * (3 * d_k + 2 * d_v);
  if (pass == Pass::forward) return forward;
  return pass == Pass::backward ? backward : forward + backward;
}

}  // namespace subquad
