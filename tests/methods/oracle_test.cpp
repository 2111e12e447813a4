// Oracles are what they claim to be: nearest matrices by Eckart and Young and by trying every
// choice, and below every method that names them, on many inputs.
#include <fmt/core.h>

#include <catch2/catch.hpp>
#include <set>

#include "harness/measure/bound_check.h"
#include "harness/measure/error_metrics.h"
#include "tests/methods/method_fixture.h"
#include "tests/reference/oracles.h"

using namespace subquad;
using namespace subquad::testing;

namespace {

bool supported(const std::string& name, const Settings& settings, const Problem& p) {
  const auto method = make_method(name, settings);
  return unsupported_reason(Registry::instance().method(name), *method, p, Pass::forward).empty();
}

// The attention matrix that a method shows, [batch, heads, n, n_kv]; empty when it shows none.
TensorD shown_matrix(const std::string& name, const Settings& settings, const Problem& p,
                     const QKV& in, Seed seed = 0) {
  const auto method = make_method(name, settings);
  method->prepare(p, {.seed = seed});
  Tensor all(p.batch, p.heads, p.n, p.n_kv);
  std::vector<Index> rows;
  for (Index i = 0; i < p.n; ++i) rows.push_back(i);
  Matrix weights(p.n, p.n_kv);
  for (Index b = 0; b < p.batch; ++b)
    for (Index h = 0; h < p.heads; ++h) {
      if (!method->attention_rows(in.inputs(), b, h, rows, weights)) return {};
      all.head(b, h) = weights;
    }
  return cast<double>(all);
}

double metric(const std::string& name, const Settings& settings, const Problem& p, const QKV& in,
              const std::string& wanted) {
  const auto method = make_method(name, settings);
  method->prepare(p, {});
  Tensor out(p.batch, p.heads, p.n, p.d_v);
  method->forward(in.inputs(), out, nullptr);
  for (const Metric& m : method->metrics())
    if (m.name == wanted) return m.value;
  FAIL(name << " has no metric " << wanted);
  return 0;
}

// The distances of results.csv, by whole matrices.
MatrixMetrics distances(const TensorD& exact, const TensorD& got) {
  MatrixSums sums;
  for (Index b = 0; b < exact.batch(); ++b)
    for (Index h = 0; h < exact.heads(); ++h)
      REQUIRE(sums.add(exact.head(b, h), got.head(b, h).cast<float>(), 1));
  return sums.metrics().value();
}

double largest_row_sum_error(const TensorD& w) {
  double worst = 0;
  for (Index bh = 0; bh < w.batch() * w.heads(); ++bh)
    worst = std::max(worst, (w.view().head(bh).rowwise().sum().array() - 1).abs().maxCoeff());
  return worst;
}

// Logits are the logarithms of {1, 2, 3; 1, 1, 2; 4, 1, 1}.
Problem three(bool causal) {
  return {.n = 3, .n_kv = 3, .d_k = 3, .d_v = 1, .causal = causal, .scale = 1};
}
QKV three_inputs() {
  QKV in(three(false));
  const float l2 = std::log(2.f), l3 = std::log(3.f), l4 = std::log(4.f);
  const std::vector<float> q{0, l2, l3, 0, 0, l2, l4, 0, 0}, k{1, 0, 0, 0, 1, 0, 0, 0, 1};
  std::copy(q.begin(), q.end(), in.q.data());
  std::copy(k.begin(), k.end(), in.k.data());
  const std::vector<float> v{6, 12, 24};
  std::copy(v.begin(), v.end(), in.v.data());
  return in;
}

void check_matrix(const TensorD& got, const std::vector<double>& want) {
  REQUIRE(got.size() == static_cast<Index>(want.size()));
  for (Index e = 0; e < got.size(); ++e) {
    INFO(e);
    CHECK(got.data()[e] == Approx(want[static_cast<std::size_t>(e)]).epsilon(1e-5).margin(1e-7));
  }
}

// A row of `exact` restricted to the keys of `mask`, as the norm says.
double row_distance(const Eigen::VectorXd& exact, unsigned mask, const std::string& norm) {
  double mass = 0, dropped2 = 0, count = 0;
  for (Index j = 0; j < exact.size(); ++j) {
    const bool kept = (mask >> j & 1U) != 0;
    mass += kept ? exact[j] : 0;
    dropped2 += kept ? 0 : exact[j] * exact[j];
    count += kept ? 1 : 0;
  }
  if (norm == "tv") return 1 - mass;
  return norm == "frobenius" ? dropped2 : dropped2 + (1 - mass) * (1 - mass) / count;
}

}  // namespace

