// Attention inside buckets of locality-sensitive hashing, LSH-r: r rounds of hashing.
// Source: Kitaev et al. 2020 (Reformer, arXiv 2001.04451), in the form that Katharopoulos et al.
// 2020 (arXiv 2006.16236) compare with. Queries are their own keys: k_j = q_j / |q_j|, the input k
// is ignored. In round r, with `bits` Gaussian planes P_r [bits, d_k] common to all heads:
//   bucket_j = argmax [k_j P_r^T, -k_j P_r^T];  sort by (bucket, j);  cut into chunks of `chunk`
//   S_ri = tokens of i's chunk and of the one before it, causal: those <= i, without i itself
//   o_ri = sum_{j in S_ri} softmax_j(scale q_i . k_j) v_j,  l_ri = log-sum-exp of those logits
// A token that sees nobody else sees itself. Rounds are combined by
//   mean: out_i = sum_r o_ri / rounds          lse: out_i = sum_r exp(l_ri) o_ri / sum_r exp(l_ri)
// Our choices where sources differ or are silent: the planes come from the seed instead of every
// call; the last chunk of a round may be shorter; the first one has none before it; a padded token
// sorts behind all others, so that it takes nobody's place; a key seen in several rounds counts as
// often (the Reformer paper discounts it); under `lse` a round in which a token is alone has no
// weight unless all are such rounds. Buckets count as constants in the gradient.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"
#include "methods/engines/band.h"
#include "methods/engines/gathered_attention.h"
#include "methods/engines/lsh.h"

namespace subquad {
namespace {

using engine::kInfinity;

struct Params {
  Index rounds = 4;
  Index bits = 32;
  Index chunk = 32;
  std::string round_combine = "mean";
  bool attend_self = false;
};

constexpr Index kTokens = 256;  // of a work item that goes through all tokens

// What hashing found, and what attention left.
struct Plan final : Saved {
  Plan(Index heads, Index rounds, Index n)
      : order(heads * rounds * n), lse(heads * rounds * n), total(heads * n), inverse(heads * n) {}
  static double bytes(Index heads, Index rounds, Index n) {
    return 4.0 * static_cast<double>(heads * n * (2 * rounds + 2));
  }
  AlignedArray<std::int32_t> order;  // [heads, rounds, n] tokens chunk by chunk, ascending inside
  AlignedArray<float> lse;           // [heads, rounds, n] l_ri by token; -infinity: alone
  AlignedArray<float> total;         // [heads, n] log sum_r exp(l_ri); of round_combine lse
  AlignedArray<float> inverse;       // [heads, n] 1 / |q_i|, 0 for q_i = 0
};

class Reformer final : public Method {
 public:
  explicit Reformer(const Params& params) : params_(params) {}

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    gradients_ = env.gradients;
    planes_.prepare(params_.rounds * params_.bits, problem.d_k, false,
                    derive(env.seed, "reformer.planes"));
    plan_ = Plan(heads(), params_.rounds, problem.n);
    bucket_ = AlignedArray<std::int32_t>(heads() * params_.rounds * problem.n);
    delta_ = AlignedArray<float>(gradients_ ? heads() * problem.n : 0);
    scratch_ = {};
    lists_ = {};
    grow_scratch();
  }
  std::unique_ptr<Saved> make_saved() const override {
    return std::make_unique<Plan>(heads(), params_.rounds, problem_.n);
  }

  // Time O(rounds n (bits d_k + chunk (d_k + d_v))), extra memory O(rounds n).
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    grow_scratch();
    Plan& plan = saved == nullptr ? plan_ : static_cast<Plan&>(*saved);
    make_plan(in, plan);
    for_head_groups([&](Index first, Index count) {
      for (Index round = 0; round < params_.rounds; ++round)  // out is added up round after round
        parallel_for(count * chunks(), [&](Index item, int thread) {
          attend_chunk(in, plan, first + item / chunks(), round, item % chunks(), thread, out);
        });
    });
  }

