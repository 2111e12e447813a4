// The generated checks: every registered method passes them, and broken methods are caught.
#include "harness/measure/conformance.h"

#include <omp.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <map>

#include "harness/core/registry.h"
#include "harness/measure/alloc_counter.h"

using namespace subquad;

TEST_CASE("every registered method passes every check that its declaration asks for",
          "[methods][conformance]") {
  // Catch runs this body once per section: the checks themselves run only the first time.
  static std::map<std::string, std::vector<CheckResult>> results;
  for (const MethodEntry* entry : Registry::instance().methods()) {
    if (!results.contains(entry->info.name)) results[entry->info.name] = check_method(*entry, {});
    for (const CheckResult& result : results[entry->info.name]) {
      DYNAMIC_SECTION(entry->info.name << ": " << result.check) {
        INFO(result.detail);
        CHECK(result.outcome != CheckOutcome::failed);
      }
    }
  }
}

namespace {

// Plain softmax attention with one thing wrong, chosen by `fault`.
class Broken final : public Method {
 public:
  explicit Broken(std::string fault) : fault_(std::move(fault)) {}

  void prepare(const Problem& problem, const Env& env) override {
    problem_ = problem;
    seed_ = env.seed;
  }
  void forward(const Inputs& in, TensorView out, Saved*) override {
    if (fault_ == "throws") throw std::runtime_error("out of ideas");
    if (fault_ == "leaves its output") return;
    ++calls_;
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      const Matrix p = weights(in, bh);
      for (Index i = 0; i < problem_.n; ++i) out.head(bh).row(i) = row(in, bh, i, p.row(i), out);
    }
    if (fault_ == "writes its input") const_cast<float*>(in.k.data())[0] += 1;
  }
  void backward(const Inputs& in, ConstTensorView, ConstTensorView dout, const Saved&,
                const Gradients& grads) override {
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      const Matrix p = weights(in, bh);
      const auto q = in.q.head(bh), k = in.k.head(bh), v = in.v.head(bh), g = dout.head(bh);
      const Matrix dp = g * v.transpose();
      Matrix ds = p.array() * dp.array();
      if (fault_ != "gradient forgets the normaliser")
        ds -= (p.array().colwise() * ds.rowwise().sum().array()).matrix();
      const auto scale = static_cast<float>(problem_.logit_scale());
      grads.dq.head(bh) = scale * ds * k;
      grads.dk.head(bh) = (fault_ == "gradient drops the scale" ? 1.f : scale) * ds.transpose() * q;
      grads.dv.head(bh) = p.transpose() * g;
    }
  }
  double flops(const Problem&, Pass) const override {
    return fault_ == "NaN figures" ? std::nan("") : 0;
  }
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> shown) override {
    const Matrix p = weights(in, b * problem_.heads + h);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      shown.row(static_cast<Index>(r)) = p.row(rows[r]);
      if (fault_ == "shows another matrix") shown.row(static_cast<Index>(r)) *= 0.5f;
    }
    return true;
  }
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& config) const override;

 private:
  Index visible(Index i) const {
    const bool shifted = fault_ == "mask shifted by one" && problem_.causal;
    return std::min(problem_.n_kv, problem_.visible(i) + (shifted ? 1 : 0));
  }
  Matrix weights(const Inputs& in, Index bh) const {
    Matrix p = Matrix::Zero(problem_.n, problem_.n_kv);
    for (Index i = 0; i < problem_.n; ++i) {
      const auto real = [&](Index j) {
        return in.key_mask.empty() || fault_ == "ignores padding" ||
               in.key_mask[static_cast<std::size_t>(bh / problem_.heads * problem_.n_kv + j)] != 0;
      };
      float max = -std::numeric_limits<float>::infinity();
      for (Index j = 0; j < visible(i); ++j) {
        p(i, j) = in.q.head(bh).row(i).dot(in.k.head(bh).row(j));
        if (fault_ != "scale dropped") p(i, j) *= static_cast<float>(problem_.logit_scale());
        if (real(j)) max = std::max(max, p(i, j));
      }
      for (Index j = 0; j < visible(i); ++j) p(i, j) = real(j) ? std::exp(p(i, j) - max) : 0;
      const float sum = p.row(i).sum();
      if (sum > 0) p.row(i) /= sum;
    }
    return p;
  }
  RowVector row(const Inputs& in, Index bh, Index i, const RowVector& p, TensorView out) {
    RowVector o = RowVector::Zero(problem_.d_v);
    // A weight of zero must hide its value even if that is NaN, except for the fault.
    for (Index j = 0; j < problem_.n_kv; ++j)
      if (p[j] != 0 || fault_ == "multiplies hidden values") o += p[j] * in.v.head(bh).row(j);
    if (fault_ == "adds to its output") o += out.head(bh).row(i);
    if (fault_ == "depends on the threads")
      o *= 1 + 1e-6f * static_cast<float>(omp_get_max_threads());
    if (fault_ == "depends on earlier calls") o *= static_cast<float>(calls_);
    if (fault_ == "returns NaN" && bh == 1) o[0] = std::nanf("");
    if (fault_ == "squares v") o = o.array().square();
    if (fault_ == "fails at n = 1" && problem_.n == 1) o.setConstant(std::nanf(""));
    if (fault_ == "looks at the last query" && problem_.causal)
      o *= 1 + 1e-6f * in.q.head(bh)(problem_.n - 1, 0);
    return o;
  }

  std::string fault_;
  Problem problem_;
  Seed seed_ = 0;
  int calls_ = 0;
};

