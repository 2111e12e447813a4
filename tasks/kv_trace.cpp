// Queries, keys and values of a token stream whose attention moves: sinks, heavy hitters, salient
// tokens, and topics that drift and return. What KV-cache policies are judged on.
//
// Segments of max(8, exponential of mean `segment`) tokens each have a topic: with probability
// `p_rev` one that was there before, else a new one, while there are new ones. Per head, with unit
// vectors e_0 (sinks), e_1 (heavy hitters) and mu_c (topics, orthogonal to both), eps ~ N(0, I):
//   q_t = s (2.0 mu_c + 1.6 e_0 + 1.2 e_1 + 0.25 eps)
//   k_t = s (2.2 mu_c + 0.25 eps), of salient tokens (probability `salient`) times 1.35;
//         heavy hitters (probability `hh_rate`): s (2.5 e_1 + 0.25 eps); the first `sinks`: 2.5 s
//         e_0
//   v_t = m_c + 0.5 eps, m_c ~ N(0, I); of sinks times 0.05
// with s^2 scale = 1, so that logits are of order 1 to 5. Token embeddings x_t [d_e], for policies
// that read them: the sum of a unit vector each for the topic, and for salient, heavy and sink
// where they apply, + 0.1 eps. Our choices: a revisited topic is any earlier one but the present;
// heads share segments and the kind of every token and have vectors of their own; drift moves mu_c
// at the start of each of its segments, mu_c <- normalise(mu_c + drift eps); `topics` bounds the
// distinct ones. Embeddings: fixed are a function of the seed, so that a topic number means the
// same in all sets; with per_set those of the topics are drawn for every set: nothing learned about
// a topic helps with another set.

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  Index topics = 24;
  double segment = 64;
  double p_rev = 0.5;
  double hh_rate = 0.02;
  double salient = 0.15;
  double drift = 0;
  Index sinks = 4;
  Index d_e = 16;
  std::string embeddings = "fixed";
};

enum Kind { plain, salient_token, heavy_token, sink_token };

// The tokens of one batch item.
struct Stream {
  std::vector<Index> topic;     // [n]
  std::vector<Kind> kind;       // [n]
  std::vector<bool> beginning;  // [n] of a segment
};

class KvTrace final : public Task {
 public:
  explicit KvTrace(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    if (p.n != p.n_kv) return fmt::format("a stream has n_kv = n, got n={} n_kv={}", p.n, p.n_kv);
    if (p.d_k < 3)
      return fmt::format("sinks, heavy hitters and topics need d_k >= 3, got {}", p.d_k);
    return "";
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    fill_tensor(seed, "kv_trace.q", set, &out->q);
    fill_tensor(seed, "kv_trace.k", set, &out->k);
    fill_tensor(seed, "kv_trace.v", set, &out->v);
    out->x = Tensor(p.batch, 1, p.n, params_.d_e);
    fill_tensor(seed, "kv_trace.x", set, &out->x);
    std::vector<Stream> streams;
    for (Index b = 0; b < p.batch; ++b) {
      streams.push_back(make_stream(p.n, head_random(seed, "kv_trace.stream", set, b, 0)));
      embed(streams.back(), seed, set, b, out->x.view().head_data(b, 0));
    }
    for_heads(p.batch, p.heads, [&](Index b, Index h) {
      fill_head(p, streams[static_cast<std::size_t>(b)],
                head_random(seed, "kv_trace.head", set, b, h), out->q.view().head_data(b, h),
                out->k.view().head_data(b, h), out->v.view().head_data(b, h));
    });
  }

 private:
  Stream make_stream(Index n, Random random) const {
    Stream s;
    Index used = 0, now = -1, left = 0;
    for (Index t = 0; t < n; ++t) {
      const bool begins = left == 0;
      if (begins) {
        const double length = std::floor(params_.segment * random.exponential());
        left = std::max<Index>(8, static_cast<Index>(std::min(length, 1e9)));
        const bool returns = random.uniform() < params_.p_rev;
        if (used > 1 && (returns || used == params_.topics)) {
          const auto other = static_cast<Index>(random.below(static_cast<std::uint64_t>(used - 1)));
          now = other < now ? other : other + 1;
        } else if (used < params_.topics) {
          now = used++;
        }
      }
      --left;
      const double heavy = random.uniform(), salient = random.uniform();
      s.topic.push_back(now);
      s.beginning.push_back(begins);
      s.kind.push_back(t < params_.sinks           ? sink_token
                       : heavy < params_.hh_rate   ? heavy_token
                       : salient < params_.salient ? salient_token
                                                   : plain);
    }
    return s;
  }

