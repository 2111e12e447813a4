// The top_k allowed keys of largest logit, ties to the lowest index.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "tests/reference/softmax_attention.h"

namespace subquad::reference {

// The choice is made per head, so heads are split into calls of one head each.
inline Sees sees_top_k(const Call& call, Index top_k) {
  const Problem& p = call.problem;
  SUBQUAD_CHECK(p.heads == 1, "one head at a time");
  auto chosen =
      std::make_shared<std::vector<bool>>(static_cast<std::size_t>(p.batch * p.n * p.n_kv), false);
  const auto index = [p](Index b, Index i, Index j) {
    return static_cast<std::size_t>((b * p.n + i) * p.n_kv + j);
  };
  for (Index b = 0; b < p.batch; ++b)
    for (Index i = 0; i < p.n; ++i) {
      std::vector<std::pair<double, Index>> ranked;  // (-logit, key): best first, ties by index
      for (Index j = 0; j < p.n_kv; ++j)
        if (allowed(call, b, i, j)) ranked.emplace_back(-logit(call, b, 0, i, j), j);
      std::sort(ranked.begin(), ranked.end());
      for (std::size_t r = 0; r < ranked.size() && r < static_cast<std::size_t>(top_k); ++r)
        (*chosen)[index(b, i, ranked[r].second)] = true;
    }
  return [chosen, index](Index b, Index i, Index j) { return (*chosen)[index(b, i, j)]; };
}

// One head of a call as a call of its own, and back.
inline Call one_head(const Call& call, Index h) {
  Call one;
  one.problem = call.problem;
  one.problem.heads = 1;
  one.key_mask = call.key_mask;
  const auto cut = [&](const TensorD& x) {
    TensorD y(x.batch(), 1, x.n(), x.d());
    for (Index b = 0; b < x.batch(); ++b) y.head(b, 0) = x.head(b, h);
    return y;
  };
  one.q = cut(call.q), one.k = cut(call.k), one.v = cut(call.v);
  return one;
}
inline void put_head(const TensorD& one, Index h, TensorD& all) {
  for (Index b = 0; b < all.batch(); ++b) all.head(b, h) = one.head(b, 0);
}

inline TensorD top_k_attention(const Call& call, Index top_k) {
  TensorD out(call.q.batch(), call.q.heads(), call.q.n(), call.v.d());
  for (Index h = 0; h < call.problem.heads; ++h) {
    const Call one = one_head(call, h);
    put_head(softmax_attention(one, sees_top_k(one, top_k)), h, out);
  }
  return out;
}

inline Gradient top_k_attention_gradient(const Call& call, Index top_k, const TensorD& dout) {
  Gradient all{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  for (Index h = 0; h < call.problem.heads; ++h) {
    const Call one = one_head(call, h);
    TensorD dout_one(dout.batch(), 1, dout.n(), dout.d());
    for (Index b = 0; b < dout.batch(); ++b) dout_one.head(b, 0) = dout.head(b, h);
    const Gradient g = softmax_attention_gradient(one, sees_top_k(one, top_k), dout_one);
    put_head(g.dq, h, all.dq), put_head(g.dk, h, all.dk), put_head(g.dv, h, all.dv);
  }
  return all;
}

}  // namespace subquad::reference