// A full cache, evaluated by Broken on all of it at every step.
class BrokenDecoder final : public Decoder {
 public:
  BrokenDecoder(const DecodeConfig& config, std::string fault)
      : config_(config), fault_(std::move(fault)) {}
  void reset() override {
    if (fault_ != "decoder forgets to reset") length_ = 0;
  }
  void step(const DecodeStep& in, float* out) override {
    const Index heads = config_.batch * config_.heads;
    k_.resize(static_cast<std::size_t>(heads)), v_.resize(static_cast<std::size_t>(heads));
    for (Index bh = 0; bh < heads; ++bh) {
      auto &k = k_[static_cast<std::size_t>(bh)], &v = v_[static_cast<std::size_t>(bh)];
      k.resize(static_cast<std::size_t>(length_ * config_.d_k));
      v.resize(static_cast<std::size_t>(length_ * config_.d_v));
      k.insert(k.end(), in.k + bh * config_.d_k, in.k + (bh + 1) * config_.d_k);
      v.insert(v.end(), in.v + bh * config_.d_v, in.v + (bh + 1) * config_.d_v);
      const ConstMatrixMap keys(k.data(), length_ + 1, config_.d_k),
          values(v.data(), length_ + 1, config_.d_v);
      Vector w = keys * Eigen::Map<const Vector>(in.q + bh * config_.d_k, config_.d_k) *
                 static_cast<float>(config_.logit_scale());
      if (fault_ == "decoder does not see its own token" && length_ > 0) w[length_] = -1e9f;
      w = (w.array() - w.maxCoeff()).exp();
      w /= w.sum();
      Eigen::Map<Vector>(out + bh * config_.d_v, config_.d_v) = values.transpose() * w;
    }
    ++length_;
  }
  CacheBytes bytes() const override {
    return {.kv = fault_ == "decoder hoards" ? 1e9 : 4.0 * static_cast<double>(length_)};
  }

 private:
  DecodeConfig config_;
  std::string fault_;
  Index length_ = 0;
  std::vector<std::vector<float>> k_, v_;
};

std::unique_ptr<Decoder> Broken::make_decoder(const DecodeConfig& config) const {
  return std::make_unique<BrokenDecoder>(config, fault_);
}

struct Fixture {
  std::string fault;
  std::string caught_by;  // the start of the check that must fail; empty: none may
};