TEST_CASE("oracles of a three by three matrix equal the results worked by hand", "[oracle]") {
  const QKV in = three_inputs();
  const Problem p = three(false);
  const auto top2 = [](const char* norm) { return Settings{{"top_k", Index{2}}, {"norm", norm}}; };
  // Exact rows: (1, 2, 3) / 6, (1, 1, 2) / 4, (4, 1, 1) / 6.
  check_matrix(shown_matrix("topk_exact", top2("tv"), p, in),
               {0, 0.4, 0.6, 1 / 3.0, 0, 2 / 3.0, 0.8, 0.2, 0});
  check_matrix(shown_matrix("topk_exact", top2("frobenius"), p, in),
               {0, 2 / 6.0, 3 / 6.0, 0.25, 0, 0.5, 4 / 6.0, 1 / 6.0, 0});
  check_matrix(shown_matrix("topk_exact", top2("frobenius_row1"), p, in),
               {0, 5 / 12.0, 7 / 12.0, 3 / 8.0, 0, 5 / 8.0, 9 / 12.0, 3 / 12.0, 0});
  // Exact outputs 17, 16.5, 10: products of weight and distance (11, 10, 21) / 6,
  // (10.5, 4.5, 15) / 4 and (16, 2, 14) / 6. The third row keeps key 3, not key 2 as above.
  check_matrix(shown_matrix("topk_value_exact", {{"top_k", Index{2}}}, p, in),
               {0.25, 0, 0.75, 1 / 3.0, 0, 2 / 3.0, 0.8, 0, 0.2});
  // Squares: query block {1, 2} has 5/36 + 2/16 on key block {1, 2} and 9/36 + 4/16 on {3}.
  const Settings block{{"block", Index{2}}, {"blocks", Index{1}}, {"norm", "frobenius"}};
  check_matrix(shown_matrix("topk_block_exact", block, p, in),
               {0, 0, 0.5, 0, 0, 0.5, 4 / 6.0, 1 / 6.0, 0});
  check_matrix(shown_matrix("uniform", {}, three(true), in),
               {1, 0, 0, 0.5, 0.5, 0, 1 / 3.0, 1 / 3.0, 1 / 3.0});
  const std::vector<double> third(9, 1 / 3.0);
  check_matrix(shown_matrix("uniform", {}, p, in), third);
  check_matrix(shown_matrix("v_mean", {}, p, in), third);
}

TEST_CASE("the nearest matrix of rank one of a known decomposition", "[oracle]") {
  // Rows (3, 1) / 4 and (1, 3) / 4: singular vectors (1, 1) and (1, -1), values 1 and 1/2.
  const Problem p{.n = 2, .n_kv = 2, .d_k = 2, .d_v = 1, .scale = 1};
  QKV in(p);
  const float l3 = std::log(3.f);
  const std::vector<float> q{l3, 0, 0, l3}, k{1, 0, 0, 1}, v{8, 0};
  std::copy(q.begin(), q.end(), in.q.data());
  std::copy(k.begin(), k.end(), in.k.data());
  std::copy(v.begin(), v.end(), in.v.data());
  const Settings one{{"rank", Index{1}}};
  check_matrix(shown_matrix("svd_rank", one, p, in), {0.5, 0.5, 0.5, 0.5});
  check_matrix(cast<double>(run_method("svd_rank", one, p, in).out), {4, 4});
  CHECK(metric("svd_rank", one, p, in, "bound") == Approx(std::sqrt(0.25 / 1.25)));
  CHECK(metric("svd_rank", one, p, in, "spectral_bound") == Approx(0.5));
  CHECK(metric("svd_rank", {{"rank", Index{2}}}, p, in, "bound") == 0);
}

