// What several tasks share: loops over heads and rows, and random directions.
//
// For task sources alone: they are compiled without floating-point contraction, so that data have
// the same bits everywhere. Everything here has internal linkage, so that no copy compiled with
// other flags can take its place.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "harness/core/parallel.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

// Random numbers of head (b, h) in set `set`, for a named purpose.
[[maybe_unused]] Random head_random(Seed seed, std::string_view purpose, Index set, Index b,
                                    Index h) {
  return Random(seed, purpose,
                {static_cast<std::uint64_t>(set), static_cast<std::uint64_t>(b),
                 static_cast<std::uint64_t>(h)});
}

// Independent standard normal entries for a whole tensor.
[[maybe_unused]] void fill_tensor(Seed seed, std::string_view purpose, Index set, Tensor* out) {
  fill_normal(derive(seed, purpose, {static_cast<std::uint64_t>(set)}), out->data(), out->size());
}

// Calls body(b, h, begin, end) for pieces of the n rows of every head, in parallel.
template <class Body>
void for_rows(Index batch, Index heads, Index n, Body&& body) {
  constexpr Index kPiece = 512;
  const Index pieces = (n + kPiece - 1) / kPiece;
  parallel_for(batch * heads * pieces, [&](Index item, int) {
    const Index bh = item / pieces, begin = item % pieces * kPiece;
    body(bh / heads, bh % heads, begin, std::min(n, begin + kPiece));
  });
}

// Calls body(b, h) for every head, in parallel.
template <class Body>
void for_heads(Index batch, Index heads, Body&& body) {
  parallel_for(batch * heads, [&](Index bh, int) { body(bh / heads, bh % heads); });
}

// sum of x[c] * y[c], in order.
template <class X, class Y>
double dot(const X* x, const Y* y, Index d) {
  double sum = 0;
  for (Index c = 0; c < d; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(y[c]);
  return sum;
}

// `count` unit vectors of width d, uniform on the sphere; orthogonal to each other if asked (then
// count <= d). [count, d] row-major.
[[maybe_unused]] std::vector<double> directions(Random& random, Index count, Index d,
                                                bool orthogonal) {
  std::vector<double> all(static_cast<std::size_t>(count * d));
  for (Index m = 0; m < count; ++m) {
    double* x = all.data() + m * d;
    double length = 0;
    while (!(length > 1e-6)) {  // a draw inside the span of the others is drawn again
      for (Index c = 0; c < d; ++c) x[c] = random.normal();
      for (int pass = 0; orthogonal && pass < 2; ++pass)  // Gram-Schmidt, twice is enough
        for (Index other = 0; other < m; ++other) {
          const double* y = all.data() + other * d;
          const double along = dot(x, y, d);
          for (Index c = 0; c < d; ++c) x[c] -= along * y[c];
        }
      length = std::sqrt(dot(x, x, d));
    }
    for (Index c = 0; c < d; ++c) x[c] /= length;
  }
  return all;
}

// Scale of the entries of q and of k at which q.k has standard deviation `logit_std` over
// `free_dims` independent normal components: scale * s^2 * sqrt(free_dims) = logit_std.
[[maybe_unused]] double entry_scale(const Problem& p, double logit_std, Index free_dims) {
  if (free_dims <= 0) return 0;
  return std::sqrt(logit_std /
                   (std::fabs(p.logit_scale()) * std::sqrt(static_cast<double>(free_dims))));
}

}  // namespace
}  // namespace subquad