  // Chunk b writes to the tokens of chunks b - 1 and b: all even ones at once, then all odd ones.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    grow_scratch();
    const Plan& plan = static_cast<const Plan&>(saved);
    start_gradients(in, plan, out, dout, grads);
    for_head_groups([&](Index first, Index count) {
      for (Index round = 0; round < params_.rounds; ++round)
        for (const Index parity : {0, 1}) {
          const Index every_other = (chunks() + 1 - parity) / 2;
          parallel_for(count * every_other, [&](Index item, int thread) {
            differentiate_chunk(in, plan, first + item / every_other, round,
                                2 * (item % every_other) + parity, thread, dout, grads);
          });
        }
    });
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override;

  Budget budget(const Problem& p) const override {
    const auto keys = static_cast<double>(2 * params_.rounds * params_.chunk);
    return {.keys_per_query = std::min(keys, static_cast<double>(p.n_kv))};
  }
  double extra_bytes(const Problem& p, Pass pass) const override {
    const bool gradients = pass == Pass::backward || pass == Pass::forward_backward;
    const Index all = p.batch * p.heads;
    const double plan = Plan::bytes(all, params_.rounds, p.n);
    const Index each = scratch_floats(p, gradients) + list_ints(p);
    return (gradients ? 2 : 1) * plan + Hyperplanes::bytes(params_.rounds * params_.bits, p.d_k) +
           4.0 * static_cast<double>(all * p.n * (params_.rounds + (gradients ? 1 : 0)) +
                                     thread_count() * each);
  }
  // Hashing, and the pairs of queries and keys; half of them when causal, on average.
  double flops(const Problem& p, Pass pass) const override {
    const Index c = std::min(params_.chunk, p.n), whole = (p.n - 1) / c, rest = p.n - whole * c;
    double pairs = static_cast<double>(c * c + rest * c);
    if (whole > 0) pairs += static_cast<double>((whole - 1) * 2 * c * c + rest * rest);
    if (whole == 0) pairs = static_cast<double>(rest * rest);
    if (p.causal) pairs /= 2;
    const auto rounds = static_cast<double>(params_.rounds * p.batch * p.heads);
    const auto d_k = static_cast<double>(p.d_k), d_v = static_cast<double>(p.d_v);
    const double hashing = 2 * rounds * static_cast<double>(p.n * params_.bits) * d_k;
    const double forward = hashing + 2 * rounds * pairs * (d_k + d_v);
    const double backward = 2 * rounds * pairs * (3 * d_k + 2 * d_v);
    if (pass == Pass::forward) return forward;
    return pass == Pass::backward ? backward : forward + backward;
  }

 private:
  struct Lists {  // of one chunk of one thread, [2 chunk] and three times [chunk]
    std::int32_t *keys, *visible, *hidden;
    Index count;  // keys
  };

  Index heads() const { return problem_.batch * problem_.heads; }
  Index chunk() const { return std::min(params_.chunk, problem_.n); }
  Index chunks() const { return (problem_.n + chunk() - 1) / chunk(); }
  Index buckets() const { return 2 * params_.bits + 1; }  // the last one: padding
  bool by_lse() const { return params_.round_combine == "lse"; }

  // Calls body(first head, heads) for groups that have work for every thread but, of long
  // sequences, few heads: all rounds find their rows in the cache.
  template <class Body>
  void for_head_groups(Body&& body) const {
    constexpr Index kItems = 512;
    const Index group = std::max<Index>(1, kItems / chunks());
    for (Index first = 0; first < heads(); first += group)
      body(first, std::min(group, heads() - first));
  }

