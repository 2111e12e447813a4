// Attention by hashing and clustering: what the papers promise of it, and where the parts come
// from.
#include "methods/engines/lsh.h"

#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "methods/engines/gathered_attention.h"
#include "methods/engines/query_clusters.h"
#include "methods/engines/tiled_attention.h"
#include "tests/methods/method_fixture.h"
#include "tests/reference/softmax_attention.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

Problem problem(Index n, bool causal, Index d_k = 16, Index d_v = 12) {
  return {.batch = 1, .heads = 2, .n = n, .n_kv = n, .d_k = d_k, .d_v = d_v, .causal = causal};
}

Settings reformer(Index rounds, Index chunk, const std::string& combine = "mean",
                  bool attend_self = false) {
  return {{"rounds", rounds},
          {"chunk", chunk},
          {"round_combine", combine},
          {"attend_self", attend_self}};
}

// The inputs with every key divided by its length and every query its own key.
QKV shared_keys(const QKV& in) {
  QKV shared = in;
  for (Index bh = 0; bh < in.q.batch() * in.q.heads(); ++bh)
    for (Index j = 0; j < in.q.n(); ++j) {
      auto key = shared.k.view().head(bh).row(j);
      key = in.q.view().head(bh).row(j) / in.q.view().head(bh).row(j).norm();
    }
  return shared;
}

// Row i of y is row order[i] of x.
Tensor permuted(const Tensor& x, const std::vector<Index>& order) {
  Tensor y(x.shape());
  for (Index bh = 0; bh < x.batch() * x.heads(); ++bh)
    for (Index i = 0; i < x.n(); ++i)
      y.view().head(bh).row(i) = x.view().head(bh).row(order[static_cast<std::size_t>(i)]);
  return y;
}

std::vector<Index> random_order(Index n, Seed seed) {
  std::vector<Index> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), Index{0});
  Random(seed).shuffle(order);
  return order;
}

}  // namespace

// ---- hashing ----

TEST_CASE("the share of equal sign bits is one minus the angle over pi", "[methods][lsh]") {
  // 20,000 planes: a share p has the standard error sqrt(p (1 - p) / 20,000) <= 0.0036.
  const Index d = 6, rounds = 500, bits = 40;
  for (const double angle : {0.1, 0.7, 1.57, 2.9}) {
    Index equal = 0;
    for (Index round = 0; round < rounds; ++round) {
      Hyperplanes planes;
      planes.prepare(bits, d, false, static_cast<Seed>(round));
      std::vector<float> x(2 * static_cast<std::size_t>(d), 0.0f);
      x[0] = 3;
      x[static_cast<std::size_t>(d)] = static_cast<float>(std::cos(angle));
      x[static_cast<std::size_t>(d) + 1] = static_cast<float>(std::sin(angle));
      std::vector<float> scratch(static_cast<std::size_t>(Hyperplanes::scratch_floats(bits, d)));
      std::uint64_t hash[kHashTokens];
      side_bits(planes.project(x.data(), 2, scratch.data(), nullptr), bits, hash);
      for (Index b = 0; b < bits; ++b) equal += ((hash[0] ^ hash[1]) >> b & 1) == 0;
    }
    const double share = static_cast<double>(equal) / static_cast<double>(rounds * bits);
    CHECK(share == Approx(1 - angle / 3.14159265).margin(4 * 0.0036));
  }
}