MethodEntry entry_of(const std::string& fault) {
  MethodInfo info{.name = "broken", .family = "exact", .source = "", .summary = fault};
  info.causality = Causality::strict;
  info.cross_attention = true;
  info.key_padding = true;
  info.passes = {Pass::forward, Pass::backward, Pass::decode};
  info.random = fault == "ignores its seed";
  info.exact = true;
  info.exact_limit = [](const Problem&) { return Settings{}; };
  return {info, {}, [fault](const Settings&) { return std::make_unique<Broken>(fault); }, ""};
}

}  // namespace

TEST_CASE("a deliberately broken method is caught by the check made for it",
          "[methods][conformance]") {
  std::vector<Fixture> fixtures{
      {"nothing", ""},
      {"throws", "forward: finite"},
      {"leaves its output", "forward: finite"},
      {"returns NaN", "forward: finite"},
      {"fails at n = 1", "forward: finite"},
      {"adds to its output", "forward: the output does not depend"},
      {"writes its input", "forward: inputs stay untouched"},
      {"depends on earlier calls", "forward: the same call"},
      {"depends on the threads", "forward: the same bits"},
      {"mask shifted by one", "causal: changed tokens"},
      {"looks at the last query", "causal: changed tokens"},
      {"multiplies hidden values", "causal: no value"},
      {"ignores padding", "padding: "},
      {"squares v", "linear in v"},
      {"scale dropped", "exact limit"},
      {"scale dropped", "exact: equals"},
      {"shows another matrix", "attention matrix"},
      {"ignores its seed", "random: "},
      {"gradient drops the scale", "backward: equals"},
      {"gradient forgets the normaliser", "backward: equals"},
      {"decoder does not see its own token", "decode: "},
      {"decoder forgets to reset", "decode: "},
      {"decoder hoards", "decode: "},
      {"NaN figures", "figures: "},
  };
  if (hooks_active()) fixtures.push_back({"makes temporaries", "passes: "});
  for (const Fixture& fixture : fixtures)
    DYNAMIC_SECTION(fixture.fault << ", " << fixture.caught_by) {
      const int threads = omp_get_max_threads();
      bool found = false;
      for (const CheckResult& result : check_method(entry_of(fixture.fault), {.rounds = 2})) {
        INFO(result.check << ": " << result.detail);
        // Its temporaries are honest work, but no work for a timed call.
        if (fixture.caught_by.empty() && !result.check.starts_with("passes: "))
          CHECK(result.outcome != CheckOutcome::failed);
        if (result.outcome == CheckOutcome::failed) CHECK(!result.detail.empty());
        if (!fixture.caught_by.empty() && result.check.starts_with(fixture.caught_by)) {
          found = true;
          CHECK(result.outcome == CheckOutcome::failed);
        }
      }
      CHECK((found || fixture.caught_by.empty()));
      CHECK(omp_get_max_threads() == threads);
    }
}

TEST_CASE("a refused parameter is no failure, a crashing one is", "[methods][conformance]") {
  struct Picky final : Method {
    void prepare(const Problem& p, const Env&) override { problem = p; }
    void forward(const Inputs&, TensorView out, Saved*) override {
      for (Index e = 0; e < out.size(); ++e) out.data()[e] = 0;
    }
    Problem problem;
  };
  MethodEntry entry = entry_of("nothing");
  entry.info.passes = {Pass::forward};
  entry.params = {{.name = "size", .default_value = Index{2}, .min = 1, .max = 9, .help = ""}};
  const auto outcome = [&](auto refusal) {
    entry.create = [refusal](const Settings& s) -> std::unique_ptr<Method> {
      if (std::get<Index>(s.at("size")) == 9) throw refusal;
      return std::make_unique<Picky>();
    };
    return check_method(entry, {}).front().outcome;
  };
  CHECK(outcome(UserError("size: 9 does not divide n")) == CheckOutcome::passed);
  CHECK(outcome(Unsupported("size 9")) == CheckOutcome::passed);
  CHECK(outcome(std::bad_alloc()) == CheckOutcome::failed);
  CHECK(outcome(InternalError("oops")) == CheckOutcome::failed);
}
