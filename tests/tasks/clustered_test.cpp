#include <catch2/catch.hpp>

#include "tests/tasks/attention.h"

using namespace subquad;

namespace {
// Clusters of the keys, found back from the values' common parts being unknown: keys whose dot
// product exceeds half of the squared radius belong together.
std::vector<Index> cluster_ids(const MatrixD& keys, Index* count) {
  std::vector<Index> id(static_cast<std::size_t>(keys.rows()), -1), first;
  for (Index j = 0; j < keys.rows(); ++j) {
    for (std::size_t c = 0; c < first.size(); ++c)
      if (keys.row(j).dot(keys.row(first[c])) >
          0.7 * keys.row(j).norm() * keys.row(first[c]).norm())
        id[static_cast<std::size_t>(j)] = static_cast<Index>(c);
    if (id[static_cast<std::size_t>(j)] >= 0) continue;
    id[static_cast<std::size_t>(j)] = static_cast<Index>(first.size());
    first.push_back(j);
  }
  *count = static_cast<Index>(first.size());
  return id;
}
}  // namespace

TEST_CASE("clustered keys form the clusters asked for, and queries attend to theirs",
          "[clustered]") {
  for (const Index query_clusters : {1, 3}) {
    Problem p;
    p.n = 200, p.n_kv = 600, p.d_k = 64, p.d_v = 16;
    const QKV data = fill("clustered",
                          {{"clusters", Index{12}},
                           {"spread", 0.2},
                           {"query_clusters", query_clusters},
                           {"sharpness", 8.0}},
                          p);
    Index count = 0;
    const auto id = cluster_ids(data.k.head(0, 0).cast<double>(), &count);
    CHECK(count == 12);
    const MatrixD weights = weights_of(data, p), logits = logits_of(data, p);
    double held = 0, near = 0;
    for (Index i = 0; i < p.n; ++i) {
      std::vector<double> mass(static_cast<std::size_t>(count)), mean(mass.size()),
          size(mass.size());
      for (Index j = 0; j < p.n_kv; ++j) {
        const auto c = static_cast<std::size_t>(id[static_cast<std::size_t>(j)]);
        mass[c] += weights(i, j), mean[c] += logits(i, j), size[c] += 1;
      }
      for (std::size_t c = 0; c < mass.size(); ++c) mean[c] /= size[c];
      std::sort(mass.rbegin(), mass.rend());
      std::sort(mean.rbegin(), mean.rend());
      for (Index c = 0; c < query_clusters; ++c) {
        held += mass[static_cast<std::size_t>(c)];
        near += mean[static_cast<std::size_t>(c)];
      }
    }
    held /= static_cast<double>(p.n);
    near /= static_cast<double>(p.n * query_clusters);
    CHECK(held > 0.95);
    CHECK(near == Approx(8).margin(1.2));  // centres are not exactly orthogonal
  }
}

TEST_CASE("clustered with spread 0 has as many distinct keys as clusters", "[clustered]") {
  Problem p;
  p.n = p.n_kv = 100, p.d_k = 8;
  const QKV data = fill("clustered", {{"clusters", Index{5}}, {"spread", 0.0}}, p);
  Index distinct = 0;
  for (Index j = 0; j < p.n_kv; ++j) {
    bool seen = false;
    for (Index other = 0; other < j; ++other)
      seen = seen || data.k.head(0, 0).row(j) == data.k.head(0, 0).row(other);
    distinct += seen ? 0 : 1;
  }
  CHECK(distinct == 5);
}

TEST_CASE("clustered refuses a query near more clusters than there are", "[clustered]") {
  const auto task = make_task("clustered", {{"clusters", Index{2}}, {"query_clusters", Index{3}}});
  Problem p;
  p.n = p.n_kv = 4;
  CHECK(task->unsupported(p) == "query_clusters=3 is more than clusters=2");
}
