// PyTorch's exact attention through the C++ interface of libtorch. Peers: what a user of PyTorch
// gets on the CPU, in the same sweep.
//   torch_sdpa      torch.nn.functional.scaled_dot_product_attention (1.13: its first form)
//   torch_explicit  softmax(q k^T scale) v written out
// Tensors wrap the caller's memory; backward is autograd's, over the graph that forward recorded.
// Operators take their memory from the allocator in every call, as they do for every user.
#include <ATen/Parallel.h>
#include <omp.h>
#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/version.h>

#include <cmath>
#include <limits>

#include "harness/core/registry.h"
#include "methods/peers/finite_values.h"

namespace subquad {
namespace {

at::Tensor wrap(const float* data, const Shape& s) {
  // from_blob asks for a writable pointer; inputs are only read.
  return torch::from_blob(const_cast<float*>(data), {s.batch, s.heads, s.n, s.d}, at::kFloat);
}
at::Tensor wrap(const ConstTensorView& t) { return wrap(t.data(), t.shape()); }
at::Tensor wrap(const TensorView& t) { return wrap(t.data(), t.shape()); }

// The graph of one forward.
struct Graph final : Saved {
  at::Tensor q, k, v, out;
};

class TorchAttention : public Method {
 public:
  std::string unsupported(const Problem& p, Pass) const override {
    return p.causal && p.n != p.n_kv ? "causal here needs n_kv = n" : "";
  }

  void prepare(const Problem& problem, const Env&) override {
    problem_ = problem;
    follow_threads();
  }
  std::unique_ptr<Saved> make_saved() const override { return std::make_unique<Graph>(); }

  // Time O(n n_kv (d_k + d_v)) per head, extra memory several matrices of n x n_kv.
  void forward(const Inputs& in, TensorView out, Saved* saved) override {
    follow_threads();
    const at::Tensor q = wrap(in.q), k = wrap(in.k), v = wrap(in.v);
    if (saved == nullptr) {
      const at::NoGradGuard no_grad;
      if (problem_.causal && !peers::all_finite(in.v)) {
        const Tensor finite = peers::finite_copy(in.v);
        attend(q, k, wrap(finite.view()), wrap(out));
        peers::add_not_finite(problem_, in.v, out);
      } else {
        attend(q, k, v, wrap(out));
      }
      return;
    }
    auto& graph = static_cast<Graph&>(*saved);
    graph.q = q.requires_grad_();
    graph.k = k.requires_grad_();
    graph.v = v.requires_grad_();
    const at::AutoGradMode grad(true);
    graph.out = attend(graph.q, graph.k, graph.v);
    const at::NoGradGuard no_grad;
    wrap(out).copy_(graph.out.detach());
  }

  void backward(const Inputs&, ConstTensorView, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override {
    follow_threads();
    const auto& graph = static_cast<const Graph&>(saved);
    // The graph is kept: a forward may be differentiated several times.
    const torch::autograd::variable_list g = torch::autograd::grad(
        {graph.out}, {graph.q, graph.k, graph.v}, {wrap(dout)}, /*retain_graph=*/true);
    const at::NoGradGuard no_grad;
    wrap(grads.dq).copy_(g[0]);
    wrap(grads.dk).copy_(g[1]);
    wrap(grads.dv).copy_(g[2]);
  }

  Budget budget(const Problem& p) const override {
    return {.keys_per_query = static_cast<double>(p.n_kv)};
  }
  double flops(const Problem& p, Pass pass) const override {
    const double forward = 2 * static_cast<double>(p.batch * p.heads) * p.visible_entries() *
                           static_cast<double>(p.d_k + p.d_v);
    if (pass == Pass::forward) return forward;
    return pass == Pass::backward ? 2 * forward : 3 * forward;
  }

 protected:
  // The output as a new tensor, which a graph may hold.
  virtual at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) = 0;
  // The output into memory of the caller.
  virtual void attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      at::Tensor out) = 0;

  Problem problem_;

 private:
  // Operators run on a team of their own size: that of the harness.
  static void follow_threads() {
    if (at::get_num_threads() != omp_get_max_threads()) at::set_num_threads(omp_get_max_threads());
  }
};

class TorchSdpa final : public TorchAttention {
 protected:
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override {
    // The operator divides by sqrt(d_k) itself.
    const double factor = problem_.logit_scale() * std::sqrt(static_cast<double>(problem_.d_k));
    const at::Tensor scaled = std::fabs(factor - 1) < 1e-12 ? q : q * factor;
    return std::get<0>(at::_scaled_dot_product_attention(scaled, k, v, {}, 0.0,
                                                         /*need_attn_weights=*/false,
                                                         problem_.causal));
  }
  void attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              at::Tensor out) override {
    out.copy_(attend(q, k, v));
  }
};

class TorchExplicit final : public TorchAttention {
 public:
  void prepare(const Problem& problem, const Env& env) override {
    TorchAttention::prepare(problem, env);
    mask_ = problem.causal ? torch::full({problem.n, problem.n},
                                         -std::numeric_limits<float>::infinity(), at::kFloat)
                                 .triu_(1)
                           : at::Tensor();
  }

 protected:
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override {
    at::Tensor s = at::matmul(q * problem_.logit_scale(), k.transpose(-1, -2));
    if (mask_.defined()) s = s + mask_;
    return at::matmul(at::softmax(s, -1), v);
  }
  void attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
              at::Tensor out) override {
    at::Tensor s = at::matmul(q * problem_.logit_scale(), k.transpose(-1, -2));
    if (mask_.defined()) s += mask_;
    at::matmul_out(out, at::softmax(s, -1), v);
  }

 private:
  at::Tensor mask_;  // [n, n], minus infinity above the diagonal
};

MethodInfo declared(const char* name, const char* summary) {
  return {.name = name,
          .family = "peers",
          .source = "PyTorch " TORCH_VERSION,
          .summary = summary,
          .causality = Causality::weights,
          .cross_attention = true,
          .passes = {Pass::forward, Pass::backward},
          .exact = true,
          .exact_limit = [](const Problem&) { return Settings{}; },
          .time_exponent = 2,
          .memory_exponent = 2,
          .notes = {"not strictly causal: what is hidden is computed and multiplied by zero; "
                    "values that are not "
                    "finite are kept out, without gradients",
                    "operators allocate their results in every call",
                    "backward: the graph that forward recorded, by autograd"}};
}

const RegisterMethod<TorchSdpa> kSdpa{
    declared("torch_sdpa", "peer: PyTorch's scaled_dot_product_attention")};
const RegisterMethod<TorchExplicit> kExplicit{
    declared("torch_explicit", "peer: softmax(q k^T) v written out in PyTorch")};

}  // namespace
}  // namespace subquad