  Index list_ints(const Problem& p) const {
    const Index c = std::min(params_.chunk, p.n);
    return std::max(4 * c, buckets() + 1 + (p.n + c - 1) / c);
  }
  Index scratch_floats(const Problem& p, bool gradients) const {
    const Index c = std::min(params_.chunk, p.n);
    return std::max(
        Hyperplanes::scratch_floats(params_.rounds * params_.bits, p.d_k),
        GatheredAttention::floats(std::min(c, kGatheredRows), 2 * c, p.d_k, p.d_v, gradients));
  }
  void grow_scratch() {
    const Index floats = thread_count() * scratch_floats(problem_, gradients_);
    const Index ints = thread_count() * list_ints(problem_);
    if (scratch_.size() < floats) scratch_ = AlignedArray<float>(floats);
    if (lists_.size() < ints) lists_ = AlignedArray<std::int32_t>(ints);
  }
  float* scratch(int thread) {
    return scratch_.data() + thread * scratch_floats(problem_, gradients_);
  }
  std::int32_t* ints(int thread) { return lists_.data() + thread * list_ints(problem_); }
  const std::int32_t* order(const Plan& plan, Index bh, Index round) const {
    return plan.order.data() + (bh * params_.rounds + round) * problem_.n;
  }
  Index lse_at(Index bh, Index round, Index i) const {
    return (bh * params_.rounds + round) * problem_.n + i;
  }
  GatheredHead head(const Inputs& in, const Plan& plan, Index bh) const {
    const float* const q = in.q.head(bh).data();
    return {q, q, in.v.head(bh).data(), plan.inverse.data() + bh * problem_.n,
            static_cast<float>(problem_.logit_scale())};
  }
  bool real(const Inputs& in, Index bh, Index j) const {
    const auto mask = keys_of_batch(in, bh / problem_.heads);
    return mask.empty() || mask[static_cast<std::size_t>(j)] != 0;
  }

  // How much of token i's own value its output holds because it was alone.
  float own_share(const Inputs& in, const Plan& plan, Index bh, Index i) const {
    Index alone = 0;
    for (Index round = 0; round < params_.rounds; ++round)
      if (plan.lse[lse_at(bh, round, i)] == -kInfinity) ++alone;
    if (alone == 0 || !real(in, bh, i)) return 0;
    if (by_lse()) return alone == params_.rounds ? 1.0f : 0.0f;
    return static_cast<float>(alone) / static_cast<float>(params_.rounds);
  }

  void make_plan(const Inputs& in, Plan& plan);
  Lists list_chunk(const Inputs& in, const Plan& plan, Index bh, Index round, Index b,
                   std::int32_t* memory) const;
  void attend_chunk(const Inputs& in, Plan& plan, Index bh, Index round, Index b, int thread,
                    TensorView out);
  void add_round(const Inputs& in, Plan& plan, Index bh, Index round, Index i, const float* o,
                 float* out) const;
  void start_gradients(const Inputs& in, const Plan& plan, ConstTensorView out,
                       ConstTensorView dout, const Gradients& grads);
  void differentiate_chunk(const Inputs& in, const Plan& plan, Index bh, Index round, Index b,
                           int thread, ConstTensorView dout, const Gradients& grads);

  Params params_;
  Problem problem_;
  bool gradients_ = false;
  Hyperplanes planes_;                 // [rounds * bits, d_k]
  Plan plan_{0, 0, 0};                 // of calls that save nothing
  AlignedArray<std::int32_t> bucket_;  // [heads, rounds, n]
  AlignedArray<float> delta_;          // [heads, n] dout_i . out_i
  AlignedArray<float> scratch_;        // [threads, scratch_floats]
  AlignedArray<std::int32_t> lists_;   // [threads, list_ints]
};

// Hashes every token for all rounds, then sorts every round.
void Reformer::make_plan(const Inputs& in, Plan& plan) {
  const Index n = problem_.n, items = (n + kHashTokens - 1) / kHashTokens;
  parallel_for(heads() * items, [&](Index item, int thread) {
    const Index bh = item / items, first = item % items * kHashTokens;
    const Index tokens = std::min(kHashTokens, n - first);
    float squares[kHashTokens];
    std::int32_t bucket[kHashTokens];
    const float* const projections = planes_.project(in.q.head(bh).data() + first * problem_.d_k,
                                                     tokens, scratch(thread), squares);
    for (Index t = 0; t < tokens; ++t)
      plan.inverse[bh * n + first + t] = squares[t] > 0 ? 1 / std::sqrt(squares[t]) : 0;
    for (Index round = 0; round < params_.rounds; ++round) {
      farthest_plane(projections + round * params_.bits * kHashTokens, params_.bits, bucket);
      for (Index t = 0; t < tokens; ++t)
        bucket_[lse_at(bh, round, first + t)] =
            real(in, bh, first + t) ? bucket[t] : static_cast<std::int32_t>(buckets() - 1);
    }
  });
  parallel_for(heads() * params_.rounds, [&](Index item, int thread) {
    // Inside a chunk the order of tokens is free: by position the causal mask is a prefix.
    std::int32_t* const starts = ints(thread);
    sort_into_chunks(bucket_.data() + item * n, n, buckets(), chunk(), plan.order.data() + item * n,
                     starts, starts + buckets() + 1);
  });
}