TEST_CASE("the error of the rank oracle is the tail of the singular values", "[oracle]") {
  for (const double scale : {0.1, 0.5, 2.0})
    for (const auto& [n, n_kv] : {std::pair<Index, Index>{60, 60}, {40, 90}, {90, 40}})
      for (const Index rank : {1, 7, 30}) {
        const Problem p{.heads = 2, .n = n, .n_kv = n_kv, .d_k = 8, .d_v = 4, .scale = scale};
        INFO(fmt::format("{} rank {}", p.str(), rank));
        const QKV in = random_inputs(p, 31);
        const TensorD exact = reference::exact_matrix(double_call(p, in));
        double tail = 0, total = 0;
        for (Index h = 0; h < p.heads; ++h) {
          tail += reference::tail_energy(reference::head_of(exact, 0, h), rank);
          total += reference::head_of(exact, 0, h).squaredNorm();
        }
        const double want = std::sqrt(tail / total);
        const Settings settings{{"rank", rank}};
        const TensorD got = shown_matrix("svd_rank", settings, p, in);
        CHECK(metric("svd_rank", settings, p, in, "bound") == Approx(want).margin(3e-8));
        CHECK(distances(exact, got).relative == Approx(want).epsilon(1e-5).margin(1e-7));
        const Eigen::MatrixXd head = reference::head_of(got, 0, 0);
        CHECK(reference::tail_energy(head, rank) <= 1e-11 * head.squaredNorm());
      }
}

TEST_CASE("sparse oracles are the best of all choices of k keys", "[oracle]") {
  for (const bool causal : {false, true}) {
    const Problem p{.n = 9, .n_kv = 9, .d_k = 3, .d_v = 2, .causal = causal};
    const QKV in = random_inputs(p, 32, 2);
    const TensorD exact = reference::exact_matrix(double_call(p, in));
    for (const std::string norm : {"tv", "frobenius", "frobenius_row1"})
      for (const Index k : {1, 3, 9}) {
        const TensorD got = shown_matrix("topk_exact", {{"top_k", k}, {"norm", norm}}, p, in);
        for (Index i = 0; i < p.n; ++i) {
          INFO(fmt::format("{} k={} row {} {}", norm, k, i, causal));
          const Eigen::VectorXd row = exact.head(0, 0).row(i).head(p.visible(i));
          double best = 1e9;
          for (unsigned mask = 1; mask < 1U << row.size(); ++mask)
            if (__builtin_popcount(mask) <= k) best = std::min(best, row_distance(row, mask, norm));
          const Eigen::VectorXd shown = got.head(0, 0).row(i).head(p.visible(i));
          const double distance =
              norm == "tv" ? 0.5 * (shown - row).cwiseAbs().sum() : (shown - row).squaredNorm();
          CHECK(distance == Approx(best).margin(1e-6));
          CHECK((shown.array() != 0).count() <= k);
        }
      }
  }
}

TEST_CASE("the block-rank oracle bounds every split and keeps its blocks at the rank", "[oracle]") {
  for (const auto& [n, n_kv] : {std::pair<Index, Index>{64, 64}, {53, 53}, {40, 77}})
    for (const Index rank : {1, 4}) {
      const Problem p{
          .heads = 2, .n = n, .n_kv = n_kv, .d_k = 6, .d_v = 3, .causal = true, .scale = 0.7};
      INFO(fmt::format("{} rank {}", p.str(), rank));
      const QKV in = random_inputs(p, 33);
      const Settings settings{{"rank", rank}};
      const TensorD exact = reference::exact_matrix(double_call(p, in));
      const TensorD got = shown_matrix("block_rank_causal", settings, p, in);
      const double error = distances(exact, got).relative;
      CHECK(metric("block_rank_causal", settings, p, in, "bound") == Approx(error).epsilon(1e-5));
      double total = 0, worst = 0;
      for (Index h = 0; h < p.heads; ++h) {
        const Eigen::MatrixXd a = reference::head_of(exact, 0, h),
                              shown = reference::head_of(got, 0, h);
        total += a.squaredNorm();
        double of_head = 0;
        Index place = 0;
        for (Index eighth = 0; eighth < 8; ++eighth) {
          const Index first = eighth * n / 8, t = first + n_kv - n;
          if (t == 0) continue;
          const double lost = reference::tail_energy(a.block(first, 0, n - first, t), rank);
          if (lost > of_head) of_head = lost, place = t;
        }
        worst += of_head;
        const Index first = place - (n_kv - n);
        const Eigen::MatrixXd root = shown.block(first, 0, n - first, place);
        CHECK(reference::tail_energy(root, rank) <= 1e-11 * root.squaredNorm());
        for (Index i = 0; i < n; ++i)  // causal
          CHECK(shown.row(i).tail(n_kv - p.visible(i)).isZero(0));
      }
      CHECK(metric("block_rank_causal", settings, p, in, "split_bound") ==
            Approx(std::sqrt(worst / total)));
      CHECK(error >= std::sqrt(worst / total) * (1 - 1e-6));
    }
}

