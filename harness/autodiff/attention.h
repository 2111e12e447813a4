// Attention as an op: by a method's own forward and backward, or written out in ops.
#pragma once

#include "harness/autodiff/ops.h"
#include "harness/core/method.h"

namespace subquad::autodiff {

// One call of a prepared method. Everything here stays the caller's until the tape is cleared.
struct MethodCall {
  Method* method = nullptr;
  Saved* saved = nullptr;  // of method->make_saved(); not needed without gradients
  std::span<const std::uint8_t> key_mask = {};
  bool training = false;
  std::uint64_t step = 0;
};

// q, k [batch, heads, n, d_k], v [batch, heads, n, d_v] -> [batch, heads, n, d_v]; x
// [batch, n, d_model] for methods with uses_hidden, else empty. The gradients of the method's own
// parameters are added to Parameter::grad.
Var<float> attention(Var<float> q, Var<float> k, Var<float> v, Var<float> x,
                     const MethodCall& call);

// softmax(scale q k^T) v out of single ops, with the causal rule of Problem. The plain form that
// others are compared with; O(n^2) memory. `hidden` holds n * n_kv flags (0 = not seen), or is
// empty; it must stay until the tape is cleared.
template <class T>
Var<T> plain_attention(Var<T> q, Var<T> k, Var<T> v, double scale_of_logits,
                       std::span<const std::uint8_t> seen);

}  // namespace subquad::autodiff