TEST_CASE("near tokens share a bucket more often than far ones, opposite ones never",
          "[methods][lsh]") {
  const Index d = 8, planes_of_round = 4, draws = 4000;
  double before = 1;
  for (const double angle : {0.0, 0.3, 0.8, 1.5, 2.5, 3.14159265}) {
    Index equal = 0;
    for (Index draw = 0; draw < draws; ++draw) {
      Hyperplanes planes;
      planes.prepare(planes_of_round, d, false, static_cast<Seed>(draw));
      std::vector<float> x(2 * static_cast<std::size_t>(d), 0.0f);
      x[0] = 1;
      x[static_cast<std::size_t>(d)] = static_cast<float>(7 * std::cos(angle));
      x[static_cast<std::size_t>(d) + 1] = static_cast<float>(7 * std::sin(angle));
      std::vector<float> scratch(
          static_cast<std::size_t>(Hyperplanes::scratch_floats(planes_of_round, d)));
      std::int32_t bucket[kHashTokens];
      farthest_plane(planes.project(x.data(), 2, scratch.data(), nullptr), planes_of_round, bucket);
      equal += bucket[0] == bucket[1];
    }
    const double share = static_cast<double>(equal) / static_cast<double>(draws);
    INFO("angle " << angle << " share " << share << " before " << before);
    if (angle == 0) {
      CHECK(share == 1);
    } else {
      CHECK(share <= before - (angle > 3 ? 0 : 0.02));
    }
    if (angle > 3.1) CHECK(share == 0);
    // A right angle: independent projections, each of the 2 * planes buckets alike.
    if (angle == 1.5) CHECK(share > 0.8 / 8);
    before = share;
  }
}

TEST_CASE("sorting by bucket is stable and complete", "[methods][lsh]") {
  const std::vector<std::int32_t> bucket{2, 0, 3, 0, 2, 2, 0};
  std::vector<std::int32_t> order(7), starts(6);
  sort_by_bucket(bucket.data(), 7, 5, order.data(), starts.data());
  CHECK(order == std::vector<std::int32_t>{1, 3, 6, 0, 4, 5, 2});
  CHECK(starts == std::vector<std::int32_t>{0, 3, 3, 6, 7, 7});
}

// ---- the engine for gathered keys ----

TEST_CASE("gathered attention over every key is dense attention, ragged sizes, and parts merge",
          "[methods][lsh]") {
  for (const auto& [n, n_kv, d_k, d_v] :
       {std::tuple<Index, Index, Index, Index>{1, 1, 3, 5}, {7, 40, 16, 64}, {64, 130, 40, 33}}) {
    const Problem p{.n = n, .n_kv = n_kv, .d_k = d_k, .d_v = d_v};
    const QKV in = random_inputs(p, 1);
    const TensorD want = reference::softmax_attention(
        double_call(p, in), reference::sees_everything(double_call(p, in)));
    AlignedArray<float> memory(GatheredAttention::floats(n, n_kv, d_k, d_v, false));
    GatheredAttention attention(n, n_kv, d_k, d_v, false, memory.data());
    const GatheredHead head{in.q.data(), in.k.data(), in.v.data(), nullptr,
                            static_cast<float>(p.logit_scale())};
    std::vector<std::int32_t> query(static_cast<std::size_t>(n)),
        key(static_cast<std::size_t>(n_kv));
    std::iota(query.begin(), query.end(), 0);
    std::iota(key.rbegin(), key.rend(), 0);  // any order of keys will do
    const Index half = n_kv / 2;
    Tensor out(1, 1, n, d_v), merged(1, 1, n, d_v);
    std::vector<float> lse(static_cast<std::size_t>(n));
    attention.load_keys(head, key.data(), n_kv);
    attention.attend(head, {query.data(), n, nullptr, nullptr});
    for (Index i = 0; i < n; ++i) {
      std::copy_n(attention.out(i), d_v, out.data() + i * d_v);
      lse[static_cast<std::size_t>(i)] = attention.lse(i);
    }
    CHECK(relative_error(out, want) <= 1e-6);
    for (const auto& [first, last] : {std::pair<Index, Index>{0, half}, {half, n_kv}}) {
      attention.load_keys(head, key.data() + first, last - first);
      attention.attend(head, {query.data(), n, nullptr, nullptr});
      for (Index i = 0; i < n; ++i)
        for (Index c = 0; c < d_v; ++c)
          merged.data()[i * d_v + c] +=
              std::exp(attention.lse(i) - lse[static_cast<std::size_t>(i)]) * attention.out(i)[c];
    }
    CHECK(relative_error(merged, want) <= 1e-6);
  }
}

