#include "methods/engines/sea_sparse.h"

#include <cmath>

#include "methods/engines/row_attention.h"

namespace subquad {

using namespace engine;

namespace {

// Calls body(h, from, to) for the segments of one head in entries [begin, end) of flat columns.
template <class Body>
void segments(const std::int32_t* columns, Index begin, Index end, Index n, Body&& body) {
  while (begin < end) {
    const Index h = columns[begin] / n;
    const auto limit = static_cast<std::int32_t>((h + 1) * n);
    Index to = begin + 1;
    while (to < end && columns[to] < limit) ++to;
    body(h, begin, to);
    begin = to;
  }
}

}  // namespace

SeaCoo coo_of(const SeaCsr& csr) {
  SeaCoo coo;
  for (std::size_t t = 0; t + 1 < csr.row_ptr.size(); ++t)
    for (Index e = csr.row_ptr[t]; e < csr.row_ptr[t + 1]; ++e) {
      coo.rows.push_back(static_cast<std::int64_t>(t));
      coo.columns.push_back(csr.columns[static_cast<std::size_t>(e)]);
    }
  return coo;
}

SeaRuns runs_of(const SeaCsr& csr, Index n) {
  SeaRuns runs;
  runs.row_ptr.push_back(0);
  for (std::size_t t = 0; t + 1 < csr.row_ptr.size(); ++t) {
    for (Index e = csr.row_ptr[t]; e < csr.row_ptr[t + 1]; ++e) {
      const std::int32_t column = csr.columns[static_cast<std::size_t>(e)];
      if (e > csr.row_ptr[t] && column == runs.first.back() + runs.lengths.back() &&
          column % n != 0) {
        ++runs.lengths.back();
      } else {
        runs.first.push_back(column);
        runs.lengths.push_back(1);
      }
    }
    runs.row_ptr.push_back(static_cast<Index>(runs.first.size()));
  }
  return runs;
}

// The columns of all heads are rows of one matrix: [heads * n, d].
void SeaSparse::csr(const SeaCsr& rows, TensorView out) {
  const Index n = q.n(), d_k = q.d(), d_v = v.d();
  values.resize(rows.columns.size() + kLanes);
  std::fill_n(out.data(), out.size(), 0.0f);
  std::vector<float> scaled(static_cast<std::size_t>(d_k)), tail(kLanes);
  const auto factor = static_cast<float>(scale) * kLog2e;
  for (Index t = 0; t < n; ++t)
    segments(rows.columns.data(), rows.row_ptr[static_cast<std::size_t>(t)],
             rows.row_ptr[static_cast<std::size_t>(t) + 1], n, [&](Index h, Index from, Index to) {
               const float* const query = q.data() + (h * n + t) * d_k;
               for (std::size_t c = 0; c < scaled.size(); ++c) scaled[c] = query[c] * factor;
               RowQuery(scaled.data(), d_k, tail.data())
                   .score(GatheredRows<std::int32_t>{k.data(), d_k, rows.columns.data() + from},
                          to - from, values.data() + from);
             });
  // A second pass, so that the rows of k and those of v do not compete for the caches.
  std::vector<float> row(static_cast<std::size_t>(round_up(n, kLanes)));
  for (Index t = 0; t < n; ++t)
    segments(rows.columns.data(), rows.row_ptr[static_cast<std::size_t>(t)],
             rows.row_ptr[static_cast<std::size_t>(t) + 1], n, [&](Index h, Index from, Index to) {
               const Index count = to - from;
               std::copy_n(values.data() + from, count, row.data());
               const Bounds whole = mask_row(row.data(), {0, count}, nullptr, -kInfinity);
               const float shift = whole_shift(horizontal_max(row_max(row.data(), whole)));
               const float normal = 1 / horizontal_sum(exponentiate(row.data(), whole, shift));
               float* const result = out.data() + (h * n + t) * d_v;
               add_weighted_rows(
                   row.data(),
                   GatheredRows<std::int32_t>{v.data(), d_v, rows.columns.data() + from}, count,
                   d_v, result);
               for (Index c = 0; c < d_v; ++c) result[c] *= normal;
             });
}

void SeaSparse::coo(const SeaCoo& entries, TensorView out) {
  const Index n = q.n(), d_k = q.d(), d_v = v.d(), groups = q.heads() * n;
  const auto count = static_cast<Index>(entries.rows.size());
  values.resize(entries.rows.size());
  most.assign(static_cast<std::size_t>(groups), -kInfinity);
  sum.assign(static_cast<std::size_t>(groups), 0.0f);
  const auto factor = static_cast<float>(scale);
  const auto group = [&](Index e) {  // of the softmax: head and query
    const auto at = static_cast<std::size_t>(e);
    return static_cast<std::size_t>(entries.columns[at] / n * n + entries.rows[at]);
  };
  for (Index e = 0; e < count; ++e) {
    const float* const a = q.data() + static_cast<Index>(group(e)) * d_k;
    const float* const b = k.data() + entries.columns[static_cast<std::size_t>(e)] * d_k;
    Vec total{};
    Index c = 0;
    for (; c + kLanes <= d_k; c += kLanes) total += load(a + c) * load(b + c);
    float dot = horizontal_sum(total);
    for (; c < d_k; ++c) dot += a[c] * b[c];
    values[static_cast<std::size_t>(e)] = factor * dot;
  }
  for (Index e = 0; e < count; ++e)
    most[group(e)] = std::max(most[group(e)], values[static_cast<std::size_t>(e)]);
  for (Index e = 0; e < count; ++e) {
    float& value = values[static_cast<std::size_t>(e)];
    value = std::exp(value - most[group(e)]);
    sum[group(e)] += value;
  }
  for (Index e = 0; e < count; ++e) values[static_cast<std::size_t>(e)] /= sum[group(e)];
  std::fill_n(out.data(), out.size(), 0.0f);
  for (Index e = 0; e < count; ++e) {
    const float* const from = v.data() + entries.columns[static_cast<std::size_t>(e)] * d_v;
    float* const to = out.data() + static_cast<Index>(group(e)) * d_v;
    const float weight = values[static_cast<std::size_t>(e)];
    Index c = 0;
    for (; c + kLanes <= d_v; c += kLanes) store(to + c, load(to + c) + weight * load(from + c));
    for (; c < d_v; ++c) to[c] += weight * from[c];
  }
}

void SeaSparse::runs(const SeaRuns& rows, TensorView out) {
  const Index n = q.n(), d_k = q.d(), d_v = v.d();
  expanded.resize(static_cast<std::size_t>(q.heads() * n));
  std::vector<float> scaled(static_cast<std::size_t>(d_k)), tail(kLanes),
      row(static_cast<std::size_t>(round_up(n, kLanes)));
  const auto factor = static_cast<float>(scale) * kLog2e;
  std::fill_n(out.data(), out.size(), 0.0f);
  for (Index t = 0; t < n; ++t) {
    Index count = 0;
    for (Index r = rows.row_ptr[static_cast<std::size_t>(t)];
         r < rows.row_ptr[static_cast<std::size_t>(t) + 1]; ++r)
      for (std::int32_t i = 0; i < rows.lengths[static_cast<std::size_t>(r)]; ++i)
        expanded[static_cast<std::size_t>(count++)] = rows.first[static_cast<std::size_t>(r)] + i;
    segments(expanded.data(), 0, count, n, [&](Index h, Index from, Index to) {
      const float* const query = q.data() + (h * n + t) * d_k;
      float* const result = out.data() + (h * n + t) * d_v;
      for (std::size_t c = 0; c < scaled.size(); ++c) scaled[c] = query[c] * factor;
      const Part part =
          attend_rows(RowQuery(scaled.data(), d_k, tail.data()),
                      GatheredRows<std::int32_t>{k.data(), d_k, expanded.data() + from},
                      GatheredRows<std::int32_t>{v.data(), d_v, expanded.data() + from}, to - from,
                      d_v, row.data(), result);
      const float normal = 1 / part.sum;
      for (Index c = 0; c < d_v; ++c) result[c] *= normal;
    });
  }
}

}  // namespace subquad
