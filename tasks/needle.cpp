// Needles in a haystack: one or a few keys carry almost all of each query's attention mass.
//
// Per head: `needles` key positions with orthonormal directions e_1 .. e_m. Background keys are
// normal in the orthogonal complement of these, needle t has k = b e_t with the length of the
// others. A query is aimed at `per_query` needles T among those it can see:
//   q_i = a_i sum_{t in T} e_t + background,
// where a_i makes the expected mass of T equal to `mass`: scale a_i b = log(mass / (1 - mass)) +
// log(R_i / |T|), R_i = the expected sum of exp(logit) over the other visible keys. Background
// logits have standard deviation `noise` and mean 0, needles that a query is not aimed at have 0.

#include "tasks/common.h"

namespace subquad {
namespace {

struct Params {
  Index needles = 4;
  Index per_query = 1;
  std::string placement = "random";
  double depth = 0.5;
  double mass = 0.95;
  double noise = 1;
};

class Needle final : public Task {
 public:
  explicit Needle(const Params& params) : params_(params) {}

  std::string unsupported(const Problem& p) const override {
    if (params_.needles > std::min(p.d_k, p.n_kv))
      return fmt::format("needles={} is more than min(d_k, n_kv)={}", params_.needles,
                         std::min(p.d_k, p.n_kv));
    if (params_.per_query > params_.needles)
      return fmt::format("per_query={} is more than needles={}", params_.per_query,
                         params_.needles);
    return "";
  }

  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    fill_tensor(seed, "needle.q", set, &out->q);
    fill_tensor(seed, "needle.k", set, &out->k);
    fill_tensor(seed, "needle.v", set, &out->v);
    const Index m = params_.needles;
    const double scale = p.logit_scale();
    const double entry = entry_scale(p, 1, p.d_k);                        // of keys
    const double length = entry * std::sqrt(static_cast<double>(p.d_k));  // b
    // Queries' entries at which background logits have deviation `noise`.
    const double query_entry =
        m < p.d_k
            ? params_.noise / (std::fabs(scale) * entry * std::sqrt(static_cast<double>(p.d_k - m)))
            : 0;

    struct Head {
      std::vector<double> axes;      // [m, d_k], orthonormal
      std::vector<Index> positions;  // of the needles, ascending
    };
    std::vector<Head> heads(static_cast<std::size_t>(p.batch * p.heads));
    for_heads(p.batch, p.heads, [&](Index b, Index h) {
      Random random = head_random(seed, "needle.head", set, b, h);
      Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      head.axes = directions(random, m, p.d_k, true);
      head.positions = place(random, p.n_kv);
    });

    for_rows(p.batch, p.heads, p.n_kv, [&](Index b, Index h, Index begin, Index end) {
      const Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      std::vector<double> row(static_cast<std::size_t>(p.d_k));
      for (Index j = begin; j < end; ++j) {
        float* k = out->k.view().head_data(b, h) + j * p.d_k;
        const auto found = std::lower_bound(head.positions.begin(), head.positions.end(), j);
        if (found != head.positions.end() && *found == j) {
          const double* axis = head.axes.data() + (found - head.positions.begin()) * p.d_k;
          for (Index c = 0; c < p.d_k; ++c) k[c] = static_cast<float>(length * axis[c]);
          continue;
        }
        project_out(head.axes, m, k, &row);
        for (Index c = 0; c < p.d_k; ++c)
          k[c] = static_cast<float>(entry * row[static_cast<std::size_t>(c)]);
      }
    });

