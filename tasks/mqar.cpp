// MQAR, multi-query associative recall: key-value pairs first, later each key once more, where its
// value has to be recalled.
// Source: Arora et al. 2024 (Zoology), arXiv 2312.04927; generator zoology/data/multiquery_ar.py.
//
// A sequence of even length N with n pairs, passes P and context c = 2 n P:
//   keys distinct in [1, V/2), values distinct in [V/2, V), fresh for every sequence;
//   x[2j] = key_j, x[2j+1] = value_j, repeated P times;
//   slot s = 0 .. (N - c)/2 - 1 is position c + 2s; n distinct slots are drawn one after another
//   with weights p_s proportional to (s+1)^(a-1), the j-th holds key_j again, and the label there
//   is value_j. All else is filler: 0, or uniform over the vocabulary.
// Slots are drawn as the n smallest of T_s = E_s / p_s with E_s exponential: the same law.
//
// Q, K, V until a model supplies them (our choice): what a trained induction head computes. With a
// unit vector C[token] per head and a normal U[token],
//   q_t = r C[x_t],   k_t = r C[x_{t-1}],   v_t = U[x_t],   scale r^2 = sharpness,
// so that a query's logit is `sharpness` at the value that follows its key and near 0 elsewhere.

#include <cmath>

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  Index vocabulary = 8192;
  Index pairs = 0;
  double power_a = 0.01;
  Index passes = 1;
  bool random_non_queries = true;
  double sharpness = 16;
};

struct Sequence {
  std::vector<std::int32_t> tokens, labels;
};

class Mqar final : public Task {
 public:
  explicit Mqar(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    if (p.n_kv < p.n) return fmt::format("mqar needs n_kv >= n, got n={} and n_kv={}", p.n, p.n_kv);
    if (p.n_kv < min_length())
      return fmt::format("mqar with passes={} needs n_kv >= {}, got n_kv={}", params_.passes,
                         min_length(), p.n_kv);
    return "";
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    const Index length = p.n_kv, even = length - length % 2;
    const Index pairs =
        std::min({wanted_pairs(even), even / (2 * params_.passes + 2), params_.vocabulary / 2 - 1});
    const std::vector<double> waiting = mean_waits(even, pairs);
    std::vector<Sequence> sequences;
    for (Index b = 0; b < p.batch; ++b)
      sequences.push_back(
          generate(derive(seed, "mqar.qkv",
                          {static_cast<std::uint64_t>(set), static_cast<std::uint64_t>(b)}),
                   length, pairs, waiting));

    const double scale = p.logit_scale();
    const double r = std::sqrt(params_.sharpness / std::fabs(scale));
    const float sign = scale < 0 ? -1.0f : 1.0f;
    const auto code = [&](Index h, std::int32_t token, float* to) {  // r C[token] of head h
      fill_normal(derive(seed, "mqar.code",
                         {static_cast<std::uint64_t>(h), static_cast<std::uint64_t>(token)}),
                  to, p.d_k);
      const double factor = r / std::sqrt(dot(to, to, p.d_k));
      for (Index c = 0; c < p.d_k; ++c)
        to[c] = static_cast<float>(factor * static_cast<double>(to[c]));
    };
    const Index offset = p.causal_offset();  // position of query 0
    for_rows(p.batch, p.heads, length, [&](Index b, Index h, Index begin, Index end) {
      const std::vector<std::int32_t>& x = sequences[static_cast<std::size_t>(b)].tokens;
      float* q = out->q.view().head_data(b, h);
      float* k = out->k.view().head_data(b, h);
      float* v = out->v.view().head_data(b, h);
      std::vector<float> row(static_cast<std::size_t>(p.d_k));
      if (begin == 0) code(h, static_cast<std::int32_t>(params_.vocabulary), k);  // nothing before
      for (Index t = begin; t < end; ++t) {
        const std::int32_t token = x[static_cast<std::size_t>(t)];
        code(h, token, row.data());
        if (t + 1 < length) std::copy(row.begin(), row.end(), k + (t + 1) * p.d_k);
        if (t >= offset)
          for (Index c = 0; c < p.d_k; ++c)
            q[(t - offset) * p.d_k + c] = sign * row[static_cast<std::size_t>(c)];
        fill_normal(derive(seed, "mqar.value",
                           {static_cast<std::uint64_t>(h), static_cast<std::uint64_t>(token)}),
                    v + t * p.d_v, p.d_v);
      }
    });
  }

  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, params_.vocabulary, params_.vocabulary, 1};
  }

  // Unsupported where the generator is not defined: n odd, too short for the pairs and their
  // queries, or not below the vocabulary.
  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    const Index pairs = wanted_pairs(n), needed = 2 * pairs * params_.passes + 2 * pairs;
    if (n % 2 != 0) throw Unsupported(fmt::format("mqar: n={} is odd, expected an even n", n));
    if (needed > n)
      throw Unsupported(fmt::format("mqar: {} pairs in {} passes need n >= {}, got n={}", pairs,
                                    params_.passes, needed, n));
    if (params_.vocabulary <= n)
      throw Unsupported(
          fmt::format("mqar: vocabulary={}, expected more than n={}", params_.vocabulary, n));
    const std::vector<double> waiting = mean_waits(n, pairs);
    TokenBatch out;
    out.batch = batch;
    out.n = n;
    out.tokens.resize(static_cast<std::size_t>(batch * n));
    out.labels.resize(out.tokens.size());
    parallel_for(batch, [&](Index e, int) {
      const Sequence sequence = generate(
          derive(seed, "mqar.tokens",
                 {static_cast<std::uint64_t>(split), static_cast<std::uint64_t>(first + e)}),
          n, pairs, waiting);
      std::copy(sequence.tokens.begin(), sequence.tokens.end(), out.tokens.begin() + e * n);
      std::copy(sequence.labels.begin(), sequence.labels.end(), out.labels.begin() + e * n);
    });
    return out;
  }

  std::vector<Floor> floors(Index n, Seed) const override {
    return {{"random value", "accuracy",
             1.0 / static_cast<double>(params_.vocabulary - params_.vocabulary / 2)},
            {"any value of the sequence", "accuracy", 1.0 / static_cast<double>(wanted_pairs(n))}};
  }

 private:
  Index min_length() const { return 2 * params_.passes + 2; }  // one pair and its query

  // Pairs for length n; 0 in the parameters means n / 16, as in the paper up to n = 256.
  Index wanted_pairs(Index n) const {
    return params_.pairs > 0 ? params_.pairs : std::max<Index>(1, n / 16);
  }

  // 1 / p_s, up to a factor, for every slot of length n.
  std::vector<double> mean_waits(Index n, Index pairs) const {
    const Index slots = (n - 2 * pairs * params_.passes) / 2;
    std::vector<double> waits;
    for (Index s = 0; s < slots; ++s)
      waits.push_back(
          portable_exp((1 - params_.power_a) * portable_log(static_cast<double>(s + 1))));
    return waits;
  }

  // One sequence of length n (of the last even length and one more filler if n is odd). Keys,
  // values, slots and filler have streams of their own: a switch moves nothing else.
  Sequence generate(Seed seed, Index n, Index pairs, const std::vector<double>& waits) const {
    const Index context = 2 * pairs * params_.passes, half = params_.vocabulary / 2;
    Sequence out;
    out.tokens.assign(static_cast<std::size_t>(n), 0);
    out.labels.assign(static_cast<std::size_t>(n), kIgnore);
    if (params_.random_non_queries) {
      Random random(seed, "filler");
      for (Index t = context; t < n; ++t)
        out.tokens[static_cast<std::size_t>(t)] =
            static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(params_.vocabulary)));
    }
    const std::vector<Index> keys =
        Random(seed, "keys").sample_without_replacement(half - 1, pairs);  // less 1
    const std::vector<Index> values =
        Random(seed, "values").sample_without_replacement(params_.vocabulary - half, pairs);

    Random random(seed, "slots");
    std::vector<std::pair<double, Index>> slots;  // waiting time, slot
    for (std::size_t s = 0; s < waits.size(); ++s)
      slots.emplace_back(random.exponential() * waits[s], static_cast<Index>(s));
    std::partial_sort(slots.begin(), slots.begin() + pairs, slots.end());

    for (Index j = 0; j < pairs; ++j) {
      const auto key = static_cast<std::int32_t>(keys[static_cast<std::size_t>(j)] + 1);
      const auto value = static_cast<std::int32_t>(values[static_cast<std::size_t>(j)] + half);
      for (Index pass = 0; pass < params_.passes; ++pass) {
        out.tokens[static_cast<std::size_t>(2 * (pass * pairs + j))] = key;
        out.tokens[static_cast<std::size_t>(2 * (pass * pairs + j) + 1)] = value;
      }
      const auto query =
          static_cast<std::size_t>(context + 2 * slots[static_cast<std::size_t>(j)].second);
      out.tokens[query] = key;
      out.labels[query] = value;
    }
    return out;
  }

  Params params_;
};