TEST_CASE("a tiled engine prepared for a capacity runs at every shorter length", "[methods][lsh]") {
  Problem p = problem(130, true);
  TiledAttention long_one;
  long_one.prepare(p, Pattern::of(Band::dense(p)), false);
  for (const Index n : {1, 47, 48, 49, 130, 3}) {
    p.n = p.n_kv = n;
    QKV in = random_inputs(p, 2);
    Tensor got(1, 2, n, p.d_v), want(1, 2, n, p.d_v);
    for (const bool padded : {false, true}) {
      if (padded) pad_keys(p, 3, 0.3, &in);
      TiledAttention own;
      own.prepare(p, Pattern::of(Band::dense(p)), false);
      own.forward(in.inputs(), want, nullptr);
      long_one.shorten(n);
      long_one.forward(in.inputs(), got, nullptr);
      CHECK(relative_error(got, cast<double>(want)) == 0);
    }
  }
  CHECK_THROWS_AS(long_one.shorten(131), InternalError);
}

// ---- reformer ----

TEST_CASE("one chunk, one round: reformer is softmax over shared normalised keys",
          "[methods][lsh]") {
  for (const bool causal : {false, true})
    for (const Index n : {1, 33, 150}) {
      const Problem p = problem(n, causal);
      const QKV in = random_inputs(p, 4);
      const QKV shared = shared_keys(in);
      for (const std::string combine : {"mean", "lse"})
        for (const Index rounds : {1, 3}) {  // every round sees everything
          const Tensor got = run_method("reformer", reformer(rounds, n, combine, true), p, in).out;
          const Tensor want = run_method("dense", {}, p, shared).out;
          CHECK(relative_error(got, cast<double>(want)) <= 1e-5);
        }
    }
}

TEST_CASE("a token attends to itself only when it is alone", "[methods][lsh]") {
  Problem p = problem(40, true);
  const QKV in = random_inputs(p, 5);
  for (const std::string combine : {"mean", "lse"}) {
    const Tensor out = run_method("reformer", reformer(2, 8, combine), p, in).out;
    for (Index h = 0; h < 2; ++h)  // nobody is before the first token
      CHECK((out.head(0, h).row(0) - in.v.head(0, h).row(0)).norm() <= 1e-6);
  }
  // Chunks of one token with nobody before them: a single token.
  p = problem(1, false);
  const QKV one = random_inputs(p, 6);
  CHECK(run_method("reformer", reformer(1, 1), p, one).out.head(0, 1).isApprox(one.v.head(0, 1)));
  // The whole weight of two tokens in one chunk lies on the other one.
  p = problem(2, false);
  const QKV two = random_inputs(p, 7);
  const Tensor swapped = run_method("reformer", reformer(3, 2), p, two).out;
  CHECK((swapped.head(0, 0).row(0) - two.v.head(0, 0).row(1)).norm() <= 1e-6);
  CHECK((swapped.head(0, 0).row(1) - two.v.head(0, 0).row(0)).norm() <= 1e-6);
}

TEST_CASE("constant values pass through hashing and clustering unchanged", "[methods][lsh]") {
  const Problem p = problem(200, false);
  QKV in = random_inputs(p, 8);
  in.v.fill(1.5f);
  for (const auto& [name, settings] :
       {std::pair<std::string, Settings>{"reformer", reformer(4, 16)},
        {"reformer", reformer(4, 16, "lse")},
        {"clustered", {{"clusters", Index{9}}}},
        {"improved_clustered", {{"clusters", Index{9}}, {"top_k", Index{5}}}}}) {
    const Tensor out = run_method(name, settings, p, in).out;
    for (Index e = 0; e < out.size(); ++e) CHECK(out.data()[e] == Approx(1.5f).epsilon(1e-5));
  }
}