// The keys that chunk b sees, by position, and for each of its queries how many of them it may see
// and which of them is itself.
Reformer::Lists Reformer::list_chunk(const Inputs& in, const Plan& plan, Index bh, Index round,
                                     Index b, std::int32_t* memory) const {
  const Index c = chunk(), n = problem_.n;
  const std::int32_t* const sorted = order(plan, bh, round);
  const std::int32_t* const begin = sorted + b * c;
  const std::int32_t* const end = sorted + std::min(n, (b + 1) * c);
  const std::int32_t *before = b > 0 ? begin - c : begin, *own = begin;
  Lists lists{memory, memory + 2 * c, memory + 3 * c, 0};
  const auto mask = keys_of_batch(in, bh / problem_.heads);
  // No branch depends on the order of tokens, which nobody could predict: what is written for the
  // next query holds once that query has been taken.
  const auto take = [&](std::int32_t token, bool is_own) {
    const Index counts = mask.empty() || mask[static_cast<std::size_t>(token)] != 0 ? 1 : 0;
    const Index r = own - begin;
    lists.keys[lists.count] = token;
    lists.visible[r] = static_cast<std::int32_t>(lists.count + counts);
    lists.hidden[r] = static_cast<std::int32_t>(counts == 1 ? lists.count : -1);
    lists.count += counts;
    own += is_own ? 1 : 0;
    before += is_own ? 0 : 1;
  };
  while (before < begin && own < end) take(std::min(*before, *own), *own < *before);
  while (own < end) take(*own, true);
  for (; before < begin; ++before)  // behind every query: nothing to note
    if (mask.empty() || mask[static_cast<std::size_t>(*before)] != 0)
      lists.keys[lists.count++] = *before;
  const auto queries = end - begin;
  if (!problem_.causal) std::fill_n(lists.visible, queries, static_cast<std::int32_t>(lists.count));
  if (params_.attend_self) std::fill_n(lists.hidden, queries, -1);
  return lists;
}

void Reformer::attend_chunk(const Inputs& in, Plan& plan, Index bh, Index round, Index b,
                            int thread, TensorView out) {
  const Index c = chunk(), d_v = problem_.d_v;
  const Lists lists = list_chunk(in, plan, bh, round, b, ints(thread));
  GatheredAttention block(std::min(c, kGatheredRows), 2 * c, problem_.d_k, d_v, false,
                          scratch(thread));
  const GatheredHead from = head(in, plan, bh);
  block.load_keys(from, lists.keys, lists.count);
  const std::int32_t* const query = order(plan, bh, round) + b * c;
  const Index queries = std::min(c, problem_.n - b * c);
  request_rows(out.head(bh).data(), d_v, query, queries);
  for (Index first = 0; first < queries; first += kGatheredRows) {
    const Index rows = std::min(kGatheredRows, queries - first);
    block.attend(from, {query + first, rows, lists.visible + first, lists.hidden + first});
    for (Index r = 0; r < rows; ++r) {
      const Index i = query[first + r];
      plan.lse[lse_at(bh, round, i)] = block.lse(r);
      add_round(in, plan, bh, round, i, block.out(r), out.head(bh).data() + i * d_v);
    }
  }
}

// out [d_v] takes o [d_v] of this round; after the last one also what a token gives itself.
void Reformer::add_round(const Inputs& in, Plan& plan, Index bh, Index round, Index i,
                         const float* o, float* out) const {
  const Index d_v = problem_.d_v;
  float keep = 1, add = 1.0f / static_cast<float>(params_.rounds);
  if (by_lse()) {
    float& total = plan.total[bh * problem_.n + i];
    const float own = plan.lse[lse_at(bh, round, i)];
    if (round == 0) total = -kInfinity;
    const float largest = std::max(total, own);
    if (largest == -kInfinity) {
      keep = add = 0;
    } else {
      const float next = largest + std::log(std::exp(total - largest) + std::exp(own - largest));
      keep = std::exp(total - next);
      add = std::exp(own - next);
      total = next;
    }
  }
  if (round == 0) {
    for (Index c = 0; c < d_v; ++c) out[c] = add * o[c];
  } else {
    for (Index c = 0; c < d_v; ++c) out[c] = keep * out[c] + add * o[c];
  }
  if (round + 1 < params_.rounds) return;
  const float share = own_share(in, plan, bh, i);
  if (share == 0) return;
  const float* const v = in.v.head(bh).data() + i * d_v;
  for (Index c = 0; c < d_v; ++c) out[c] += share * v[c];
}