    for_rows(p.batch, p.heads, p.n, [&](Index b, Index h, Index begin, Index end) {
      const Head& head = heads[static_cast<std::size_t>(b * p.heads + h)];
      std::vector<double> row(static_cast<std::size_t>(p.d_k));
      for (Index i = begin; i < end; ++i) {
        float* q = out->q.view().head_data(b, h) + i * p.d_k;
        project_out(head.axes, m, q, &row);
        for (double& x : row) x *= query_entry;
        const Index visible = p.visible(i);
        const Index seen = std::lower_bound(head.positions.begin(), head.positions.end(), visible) -
                           head.positions.begin();
        const Index aimed = std::min(params_.per_query, seen);
        if (aimed > 0) {
          Random random(seed, "needle.aim",
                        {static_cast<std::uint64_t>(set),
                         static_cast<std::uint64_t>((b * p.heads + h) * p.n + i)});
          // Given the query, a background logit is normal with this variance.
          const double deviation = scale * entry;
          const double variance = deviation * deviation * dot(row.data(), row.data(), p.d_k);
          const double rest = static_cast<double>(visible - seen) * portable_exp(variance / 2) +
                              static_cast<double>(seen - aimed);
          const double logit = rest > 0 ? portable_log(params_.mass / (1 - params_.mass) * rest /
                                                       static_cast<double>(aimed))
                                        : 0;
          const double a = logit / (scale * length);
          for (const Index t : random.sample_without_replacement(seen, aimed)) {
            const double* axis = head.axes.data() + t * p.d_k;
            for (Index c = 0; c < p.d_k; ++c) row[static_cast<std::size_t>(c)] += a * axis[c];
          }
        }
        for (Index c = 0; c < p.d_k; ++c)
          q[c] = static_cast<float>(row[static_cast<std::size_t>(c)]);
      }
    });
  }

 private:
  // row = x without its components along the needles' directions.
  static void project_out(const std::vector<double>& axes, Index m, const float* x,
                          std::vector<double>* row) {
    const auto d = static_cast<Index>(row->size());
    for (Index c = 0; c < d; ++c) (*row)[static_cast<std::size_t>(c)] = static_cast<double>(x[c]);
    for (Index t = 0; t < m; ++t) {
      const double* axis = axes.data() + t * d;
      const double along = dot(row->data(), axis, d);
      for (Index c = 0; c < d; ++c) (*row)[static_cast<std::size_t>(c)] -= along * axis[c];
    }
  }

  // Positions of the needles, ascending.
  std::vector<Index> place(Random& random, Index n_kv) const {
    const Index m = params_.needles;
    std::vector<Index> positions;
    if (params_.placement == "depth") {
      const auto first =
          static_cast<Index>(std::floor(params_.depth * static_cast<double>(n_kv - m) + 0.5));
      for (Index t = 0; t < m; ++t) positions.push_back(first + t);
      return positions;
    }
    // The first needle lies in the first sixteenth, so that nearly all queries of a causal problem
    // see one; the others anywhere after the start of that part.
    const Index early = std::max<Index>(1, n_kv / 16);
    const auto first = static_cast<Index>(random.below(static_cast<std::uint64_t>(early)));
    for (const Index x : random.sample_without_replacement(n_kv - 1, m - 1))
      positions.push_back(x < first ? x : x + 1);
    positions.push_back(first);
    std::sort(positions.begin(), positions.end());
    return positions;
  }

  Params params_;
};

const RegisterTask<Needle, Params> kRegistration{
    {.name = "needle",
     .source = "",
     .summary = "one or a few keys carry almost all of each query's attention mass",
     .notes = {"each query is aimed at per_query of the needles it can see, drawn at random; in a "
               "causal problem queries before the first needle see only background",
               "placement: random puts one needle into the first sixteenth of the keys and the "
               "others anywhere; placement: depth puts them side by side at that depth, and in a "
               "causal problem the queries before it have no needle",
               "mass is an expectation over the background keys; it holds for every visible "
               "length"}},
    {param("needles", &Params::needles, {1, 4096}, "needle keys in every head, at most d_k"),
     param("per_query", &Params::per_query, {1, 4096}, "needles that share the mass of one query"),
     choice("placement", &Params::placement, {"random", "depth"}, "where the needles are"),
     param("depth", &Params::depth, {0, 1},
           "place of the needles for placement: depth; 0 = first key, 1 = last key"),
     param("mass", &Params::mass, {0.001, 0.999999},
           "attention mass on the needles that a query is aimed at"),
     param("noise", &Params::noise, {0, 8}, "standard deviation of the background logits")}};

}  // namespace
}  // namespace subquad