TEST_CASE("more rounds find more of what exact shared attention sees", "[methods][lsh]") {
  // Few strong neighbours among many: hashing has to bring them together.
  const Problem p = problem(512, false);
  QKV in = random_inputs(p, 9);
  for (Index bh = 0; bh < 2; ++bh)
    for (Index i = 0; i < p.n; ++i) {  // pairs of nearly equal queries, far apart in position
      auto q = in.q.view().head(bh);
      if (i >= p.n / 2) q.row(i) = q.row(i - p.n / 2) + 0.05f * q.row(i);
    }
  for (Index e = 0; e < in.q.size(); ++e) in.q.data()[e] *= 8;
  const TensorD want = cast<double>(run_method("dense", {}, p, shared_keys(in)).out);
  double before = std::numeric_limits<double>::infinity();
  for (const Index rounds : {1, 4, 16}) {
    const double error =
        relative_error(run_method("reformer", reformer(rounds, 16, "lse", true), p, in).out, want);
    INFO(rounds << " rounds: error " << error);
    CHECK(error < before);
    before = error;
  }
}

TEST_CASE("permuting the tokens permutes the output where hashing does not depend on order",
          "[methods][lsh]") {
  const Problem p = problem(90, false);
  const QKV in = random_inputs(p, 10);
  const auto order = random_order(p.n, 11);
  QKV moved = in;
  moved.q = permuted(in.q, order);
  moved.k = permuted(in.k, order);
  moved.v = permuted(in.v, order);
  // One chunk: buckets do not matter. Many: ties inside a bucket go by position, so that only the
  // keys of clustered attention may move freely.
  const Tensor out = run_method("reformer", reformer(2, 90), p, in).out;
  CHECK(relative_error(run_method("reformer", reformer(2, 90), p, moved).out,
                       cast<double>(permuted(out, order))) <= 1e-5);
  QKV keys = in;
  keys.k = moved.k;
  keys.v = moved.v;
  for (const auto& [name, settings] :
       {std::pair<std::string, Settings>{"clustered", {{"clusters", Index{7}}}},
        {"improved_clustered", {{"clusters", Index{7}}, {"top_k", Index{6}}}}})
    CHECK(relative_error(run_method(name, settings, p, keys).out,
                         cast<double>(run_method(name, settings, p, in).out)) <= 1e-5);
}

TEST_CASE("neither reformer nor causal clustering is strictly causal, and both say so",
          "[methods][lsh]") {
  const Problem p = problem(128, true);
  const QKV in = random_inputs(p, 12);
  QKV changed = in;
  for (Tensor* x : {&changed.q, &changed.k, &changed.v})
    for (Index h = 0; h < 2; ++h) x->head(0, h).bottomRows(8) *= -2;
  for (const auto& [name, settings] :
       {std::pair<std::string, Settings>{"reformer", reformer(2, 8)},
        {"improved_clustered", {{"clusters", Index{9}}, {"top_k", Index{9}}}}}) {
    const MethodInfo& info = Registry::instance().method(name).info;
    CHECK(info.causality == Causality::weights);
    CHECK(std::any_of(info.notes.begin(), info.notes.end(), [](const std::string& note) {
      return note.find("not strictly causal") != std::string::npos;
    }));
    const Tensor a = run_method(name, settings, p, in).out;
    const Tensor b = run_method(name, settings, p, changed).out;
    double early = 0;
    for (Index h = 0; h < 2; ++h)
      early += static_cast<double>((a.head(0, h).topRows(120) - b.head(0, h).topRows(120)).norm());
    CHECK(early > 0.1);
  }
  CHECK(Registry::instance().method("clustered").info.causality == Causality::none);
}

// ---- clusters ----

TEST_CASE("groups are a partition; equal queries share a cluster", "[methods][lsh]") {
  Problem p = problem(100, false);
  QKV in = random_inputs(p, 13);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < p.n; ++i) in.q.head(0, h).row(i) = in.q.head(0, h).row(i % 4);
  QueryClusters clusters;
  const ClusterOptions options{.clusters = 20};
  clusters.prepare(p, options, 14);
  QueryGroups groups(2, p.n, 20);
  clusters.group(in.q.data(), groups);
  for (Index h = 0; h < 2; ++h) {
    const std::int32_t* const cluster = groups.cluster.data() + h * p.n;
    std::set<std::int32_t> seen(groups.order.data() + h * p.n, groups.order.data() + (h + 1) * p.n);
    CHECK(seen.size() == 100);
    const std::int32_t* const start = groups.start.data() + h * 21;
    CHECK(start[0] == 0);
    CHECK(start[20] == 100);
    for (Index c = 0; c < 20; ++c)
      for (Index m = start[c]; m < start[c + 1]; ++m) {
        CHECK(cluster[groups.order[h * p.n + m]] == c);
        if (m > start[c]) CHECK(groups.order[h * p.n + m] > groups.order[h * p.n + m - 1]);
      }
    for (Index i = 4; i < p.n; ++i) CHECK(cluster[i] == cluster[i % 4]);
  }
  // What is a cluster of equal queries is exact.
  const TensorD want = cast<double>(run_method("dense", {}, p, in).out);
  CHECK(relative_error(run_method("clustered", {{"clusters", Index{40}}}, p, in).out, want) <=
        1e-5);
}

