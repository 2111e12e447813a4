// The patterns of longformer, bigbird and block_sparse.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <utility>

#include "harness/core/random.h"
#include "tests/reference/softmax_attention.h"

namespace subquad::reference {

// |i - j| <= w, or one of the two is among the first g tokens.
inline Sees sees_longformer(const Call& call, Index w, Index g) {
  return [&call, w, g](Index b, Index i, Index j) {
    return allowed(call, b, i, j) && (i < g || j < g || (i - j <= w && j - i <= w));
  };
}

// weights_ij of softmax over the entries that `sees` lets head h see, [batch, heads, n, n_kv].
using SeesOfHead = std::function<bool(Index h, Index i, Index j)>;

// One call per head: the plain softmax knows of no heads.
inline Call head_call(const Call& call, Index h) {
  Call one;
  one.problem = call.problem;
  one.problem.heads = 1;
  one.key_mask = call.key_mask;
  const auto pick = [&](const TensorD& x) {
    TensorD y(x.batch(), 1, x.n(), x.d());
    for (Index b = 0; b < x.batch(); ++b)
      for (Index i = 0; i < x.n(); ++i)
        for (Index c = 0; c < x.d(); ++c) at(y, b, 0, i, c) = at(x, b, h, i, c);
    return y;
  };
  one.q = pick(call.q);
  one.k = pick(call.k);
  one.v = pick(call.v);
  return one;
}
inline void put_head(const TensorD& from, Index h, TensorD* to) {
  for (Index b = 0; b < from.batch(); ++b)
    for (Index i = 0; i < from.n(); ++i)
      for (Index c = 0; c < from.d(); ++c) at(*to, b, h, i, c) = at(from, b, 0, i, c);
}

inline TensorD attention_by_head(const Call& call, const SeesOfHead& sees) {
  const Problem& p = call.problem;
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  for (Index h = 0; h < p.heads; ++h) {
    const Call one = head_call(call, h);
    put_head(
        softmax_attention(
            one, [&](Index b, Index i, Index j) { return allowed(one, b, i, j) && sees(h, i, j); }),
        h, &out);
  }
  return out;
}

inline Gradient gradient_by_head(const Call& call, const SeesOfHead& sees, const TensorD& dout) {
  Gradient all{TensorD(call.q.shape()), TensorD(call.k.shape()), TensorD(call.v.shape())};
  for (Index h = 0; h < call.problem.heads; ++h) {
    const Call one = head_call(call, h);
    TensorD part(dout.batch(), 1, dout.n(), dout.d());
    for (Index b = 0; b < dout.batch(); ++b)
      for (Index i = 0; i < dout.n(); ++i)
        for (Index c = 0; c < dout.d(); ++c) at(part, b, 0, i, c) = at(dout, b, h, i, c);
    const Gradient g = softmax_attention_gradient(
        one, [&](Index b, Index i, Index j) { return allowed(one, b, i, j) && sees(h, i, j); },
        part);
    put_head(g.dq, h, &all.dq);
    put_head(g.dk, h, &all.dk);
    put_head(g.dv, h, &all.dv);
  }
  return all;
}

// Blocks of `block` tokens, n_b of them. Block x sees 0, x - 1, x, x + 1, n_b - 1 and r others, the
// outer two see all. The others are the draws that seed, head and block name.
inline SeesOfHead sees_bigbird(Index n, Index block, Index r, const std::string& plan, Seed seed) {
  // The draws of a block, made once.
  const auto drawn = std::make_shared<std::map<std::pair<Index, Index>, std::set<Index>>>();
  return [=](Index h, Index i, Index j) {
    const Index blocks = (n + block - 1) / block, x = i / block, y = j / block;
    if (x == 0 || x == blocks - 1 || y == 0 || y == blocks - 1 || std::abs(x - y) <= 1) return true;
    const auto found = drawn->find({h, x});
    if (found != drawn->end()) return found->second.contains(y);
    std::vector<Index> others;
    for (Index z = 1; z < blocks - 1; ++z) {
      if (std::abs(x - z) <= 1 || (x == 1 && z == blocks - 2) || (x == blocks - 2 && z == 1))
        continue;
      const bool early = n >= 1024 && n <= 4096 ? z < 1024 / block : z < 2 * r + 5;
      if (plan == "all" || early) others.push_back(z);
    }
    const auto count = static_cast<Index>(others.size());
    Random random(seed, "bigbird", {static_cast<std::uint64_t>(h), static_cast<std::uint64_t>(x)});
    std::set<Index>& set = (*drawn)[{h, x}];
    for (const Index pick : random.sample_without_replacement(count, std::min(r, count)))
      set.insert(others[static_cast<std::size_t>(pick)]);
    return set.contains(y);
  };
}

// Child et al.: the last s blocks or every s-th one; or the own group of s blocks and the last c of
// every group.
inline SeesOfHead sees_block_sparse(const std::string& pattern, Index block, Index s, Index c) {
  return [=](Index, Index i, Index j) {
    const Index x = i / block, y = j / block;
    if (pattern == "strided") return std::abs(x - y) < s || std::abs(x - y) % s == 0;
    return x / s == y / s || y % s >= s - c;
  };
}

}  // namespace subquad::reference
