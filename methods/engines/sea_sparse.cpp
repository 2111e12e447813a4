#include "methods/engines/sea_sparse.h"

#include <bit>
#include <cmath>

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
  coo.rows.reserve(csr.columns.size());
  coo.columns.reserve(csr.columns.size());
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

void SeaSparse::reserve(Index heads, Index n, Index d_k, Index entries, bool csr, bool coo,
                        bool sorting) {
  const auto count = [](Index x) { return static_cast<std::size_t>(x); };
  query_.reserve(count(d_k));
  tail_.reserve(kLanes);
  if (!coo) row_.reserve(count(round_up(n, kLanes)));
  if (csr || coo) values_.reserve(count(entries + kLanes));
  if (!csr && !coo) expanded_.reserve(count(heads * n));
  if (coo) {
    most_.reserve(count(heads * n));
    sum_.reserve(count(heads * n));
  }
  if (sorting) {
    codes_.reserve(count(entries));
    more_.reserve(count(entries));
  }
}

RowQuery SeaSparse::scaled_query(Index h, Index t) {
  const Index d = q.d();
  query_.resize(static_cast<std::size_t>(d));
  tail_.resize(kLanes);
  const float* const from = q.data() + (h * q.n() + t) * d;
  const auto factor = static_cast<float>(scale) * kLog2e;
  for (std::size_t c = 0; c < query_.size(); ++c) query_[c] = from[c] * factor;
  return {query_.data(), d, tail_.data()};
}

// The columns of all heads are rows of one matrix: [heads * n, d].
void SeaSparse::csr(const SeaCsr& rows, TensorView out) {
  const Index n = q.n(), d_k = q.d(), d_v = v.d();
  values_.resize(rows.columns.size() + kLanes);
  std::fill_n(out.data(), out.size(), 0.0f);
  for (Index t = 0; t < n; ++t)
    segments(rows.columns.data(), rows.row_ptr[static_cast<std::size_t>(t)],
             rows.row_ptr[static_cast<std::size_t>(t) + 1], n, [&](Index h, Index from, Index to) {
               scaled_query(h, t).score(
                   GatheredRows<std::int32_t>{k.data(), d_k, rows.columns.data() + from}, to - from,
                   values_.data() + from);
             });
  // A second pass, so that the rows of k and those of v do not compete for the caches.
  row_.resize(static_cast<std::size_t>(round_up(n, kLanes)));
  for (Index t = 0; t < n; ++t)
    segments(rows.columns.data(), rows.row_ptr[static_cast<std::size_t>(t)],
             rows.row_ptr[static_cast<std::size_t>(t) + 1], n, [&](Index h, Index from, Index to) {
               const Index count = to - from;
               std::copy_n(values_.data() + from, count, row_.data());
               const Bounds whole = mask_row(row_.data(), {0, count}, nullptr, -kInfinity);
               const float shift = whole_shift(horizontal_max(row_max(row_.data(), whole)));
               const float normal = 1 / horizontal_sum(exponentiate(row_.data(), whole, shift));
               float* const result = out.data() + (h * n + t) * d_v;
               add_weighted_rows(
                   row_.data(),
                   GatheredRows<std::int32_t>{v.data(), d_v, rows.columns.data() + from}, count,
                   d_v, result);
               for (Index c = 0; c < d_v; ++c) result[c] *= normal;
             });
}

void SeaSparse::coo(const SeaCoo& entries, TensorView out) {
  const Index n = q.n(), d_k = q.d(), d_v = v.d(), groups = q.heads() * n;
  const auto count = static_cast<Index>(entries.rows.size());
  values_.resize(entries.rows.size());
  most_.assign(static_cast<std::size_t>(groups), -kInfinity);
  sum_.assign(static_cast<std::size_t>(groups), 0.0f);
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
    values_[static_cast<std::size_t>(e)] = factor * dot;
  }
  for (Index e = 0; e < count; ++e)
    most_[group(e)] = std::max(most_[group(e)], values_[static_cast<std::size_t>(e)]);
  for (Index e = 0; e < count; ++e) {
    float& value = values_[static_cast<std::size_t>(e)];
    value = std::exp(value - most_[group(e)]);
    sum_[group(e)] += value;
  }
  for (Index e = 0; e < count; ++e) values_[static_cast<std::size_t>(e)] /= sum_[group(e)];
  std::fill_n(out.data(), out.size(), 0.0f);
  for (Index e = 0; e < count; ++e) {
    const float* const from = v.data() + entries.columns[static_cast<std::size_t>(e)] * d_v;
    float* const to = out.data() + static_cast<Index>(group(e)) * d_v;
    const float weight = values_[static_cast<std::size_t>(e)];
    Index c = 0;
    for (; c + kLanes <= d_v; c += kLanes) store(to + c, load(to + c) + weight * load(from + c));
    for (; c < d_v; ++c) to[c] += weight * from[c];
  }
}

void SeaSparse::runs(const SeaRuns& rows, TensorView out) {
  const Index n = q.n(), d_k = q.d(), d_v = v.d();
  expanded_.resize(static_cast<std::size_t>(q.heads() * n));
  row_.resize(static_cast<std::size_t>(round_up(n, kLanes)));
  std::fill_n(out.data(), out.size(), 0.0f);
  for (Index t = 0; t < n; ++t) {
    Index count = 0;
    for (Index r = rows.row_ptr[static_cast<std::size_t>(t)];
         r < rows.row_ptr[static_cast<std::size_t>(t) + 1]; ++r)
      for (std::int32_t i = 0; i < rows.lengths[static_cast<std::size_t>(r)]; ++i)
        expanded_[static_cast<std::size_t>(count++)] = rows.first[static_cast<std::size_t>(r)] + i;
    segments(expanded_.data(), 0, count, n, [&](Index h, Index from, Index to) {
      float* const result = out.data() + (h * n + t) * d_v;
      const Part part = attend_rows(
          scaled_query(h, t), GatheredRows<std::int32_t>{k.data(), d_k, expanded_.data() + from},
          GatheredRows<std::int32_t>{v.data(), d_v, expanded_.data() + from}, to - from, d_v,
          row_.data(), result);
      const float normal = 1 / part.sum;
      for (Index c = 0; c < d_v; ++c) result[c] *= normal;
    });
  }
}

void SeaSparse::sort(const SeaCoo& entries, SeaCoo* sorted) {
  const auto columns = static_cast<std::uint64_t>(q.heads() * q.n());
  const std::size_t count = entries.rows.size();
  codes_.resize(count);
  more_.resize(count);
  for (std::size_t e = 0; e < count; ++e)
    codes_[e] = {static_cast<std::uint64_t>(entries.rows[e]) * columns +
                     static_cast<std::uint64_t>(entries.columns[e]),
                 static_cast<std::int32_t>(e)};
  sort_by_code(codes_.data(), more_.data(), static_cast<Index>(count),
               static_cast<int>(std::bit_width(columns * static_cast<std::uint64_t>(q.n()))));
  sorted->rows.resize(count);
  sorted->columns.resize(count);
  for (std::size_t e = 0; e < count; ++e) {
    const auto from = static_cast<std::size_t>(codes_[e].position);
    sorted->rows[e] = entries.rows[from];
    sorted->columns[e] = entries.columns[from];
  }
}

}  // namespace subquad