TEST_CASE("queries in separate directions are found as clusters", "[methods][lsh]") {
  // Six directions with little noise, 20 queries each, and more clusters than directions.
  const Problem p = problem(120, false, 32);
  QKV in = random_inputs(p, 15);
  for (Index h = 0; h < 2; ++h)
    for (Index i = 6; i < p.n; ++i)
      in.q.head(0, h).row(i) = in.q.head(0, h).row(i % 6) + 0.02f * in.q.head(0, h).row(i);
  QueryClusters clusters;
  clusters.prepare(p, {.clusters = 30}, 16);
  QueryGroups groups(2, p.n, 30);
  clusters.group(in.q.data(), groups);
  for (Index h = 0; h < 2; ++h) {
    std::vector<std::set<Index>> directions(30);
    for (Index i = 0; i < p.n; ++i)
      directions[static_cast<std::size_t>(groups.cluster[h * p.n + i])].insert(i % 6);
    for (const auto& of_cluster : directions) CHECK(of_cluster.size() <= 1);
  }
}

TEST_CASE("as many clusters as queries, or every key on top, is dense attention",
          "[methods][lsh]") {
  const Problem p{.batch = 2, .heads = 2, .n = 90, .n_kv = 130, .d_k = 8, .d_v = 24};
  const QKV in = random_inputs(p, 17);
  const TensorD want = cast<double>(run_method("dense", {}, p, in).out);
  const auto error = [&](const char* name, const Settings& settings) {
    return relative_error(run_method(name, settings, p, in).out, want);
  };
  CHECK(error("clustered", {{"clusters", Index{90}}}) <= 1e-5);
  CHECK(error("improved_clustered", {{"clusters", Index{90}}, {"top_k", Index{3}}}) <= 1e-5);
  CHECK(error("improved_clustered", {{"clusters", Index{5}}, {"top_k", Index{130}}}) <= 1e-5);
}

TEST_CASE("the correction by the best keys brings every setting nearer to dense attention",
          "[methods][lsh]") {
  const Problem p = problem(256, false);
  for (const float spread : {1.0f, 3.0f})
    for (const Index clusters : {4, 32}) {
      const QKV in = random_inputs(p, 18, spread);
      std::vector<Index> rows(256);
      std::iota(rows.begin(), rows.end(), Index{0});
      const MatrixD exact = reference::softmax_weights(
                                double_call(p, in), reference::sees_everything(double_call(p, in)))
                                .head(0, 0);
      // Mean total variation of the rows: the corrected part becomes exact in shape.
      const auto distance = [&](const std::string& name, const Settings& settings) {
        const auto method = make_method(name, settings);
        method->prepare(p, {});
        Matrix weights(256, 256);
        REQUIRE(method->attention_rows(in.inputs(), 0, 0, rows, weights));
        return (weights.cast<double>() - exact).cwiseAbs().sum() / 512;
      };
      double before = distance("clustered", {{"clusters", clusters}});
      for (const Index top_k : {1, 8, 64, 256}) {
        const double now =
            distance("improved_clustered", {{"clusters", clusters}, {"top_k", top_k}});
        INFO("spread " << spread << " clusters " << clusters << " top " << top_k << ": " << now
                       << " after " << before);
        CHECK(now <= before + 1e-6);
        before = now;
      }
      CHECK(before <= 1e-5);
    }
}