TEST_CASE("a causal kernel of few features is of full rank, but not in its lower-left blocks",
          "[oracle]") {
  // Why svd_rank refuses causal problems, and what block_rank_causal asks for.
  const Problem p{.n = 48, .n_kv = 48, .d_k = 5, .d_v = 3, .causal = true};
  const QKV in = random_inputs(p, 34);
  const Eigen::MatrixXd w = reference::head_of(shown_matrix("linear", {}, p, in), 0, 0);
  CHECK(reference::tail_energy(w, 40) > 1e-6 * w.squaredNorm());
  for (Index t = 1; t < p.n; ++t) {
    const Eigen::MatrixXd block = w.block(t, 0, p.n - t, t);
    CHECK(reference::tail_energy(block, 5) <= 1e-11 * block.squaredNorm());
  }
  CHECK_FALSE(supported("svd_rank", {}, p));
  Problem open = p;
  open.causal = false;
  CHECK_FALSE(supported("block_rank_causal", {}, open));
}

TEST_CASE("sampled columns have the expected error of the formula, least at their probabilities",
          "[oracle]") {
  const Problem p{.n = 20, .n_kv = 24, .d_k = 4, .d_v = 3, .scale = 0.8};
  const QKV in = random_inputs(p, 35, 2);
  const TensorD exact = reference::exact_matrix(double_call(p, in));
  const Eigen::MatrixXd a = reference::head_of(exact, 0, 0),
                        v = reference::head_of(cast<double>(in.v), 0, 0);
  constexpr int kDraws = 4000;
  constexpr Index kSamples = 6;
  const Eigen::VectorXd norm = a.colwise().norm().transpose(), value = v.rowwise().norm();
  // E ||A V - estimate||^2 at probabilities ~ p; v = identity for the matrix itself.
  const auto expected = [&](const Eigen::VectorXd& weight, bool values) {
    const Eigen::VectorXd share = weight / weight.sum();
    const Eigen::VectorXd length = values ? Eigen::VectorXd(norm.cwiseProduct(value)) : norm;
    const double all = values ? (a * v).squaredNorm() : a.squaredNorm();
    return (length.array().square() / share.array()).sum() / kSamples - all / kSamples;
  };
  for (const bool values : {false, true}) {
    INFO(values);
    const Settings settings{{"samples", kSamples}, {"values", values}};
    double sum = 0;
    Eigen::MatrixXd mean = Eigen::MatrixXd::Zero(p.n, p.n_kv);
    for (Seed seed = 0; seed < kDraws; ++seed) {
      const Eigen::MatrixXd w =
          reference::head_of(shown_matrix("column_sampling", settings, p, in, seed), 0, 0);
      mean += w / kDraws;
      sum += values ? (w * v - a * v).squaredNorm() : (w - a).squaredNorm();
    }
    const Eigen::VectorXd own = values ? Eigen::VectorXd(norm.cwiseProduct(value)) : norm;
    CHECK(sum / kDraws == Approx(expected(own, values)).epsilon(0.05));
    CHECK((mean - a).norm() <= 0.1 * a.norm());  // unbiased
    CHECK(expected(own, values) < expected(Eigen::VectorXd::Ones(p.n_kv), values));
    CHECK(expected(own, values) < expected(values ? norm : value, values));
  }
  CHECK(metric("column_sampling", {{"samples", kSamples}}, p, in, "expected_matrix_error") ==
        Approx(std::sqrt(expected(norm, false)) / a.norm()).epsilon(1e-5));
}

TEST_CASE("declared bounds name oracles that can be put at a budget", "[oracle]") {
  std::set<std::string> named;
  for (const MethodEntry* entry : Registry::instance().methods())
    for (const std::string& name : entry->info.bounded_by) {
      INFO(entry->info.name << " is bounded by " << name);
      named.insert(name);
      const MethodEntry& oracle = Registry::instance().method(name);
      REQUIRE(oracle.info.oracle);
      REQUIRE(oracle.info.at_budget);
      const auto method = make_method(name, oracle.info.at_budget(64));
      CHECK(method->bounds_in() != MatrixDistance::none);
      const Problem p{.n = 500, .n_kv = 500, .causal = !oracle.info.bidirectional};
      CHECK(method->budget(p).keys_per_query == 64);
    }
  for (const char* name : {"block_rank_causal", "svd_rank", "topk_exact"})
    CHECK(named.contains(name));
}