// Clears the gradients but for what tokens give themselves.
void Reformer::start_gradients(const Inputs& in, const Plan& plan, ConstTensorView out,
                               ConstTensorView dout, const Gradients& grads) {
  const Index n = problem_.n, items = (n + kTokens - 1) / kTokens;
  parallel_for(heads() * items, [&](Index item, int) {
    const Index bh = item / items, first = item % items * kTokens;
    const Index tokens = std::min(kTokens, n - first);
    grads.dq.head(bh).middleRows(first, tokens).setZero();
    grads.dk.head(bh).middleRows(first, tokens).setZero();
    for (Index i = first; i < first + tokens; ++i) {
      const auto g = dout.head(bh).row(i);
      delta_[bh * n + i] = g.dot(out.head(bh).row(i));
      const float share = own_share(in, plan, bh, i);
      if (share == 0)
        grads.dv.head(bh).row(i).setZero();
      else
        grads.dv.head(bh).row(i) = share * g;
    }
  });
}

// As a query token i gets dq_i; as a key, through k_j = q_j / |q_j|, (dk_j - (dk_j . k_j) k_j) /
// |q_j|.
void Reformer::differentiate_chunk(const Inputs& in, const Plan& plan, Index bh, Index round,
                                   Index b, int thread, ConstTensorView dout,
                                   const Gradients& grads) {
  const Index c = chunk(), d_k = problem_.d_k, d_v = problem_.d_v, n = problem_.n;
  const Lists lists = list_chunk(in, plan, bh, round, b, ints(thread));
  GatheredAttention block(std::min(c, kGatheredRows), 2 * c, d_k, d_v, true, scratch(thread));
  const GatheredHead from = head(in, plan, bh);
  block.load_keys(from, lists.keys, lists.count);
  float* const dq = grads.dq.head(bh).data();
  float* const dv = grads.dv.head(bh).data();
  request_rows(dq, d_k, lists.keys, lists.count);
  request_rows(dv, d_v, lists.keys, lists.count);
  // lse: one softmax over all rounds. mean: one of each round, whose output counts 1 / rounds.
  const float factor = by_lse() ? 1.0f : 1.0f / static_cast<float>(params_.rounds);
  const float* const lse =
      by_lse() ? plan.total.data() + bh * n : plan.lse.data() + lse_at(bh, round, 0);
  const float* const delta = by_lse() ? delta_.data() + bh * n : nullptr;
  const std::int32_t* const query = order(plan, bh, round) + b * c;
  const Index queries = std::min(c, n - b * c);
  for (Index first = 0; first < queries; first += kGatheredRows) {
    const Index rows = std::min(kGatheredRows, queries - first);
    block.differentiate(from, {query + first, rows, lists.visible + first, lists.hidden + first},
                        dout.head(bh).data(), factor, lse, delta);
    for (Index r = 0; r < rows; ++r) {
      float* const to = dq + query[first + r] * d_k;
      for (Index x = 0; x < d_k; ++x) to[x] += block.dq(r)[x];
    }
  }
  for (Index j = 0; j < lists.count; ++j) {
    const Index token = lists.keys[j];
    const float inverse = plan.inverse[bh * n + token];
    const float *const key = block.key(j), *const g = block.dk(j), *const value = block.dv(j);
    const float along = Eigen::Map<const Vector>(key, d_k).dot(Eigen::Map<const Vector>(g, d_k));
    float* const to = dq + token * d_k;
    for (Index x = 0; x < d_k; ++x) to[x] += inverse * (g[x] - along * key[x]);
    for (Index x = 0; x < d_v; ++x) dv[token * d_v + x] += value[x];
  }
}