  // x [n, d_e] holds standard normal noise, and then the embeddings.
  void embed(const Stream& s, Seed seed, Index set, Index b, float* x) const {
    const Index d = params_.d_e;
    Random fixed(seed, "kv_trace.kinds");
    const std::vector<double> kinds = directions(fixed, 3, d, false);  // salient, heavy, sink
    Random of_topics = params_.embeddings == "fixed"
                           ? Random(seed, "kv_trace.topics")
                           : head_random(seed, "kv_trace.topics", set, b, 0);
    const std::vector<double> topics = directions(of_topics, params_.topics, d, false);
    for (std::size_t t = 0; t < s.topic.size(); ++t, x += d)
      for (Index c = 0; c < d; ++c) {
        double sum = topics[static_cast<std::size_t>(s.topic[t] * d + c)];
        if (s.kind[t] != plain) sum += kinds[static_cast<std::size_t>((s.kind[t] - 1) * d + c)];
        x[c] = static_cast<float>(sum + 0.1 * static_cast<double>(x[c]));
      }
  }

  // q, k, v hold standard normal noise.
  void fill_head(const Problem& p, const Stream& stream, Random random, float* q, float* k,
                 float* v) const {
    const Index d = p.d_k;
    const double s = std::sqrt(1 / std::fabs(p.logit_scale()));
    const double sign = p.logit_scale() < 0 ? -1 : 1;
    const std::vector<double> axes = directions(random, 2, d, true);  // e_0, e_1
    const double *const sink = axes.data(), *const heavy = sink + d;
    std::vector<double> topic(static_cast<std::size_t>(params_.topics * d));
    for (double& x : topic) x = random.normal();
    for (Index c = 0; c < params_.topics; ++c) clean(topic.data() + c * d, sink, heavy, d);
    std::vector<double> mean(static_cast<std::size_t>(params_.topics * p.d_v));
    for (double& x : mean) x = random.normal();
    for (Index t = 0; t < p.n; ++t, q += d, k += d, v += p.d_v) {
      const auto at = static_cast<std::size_t>(t);
      double* const mu = topic.data() + stream.topic[at] * d;
      if (params_.drift > 0 && stream.beginning[at]) {
        for (Index c = 0; c < d; ++c) mu[c] += params_.drift * random.normal();
        clean(mu, sink, heavy, d);
      }
      const Kind kind = stream.kind[at];
      const double stronger = kind == salient_token ? 1.35 : 1;
      for (Index c = 0; c < d; ++c) {
        const double from = kind == heavy_token ? 2.5 * heavy[c] : 2.2 * mu[c];
        const double noise = 0.25 * static_cast<double>(k[c]);
        k[c] = static_cast<float>(s *
                                  (kind == sink_token ? 2.5 * sink[c] : stronger * (from + noise)));
        q[c] = static_cast<float>(
            sign * s *
            (2.0 * mu[c] + 1.6 * sink[c] + 1.2 * heavy[c] + 0.25 * static_cast<double>(q[c])));
      }
      const double* const m = mean.data() + stream.topic[at] * p.d_v;
      for (Index c = 0; c < p.d_v; ++c)
        v[c] = static_cast<float>((kind == sink_token ? 0.05 : 1) *
                                  (m[c] + 0.5 * static_cast<double>(v[c])));
    }
  }

  // x without its parts along a and b, of length 1.
  static void clean(double* x, const double* a, const double* b, Index d) {
    for (const double* axis : {a, b, a, b}) {  // twice: what rounding left
      const double along = dot(x, axis, d);
      for (Index c = 0; c < d; ++c) x[c] -= along * axis[c];
    }
    const double length = std::sqrt(dot(x, x, d));
    for (Index c = 0; c < d; ++c) x[c] /= length;
  }

  Params params_;
};

const RegisterTask<KvTrace, Params> kRegistration{
    {.name = "kv_trace",
     .source = "traces for KV-cache policies, after ADORE, arXiv 2407.02328",
     .summary = "a token stream with sinks, heavy hitters, and topics that drift and return",
     .notes =
         {"supplies token embeddings x beside q, k, v: what a controller reads",
          "a query attends to tokens of its topic, to the sinks and to heavy hitters; the topic "
          "changes every `segment` tokens and comes back with probability p_rev",
          "embeddings: per_set draws those of the topics anew for every set"}},
    {param("topics", &Params::topics, {1, 4096}, "distinct topics at most"),
     param("segment", &Params::segment, {1, 1e6}, "mean length of a segment"),
     param("p_rev", &Params::p_rev, {0, 1}, "probability that a segment returns to a topic"),
     param("hh_rate", &Params::hh_rate, {0, 1}, "share of heavy hitters"),
     param("salient", &Params::salient, {0, 1}, "share of tokens with a longer key"),
     param("drift", &Params::drift, {0, 10}, "by how much a topic moves between its segments"),
     param("sinks", &Params::sinks, {0, 1024}, "first tokens that all queries attend to"),
     param("d_e", &Params::d_e, {1, 4096}, "width of the token embeddings"),
     choice("embeddings", &Params::embeddings, {"fixed", "per_set"},
            "of the topics: the same in all sets, or drawn anew")}};

}  // namespace
}  // namespace subquad
