// Methods that are honest or do one thing wrong, and jobs for them: what the tests of a cell's life
// share.
#pragma once

#include <catch2/catch.hpp>
#include <functional>
#include <memory>
#include <string>

#include "harness/core/method.h"
#include "harness/sweep/worker.h"

namespace subquad::fixture {

// ---- an honest method: exact attention, plain and small, in every timed pass ----

class Honest : public Method {
 public:
  struct Weights final : Saved {
    Tensor p;
  };

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    p_ = Tensor(problem.batch, problem.heads, problem.n, problem.n_kv);
    dp_ = Tensor(problem.batch, problem.heads, problem.n, problem.n_kv);
  }

  void forward(const Inputs& in, TensorView out, Saved* saved) override { attend(in, out, saved); }

  std::unique_ptr<Saved> make_saved() const override {
    auto saved = std::make_unique<Weights>();
    saved->p = Tensor(problem_.batch, problem_.heads, problem_.n, problem_.n_kv);
    return saved;
  }

  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& g) override {
    const Tensor& p = dynamic_cast<const Weights&>(saved).p;
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      const auto weights = p.view().head(bh);
      auto ds = dp_.view().head(bh);
      ds.noalias() = dout.head(bh) * in.v.head(bh).transpose();
      for (Index i = 0; i < problem_.n; ++i) {
        const float d = dout.head(bh).row(i).dot(out.head(bh).row(i));
        ds.row(i).array() = weights.row(i).array() * (ds.row(i).array() - d);
      }
      ds *= static_cast<float>(problem_.logit_scale());
      g.dq.head(bh).noalias() = ds * in.k.head(bh);
      g.dk.head(bh).noalias() = ds.transpose() * in.q.head(bh);
      g.dv.head(bh).noalias() = weights.transpose() * dout.head(bh);
    }
  }

  class Cache final : public Decoder {
   public:
    explicit Cache(const DecodeConfig& c)
        : c_(c), k_(c.batch, c.heads, c.capacity, c.d_k), v_(c.batch, c.heads, c.capacity, c.d_v) {}
    void reset() override { length_ = 0; }
    void step(const DecodeStep& in, float* out) override {
      for (Index bh = 0; bh < c_.batch * c_.heads; ++bh) {
        std::copy_n(in.k + bh * c_.d_k, c_.d_k, k_.view().head(bh).row(length_).data());
        std::copy_n(in.v + bh * c_.d_v, c_.d_v, v_.view().head(bh).row(length_).data());
        Eigen::Map<RowVector> o(out + bh * c_.d_v, c_.d_v);
        o.setZero();
        const Eigen::Map<const RowVector> q(in.q + bh * c_.d_k, c_.d_k);
        const auto logit = [&](Index j) {
          return static_cast<float>(c_.logit_scale()) * q.dot(k_.view().head(bh).row(j));
        };
        float largest = -1e30f, sum = 0;
        for (Index j = 0; j <= length_; ++j) largest = std::max(largest, logit(j));
        for (Index j = 0; j <= length_; ++j) {
          const float w = std::exp(logit(j) - largest);
          sum += w;
          o += w * v_.view().head(bh).row(j);
        }
        o /= sum;
      }
      ++length_;
    }
    CacheBytes bytes() const override {
      const auto tokens = static_cast<double>(length_ * c_.batch * c_.heads);
      return {.kv = 4 * tokens * static_cast<double>(c_.d_k + c_.d_v), .aux = 8};
    }

   private:
    DecodeConfig c_;
    Tensor k_, v_;
    Index length_ = 0;
  };
  std::unique_ptr<Decoder> make_decoder(const DecodeConfig& c) const override {
    return std::make_unique<Cache>(c);
  }

  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override {
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto row = static_cast<Index>(r);
      weights.row(row) = (static_cast<float>(problem_.logit_scale()) * in.k.head(b, h) *
                          in.q.head(b, h).row(rows[r]).transpose())
                             .transpose();
      weights.row(row).tail(problem_.n_kv - problem_.visible(rows[r])).setConstant(-1e30f);
      weights.row(row).array() = (weights.row(row).array() - weights.row(row).maxCoeff()).exp();
      weights.row(row) /= weights.row(row).sum();
    }
    return true;
  }
  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv)};
  }
  double extra_bytes(const Problem& p, Pass) const override {
    return 8.0 * static_cast<double>(p.batch * p.heads * p.n * p.n_kv);
  }
  double flops(const Problem& p, Pass) const override {
    return 2 * p.visible_entries() * static_cast<double>(p.d_k + p.d_v);
  }
  std::vector<Metric> metrics() const override { return {{"kept", 0.5}, {"guarded", 0}}; }

 protected:
  void attend(const Inputs& in, TensorView out, Saved* saved) {
    for (Index bh = 0; bh < problem_.batch * problem_.heads; ++bh) {
      auto w = p_.view().head(bh);
      w.noalias() = in.q.head(bh) * in.k.head(bh).transpose();
      for (Index i = 0; i < problem_.n; ++i) {
        const Index visible = problem_.visible(i);
        w.row(i).tail(problem_.n_kv - visible).setZero();
        auto seen = w.row(i).head(visible).array();
        seen *= static_cast<float>(problem_.logit_scale());
        seen = (seen - seen.maxCoeff()).exp();
        seen /= seen.sum();
      }
      out.head(bh).noalias() = w * in.v.head(bh);
    }
    if (saved != nullptr)
      std::copy_n(p_.data(), p_.size(), dynamic_cast<Weights&>(*saved).p.data());
  }

  Problem problem_;
  Tensor p_, dp_;
};

MethodInfo fixture_info(const std::string& name);

// A method that is Honest but for what `forward` does around it. `calls` counts forward calls.
using Misdeed = std::function<void(Honest&, const Inputs&, TensorView, int calls)>;

struct Wrong : Honest {
  explicit Wrong(Misdeed deed) : misdeed(std::move(deed)) {}
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    if (saved != nullptr || calls < 0) return attend(in, out, saved);
    misdeed(*this, in, out, calls++);
  }
  Misdeed misdeed;
  int calls = 0;
};

inline void honestly(Honest& m, const Inputs& in, TensorView out) {
  m.Honest::forward(in, out, nullptr);
}

// Registers a method with this misdeed; `change` edits its declaration.
const std::string& wrong_method(const std::string& name, Misdeed deed,
                                const std::function<void(MethodInfo&)>& change = {});

// ---- jobs ----

Job job_for(const std::string& method, Pass pass = Pass::forward, Index n = 64);

JobResult run_method(const std::string& method, Pass pass = Pass::forward, Index n = 64);

bool measured(const JobResult& r);

// A column's number; the test fails where there is none.
double number(const JobResult& r, const std::string& column);

bool has_flag(const JobResult& r, const std::string& flag);

#define CHECK_WRONG(method, words)                      \
  do {                                                  \
    const JobResult result_ = run_method(method);       \
    CHECK(name(result_.status) == "wrong");             \
    CHECK_THAT(result_.reason, Catch::Contains(words)); \
    CHECK(result_.samples.empty());                     \
    CHECK(result_.columns.count("time_s") == 0);        \
  } while (false)

}  // namespace subquad::fixture