bool Reformer::attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                              Eigen::Ref<Matrix> weights) {
  grow_scratch();
  Plan plan(heads(), params_.rounds, problem_.n);
  make_plan(in, plan);
  const Index bh = b * problem_.heads + h, c = chunk();
  const auto q = in.q.head(bh);
  std::vector<std::int32_t> memory(static_cast<std::size_t>(list_ints(problem_)));
  struct Entry {
    Index round, key;
    double logit;
  };
  std::vector<std::vector<Entry>> seen(rows.size());
  for (Index round = 0; round < params_.rounds; ++round) {
    std::vector<Index> place(static_cast<std::size_t>(problem_.n));  // of every token
    for (Index at = 0; at < problem_.n; ++at)
      place[static_cast<std::size_t>(order(plan, bh, round)[at])] = at;
    for (std::size_t x = 0; x < rows.size(); ++x) {
      const Index at = place[static_cast<std::size_t>(rows[x])];
      const Lists lists = list_chunk(in, plan, bh, round, at / c, memory.data());
      for (Index j = 0; j < lists.visible[at % c]; ++j) {
        if (j == lists.hidden[at % c]) continue;
        const Index key = lists.keys[j];
        const double dot = q.row(rows[x]).cast<double>().dot(q.row(key).cast<double>());
        const auto inverse = static_cast<double>(plan.inverse[bh * problem_.n + key]);
        seen[x].push_back({round, key, problem_.logit_scale() * dot * inverse});
      }
    }
  }
  VectorD row(problem_.n);
  for (std::size_t x = 0; x < rows.size(); ++x) {
    row.setZero();
    double rounds_seen = 0;
    // One softmax for every round, or a single one.
    for (Index round = 0; round < (by_lse() ? 1 : params_.rounds); ++round) {
      const auto counts = [&](const Entry& e) { return by_lse() || e.round == round; };
      double largest = -std::numeric_limits<double>::infinity(), sum = 0;
      for (const Entry& e : seen[x])
        if (counts(e)) largest = std::max(largest, e.logit);
      for (const Entry& e : seen[x])
        if (counts(e)) sum += std::exp(e.logit - largest);
      if (sum == 0) continue;
      rounds_seen += 1;
      for (const Entry& e : seen[x])
        if (counts(e)) row[e.key] += std::exp(e.logit - largest) / sum;
    }
    const double rounds = by_lse() ? 1 : static_cast<double>(params_.rounds);
    if (real(in, bh, rows[x])) row[rows[x]] += rounds - rounds_seen;
    weights.row(static_cast<Index>(x)) = (row / rounds).cast<float>();
  }
  return true;
}

const RegisterMethod<Reformer, Params> kRegistration{
    {.name = "reformer",
     .family = "sparse_content",
     .source = "Kitaev et al. 2020, arXiv 2001.04451; as compared with in arXiv 2006.16236",
     .summary = "attention inside sorted hash buckets, several rounds; queries are their own keys",
     .approximates = Approximates::own_kernel,
     .causality = Causality::weights,
     .key_padding = true,
     .passes = {Pass::forward, Pass::backward},
     .random = true,
     .bounded_by = {"topk_exact"},
     .time_exponent = 1,
     .memory_exponent = 1,
     .notes =
         {"not strictly causal: which earlier tokens share a chunk depends on how many later ones "
          "fall into their buckets; no value of a later token is read",
          "k is ignored: keys are the queries divided by their length, and dk is zero. Its error "
          "against softmax of the given k is no mistake",
          "a key that is seen in several rounds counts as often",
          "no decoding: a new token changes the order of the old ones",
          "with chunk >= n, rounds 1 and attend_self it is softmax attention over normalised "
          "shared keys"}},
    {param("rounds", &Params::rounds, {1, 64}, "hashings, LSH-r"),
     param("bits", &Params::bits, {1, 512}, "planes of a round; there are twice as many buckets"),
     param("chunk", &Params::chunk, {1, 1 << 16},
           "tokens of a chunk; a query sees its own and the one before it"),
     choice("round_combine", &Params::round_combine, {"mean", "lse"},
            "rounds count alike, or by their log-sum-exp"),
     param("attend_self", &Params::attend_self,
           "a token sees itself as any other; else only when nobody else is seen")}};

}  // namespace
}  // namespace subquad
