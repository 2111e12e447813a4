#include "harness/core/method.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace subquad {

std::string_view name(Causality causality) {
  switch (causality) {
    case Causality::none:
      return "none";
    case Causality::weights:
      return "weights";
    case Causality::strict:
      return "strict";
  }
  return "?";
}

std::string_view name(Approximates approximates) {
  switch (approximates) {
    case Approximates::softmax:
      return "softmax";
    case Approximates::own_kernel:
      return "own_kernel";
    case Approximates::nothing:
      return "nothing";
  }
  return "?";
}

std::string_view name(MatrixDistance distance) {
  switch (distance) {
    case MatrixDistance::none:
      return "";
    case MatrixDistance::frobenius:
      return "matrix_error";
    case MatrixDistance::row_tv:
      return "row_tv";
  }
  return "?";
}

double DecodeConfig::logit_scale() const {
  return scale != 0 ? scale : 1.0 / std::sqrt(static_cast<double>(d_k));
}

void Decoder::prefill(ConstTensorView q, ConstTensorView k, ConstTensorView v, ConstTensorView x) {
  const Index batch = k.batch(), heads = k.heads(), length = k.n(), d_e = x.empty() ? 0 : x.d();
  AlignedArray<float> token_q(batch * heads * q.d()), token_k(batch * heads * k.d()),
      token_v(batch * heads * v.d()), token_x(batch * d_e), out(batch * heads * v.d());
  const auto gather = [&](const ConstTensorView& from, Index t, float* to) {
    for (Index b = 0; b < from.batch(); ++b)
      for (Index h = 0; h < from.heads(); ++h)
        std::copy_n(from.head_data(b, h) + t * from.d(), from.d(),
                    to + (b * from.heads() + h) * from.d());
  };
  for (Index t = 0; t < length; ++t) {
    gather(q, t, token_q.data());
    gather(k, t, token_k.data());
    gather(v, t, token_v.data());
    if (d_e > 0) gather(x, t, token_x.data());
    step({token_q.data(), token_k.data(), token_v.data(), d_e > 0 ? token_x.data() : nullptr},
         out.data());
  }
}

void Method::backward(const Inputs&, ConstTensorView, ConstTensorView, const Saved&,
                      const Gradients&) {
  throw Unsupported("the method has no backward pass");
}

std::unique_ptr<Decoder> Method::make_decoder(const DecodeConfig&) const {
  throw Unsupported("the method has no decoder");
}

bool MethodInfo::supports(Pass pass) const {
  // Both halves together are supported where both halves are.
  if (pass == Pass::forward_backward) return supports(Pass::forward) && supports(Pass::backward);
  // Training needs no more than gradients.
  if (pass == Pass::train) return supports(Pass::forward_backward);
  // Fitting by the method's own gradients (fit.h), or by its own fit.
  if (pass == Pass::fit && learned && supports(Pass::backward)) return true;
  return std::find(passes.begin(), passes.end(), pass) != passes.end();
}

std::string unsupported_reason(const MethodEntry& entry, const Method& method,
                               const Problem& problem, Pass pass) {
  const MethodInfo& info = entry.info;
  if (!info.supports(pass)) return fmt::format("{} has no {} pass", info.name, name(pass));
  if (problem.causal && info.causality == Causality::none)
    return fmt::format("{} has no causal form", info.name);
  if (!problem.causal && !info.bidirectional)
    return fmt::format("{} has no bidirectional form", info.name);
  if (pass == Pass::decode && !problem.causal) return "decoding is causal: set causal: true";
  if (pass == Pass::decode && problem.n != problem.n_kv) return "decoding needs n_kv = n";
  if (problem.n != problem.n_kv && !info.cross_attention)
    return fmt::format("{} needs n_kv = n, got n={} and n_kv={}", info.name, problem.n,
                       problem.n_kv);
  if (info.max_n > 0 && std::max(problem.n, problem.n_kv) > info.max_n)
    return fmt::format("{} is limited to n <= {}", info.name, info.max_n);
  return method.unsupported(problem, pass);
}

}  // namespace subquad