TEST_CASE("a method that is nearer than the oracle it names is found out", "[oracle]") {
  const auto violation = [](const std::string& name, const std::string& oracle) {
    MethodEntry entry = Registry::instance().method(name);
    entry.info.bounded_by = {oracle};
    return check_bounds(entry, 3).violation;
  };
  // Where attention is peaked 4 keys a query beat rank 4; linear attention weighs every key.
  CHECK(violation("topk_exact", "svd_rank").starts_with("matrix_error is "));
  CHECK(violation("linear", "topk_exact").starts_with("row_tv is "));
  CHECK(violation("column_sampling", "topk_exact").find("off one by") != std::string::npos);
  CHECK(violation("uniform", "dense") ==
        "names dense in bounded_by, which is no oracle that has a budget");
  CHECK(violation("sliding_window", "topk_exact").empty());
}

TEST_CASE("no method is nearer to the exact matrix than the oracle that bounds it", "[oracle]") {
  const auto inputs = [](int kind, const Problem& p, Seed seed) {
    QKV in(p);
    const char* temperatures[] = {"0.3", "1", "3", "8"};
    const auto task = kind < 4
                          ? make_task("gaussian", {{"temperature", std::stod(temperatures[kind])}})
                          : make_task("clustered", {{"clusters", Index{kind == 4 ? 4 : 16}}});
    task->fill(p, seed, 0, &in);
    return in;
  };
  std::map<std::string, int> compared;  // by oracle: comparisons with a bound above rounding
  for (const MethodEntry* entry : Registry::instance().methods()) {
    if (entry->info.bounded_by.empty()) continue;
    std::vector<Settings> all{{}};
    for (const ParamSpec& spec : entry->params)
      for (const Index value : {1, 4, 16})
        if (spec.type == ParamType::integer && static_cast<double>(value) >= spec.min)
          all.push_back({{spec.name, value}});
    for (const Settings& settings : all)
      for (const bool causal : {false, true})
        for (int kind = 0; kind < 6; ++kind)
          for (const Seed seed : {1, 2}) {
            const Problem p{.heads = 2, .n = 97, .n_kv = 97, .d_k = 12, .d_v = 8, .causal = causal};
            if (!supported(entry->info.name, settings, p)) continue;
            const QKV in = inputs(kind, p, seed);
            const TensorD got = shown_matrix(entry->info.name, settings, p, in, seed);
            if (got.empty()) continue;
            const TensorD exact = reference::exact_matrix(double_call(p, in));
            const MatrixMetrics own = distances(exact, got);
            const double keys = make_method(entry->info.name, settings)->budget(p).keys_per_query;
            REQUIRE(keys >= 1);
            const bool sums_to_one = largest_row_sum_error(got) <= 1e-4;
            for (const std::string& name : entry->info.bounded_by)
              for (const std::string norm : {"", "tv", "frobenius", "frobenius_row1"}) {
                Settings at = Registry::instance().method(name).info.at_budget(keys);
                if ((name == "topk_exact") == norm.empty()) continue;
                if (!norm.empty()) at["norm"] = norm;
                if (!supported(name, at, p)) continue;
                const MatrixDistance in_what = make_method(name, at)->bounds_in();
                const bool needs_sum =
                    in_what == MatrixDistance::row_tv || norm == "frobenius_row1";
                if (needs_sum && !sums_to_one) continue;
                const MatrixMetrics bound = distances(exact, shown_matrix(name, at, p, in));
                const auto value = [&](const MatrixMetrics& m) {
                  return in_what == MatrixDistance::row_tv ? m.row_tv : m.relative;
                };
                INFO(fmt::format("{} {} against {} {}: {} seed {} input {}", entry->info.name,
                                 to_string(settings), name, to_string(at), p.str(), seed, kind));
                CHECK(value(own) >= value(bound) - 2e-6);
                if (value(bound) > 1e-3) ++compared[name];
              }
          }
  }
  for (const char* oracle : {"block_rank_causal", "svd_rank", "topk_exact"}) {
    INFO(oracle << ": " << compared[oracle]);
    CHECK(compared[oracle] >= 20);
  }
}