const RegisterTask<Mqar, Params> kRegistration{
    {.name = "mqar",
     .source = "Arora et al. 2024 (Zoology), arXiv 2312.04927",
     .summary = "multi-query associative recall: the value of each key, later in the sequence",
     .labelled = true,
     .notes =
         {"tokens need an even n, 2 pairs (passes + 1) <= n and vocabulary > n",
          "Q, K, V come from a fixed random embedding (ours): q holds its token, k the token "
          "before, v its token, so exact attention finds the value after the key; d_k of 16 or "
          "more keeps the random codes apart",
          "Q, K, V take any n_kv >= 2 passes + 2: pairs are reduced to what fits into n_kv and the "
          "vocabulary, an odd n_kv ends in one more filler token; queries are the last n tokens",
          "without a causal mask a query also finds the token that follows itself, which takes "
          "about half of its mass",
          "random_non_queries is false in figure 2 of the paper and true in its later protocol",
          "sets differ in their sequences; the embedding depends on the seed alone"}},
    {param("vocabulary", &Params::vocabulary, {4, 1 << 24},
           "token ids; keys are the lower half, values the upper"),
     param("pairs", &Params::pairs, {0, 1 << 20}, "key-value pairs; 0 = n / 16"),
     param("power_a", &Params::power_a, {0, 1},
           "where queries stand: near 0 = soon after the context, 1 = anywhere"),
     param("passes", &Params::passes, {1, 1024}, "times the pairs are repeated"),
     param("random_non_queries", &Params::random_non_queries,
           "fill the rest with random tokens instead of 0"),
     param("sharpness", &Params::sharpness, {0, 1000},
           "logit of a query at its value, above unrelated keys (Q, K, V only)")}};

}  // namespace
}  // namespace subquad
