// A method with nothing but a forward, and the same attention with a fused pair.

#include "harness/autodiff/differentiable_method.h"

#include <catch2/catch.hpp>
#include <limits>

#include "harness/autodiff/attention.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

using autodiff::DifferentiableMethod;
using autodiff::Var;

// Causal softmax attention whose queries are scaled by a learned factor.
class Written final : public DifferentiableMethod {
 public:
  Var<float> attend(const Call& c) override {
    const Var<float> q = autodiff::mul(c.q, c.parameter(factor_));
    return autodiff::plain_attention(q, c.k, c.v, problem().logit_scale(),
                                     std::span<const std::uint8_t>(seen_));
  }
  std::vector<Parameter*> parameters() override { return {&factor_}; }

 protected:
  void set_up(const Problem& p, const Env&) override {
    seen_.assign(static_cast<std::size_t>(p.n * p.n_kv), 0);
    for (Index i = 0; i < p.n; ++i)
      for (Index j = 0; j < p.visible(i); ++j) seen_[static_cast<std::size_t>(i * p.n_kv + j)] = 1;
    factor_.name = "factor";
    factor_.shape = {1};
    factor_.value = AlignedArray<float>(1);
    factor_.grad = AlignedArray<float>(1);
    factor_.value[0] = 1;
  }

 private:
  std::vector<std::uint8_t> seen_;
  Parameter factor_;
};

double difference(const Tensor& a, const Tensor& b) {
  double off = 0, size = 0;
  for (Index i = 0; i < a.size(); ++i) {
    off += std::pow(static_cast<double>(a.data()[i]) - static_cast<double>(b.data()[i]), 2);
    size += std::pow(static_cast<double>(b.data()[i]), 2);
  }
  return std::sqrt(off / size);
}

TEST_CASE("a forward alone has the gradients of the fused pair", "[autodiff]") {
  const Problem p{.batch = 2, .heads = 3, .n = 37, .n_kv = 41, .d_k = 8, .d_v = 5, .causal = true};
  QKV data(p);
  for (auto [tensor, seed] : {std::pair{&data.q, Seed{1}}, {&data.k, Seed{2}}, {&data.v, Seed{3}}})
    fill_normal(seed, tensor->data(), tensor->size());
  Tensor dout(p.batch, p.heads, p.n, p.d_v);
  fill_normal(4, dout.data(), dout.size());

  struct Result {
    Tensor out, dq, dk, dv;
  };
  const auto run = [&](Method& method, int backwards) {
    method.prepare(p, {.gradients = true});
    Result r{dout, data.q, data.k, data.v};
    const auto saved = method.make_saved();
    method.forward(data.inputs(), r.out, saved.get());
    for (int i = 0; i < backwards; ++i)
      method.backward(data.inputs(), std::as_const(r.out), std::as_const(dout), *saved,
                      {r.dq, r.dk, r.dv, {}});
    return r;
  };
  Written written;
  const auto dense = make_method("dense");
  const Result a = run(written, 1), b = run(*dense, 1);
  CHECK(difference(a.out, b.out) <= 1e-5);
  CHECK(difference(a.dq, b.dq) <= 1e-5);
  CHECK(difference(a.dk, b.dk) <= 1e-5);
  CHECK(difference(a.dv, b.dv) <= 1e-5);

  // dL / dfactor = sum of q * dq at a factor of 1.
  double expected = 0;
  for (Index i = 0; i < a.dq.size(); ++i)
    expected += static_cast<double>(a.dq.data()[i]) * static_cast<double>(data.q.data()[i]);
  const double got = static_cast<double>(written.parameters()[0]->grad[0]);
  CHECK(std::abs(got - expected) <= 1e-3 * std::abs(expected));

  // A second way back for the same forward, and a forward without one.
  Written again;
  const Result c = run(again, 2);
  CHECK(difference(c.dq, a.dq) == 0);
  Tensor out = dout;
  again.forward(data.inputs(), out, nullptr);
  CHECK(difference(out, a.out) == 0);
}

}  // namespace
}  // namespace subquad
