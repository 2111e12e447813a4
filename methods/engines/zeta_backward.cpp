// Gradients of ZETA attention, chosen keys constant. With g = dout_i, a_j = g . v_j,
// r = sum_j w_j a_j, x_j the argument of the kernel and s = log u:
//   dv_j += w_j g,  e_j = w_j (a_j - r) ds/dx_j,  dwidth += w_j (a_j - r) ds/dwidth
//   x = |q - k|^2:  dq_i += 2 e_j (q_i - k_j),  dk_j -= 2 e_j (q_i - k_j)
//   x = q . k:      dq_i += e_j k_j,            dk_j += e_j q_i
// The averaged token of i gets the same gradients, of which each of its tokens has one part in
// their number: a sum over all later queries, from the last token back.
#include <algorithm>
#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/band.h"
#include "methods/engines/row_attention.h"
#include "methods/engines/zeta_layout.h"

namespace subquad {

using namespace engine;
using namespace zeta_detail;

void ZetaAttention::add_key_gradient(const ZetaKernel& kernel, const float* q, const float* k,
                                     float slope, float* dk) const {
  const Index width = ZetaPoints::width(options_.points.d_key);
  if (kernel.of_product()) {
    for (Index c = 0; c < width; ++c) dk[c] += slope * q[c];
  } else {
    for (Index c = 0; c < width; ++c) dk[c] += 2 * slope * (k[c] - q[c]);
  }
}

// Keys, weights and gradients of the query that was processed as `row` into the work space; dq.
// O((top_k + range) (d_key + d_v)).
ZetaAttention::Differentiated ZetaAttention::differentiate(const Inputs& in, Index bh, Index row,
                                                           const ZetaKernel& kernel,
                                                           ConstTensorView dout,
                                                           const ZetaSaved& saved, Work& work) {
  const Index n = problem_.n, d_v = problem_.d_v, width = ZetaPoints::width(options_.points.d_key);
  const Index list = options_.list_size(problem_.n_kv), at = bh * n + row;
  const Index i = saved.query[at], place = bh * n + i;
  std::copy_n(saved.keys.data() + at * list, saved.count[at], work.index.data());
  const Index count = add_range(in, bh, i, saved.count[at], work.index.data());
  const float* const q = heads_.q.data() + place * width;
  const float* const keys = heads_.k.data() + bh * problem_.n_kv * width;
  const float* const g = dout.head(bh).data() + i * d_v;
  float *const x = work.x.data(), *const w = work.weight.data();
  float *const a = work.value_dot.data(), *const slope = work.slope.data();
  kernel_arguments(kernel, q, width, keys, work.index.data(), count, x);
  const bool mean = options_.history && heads_.mean_count[place] > 0;
  const float* const mean_k = mean ? heads_.mean_k.data() + place * width : nullptr;
  const std::int32_t own = 0;
  if (mean) kernel_arguments(kernel, q, width, mean_k, &own, 1, x + count);
  const Index all = count + (mean ? 1 : 0);
  float* const dq = heads_.dq.data() + place * width;
  std::fill_n(dq, width, 0.0f);
  if (options_.history) heads_.mean_weight[place] = heads_.mean_slope[place] = 0;
  if (all == 0) return {i, 0, 0};
  kernel.weights(x, all, w);
  float tail[kLanes];
  RowQuery(g, d_v, tail)
      .score(GatheredRows<std::int32_t>{in.v.head(bh).data(), d_v, work.index.data()}, count, a);
  if (mean) a[count] = heads_.mean_dot[place];
  float r = 0;
  for (Index j = 0; j < all; ++j) r += w[j] * a[j];
  double dwidth = 0;
  for (Index j = 0; j < all; ++j) {
    const float ds = w[j] * (a[j] - r);
    slope[j] = ds * kernel.slope(x[j]);
    dwidth += static_cast<double>(ds * kernel.width_slope(x[j]));
  }
  for (Index j = 0; j < all; ++j) {
    const float* const k = j < count ? keys + static_cast<Index>(work.index[j]) * width : mean_k;
    if (kernel.of_product()) {
      for (Index c = 0; c < width; ++c) dq[c] += slope[j] * k[c];
    } else {
      for (Index c = 0; c < width; ++c) dq[c] += 2 * slope[j] * (q[c] - k[c]);
    }
  }
  if (mean) heads_.mean_weight[place] = w[count], heads_.mean_slope[place] = slope[count];
  return {i, count, dwidth};
}

// dv [n_kv, d_v] of the chosen keys, columns [c0, c1): queries in their order, so the sums do not
// depend on how columns are divided.
void ZetaAttention::scatter_values(Index bh, Index c0, Index c1, ConstTensorView dout,
                                   const ZetaSaved& saved, float* dv) const {
  const Index n = problem_.n, d_v = problem_.d_v, list = options_.list_size(problem_.n_kv);
  for (Index j = 0; j < problem_.n_kv; ++j) std::fill(dv + j * d_v + c0, dv + j * d_v + c1, 0.0f);
  for (Index row = 0; row < n; ++row) {
    const Index at = bh * n + row;
    const float* const g = dout.head(bh).data() + saved.query[at] * d_v;
    for (Index e = at * list; e < at * list + saved.count[at]; ++e) {
      float* const to = dv + static_cast<Index>(saved.keys[e]) * d_v;
      const float weight = heads_.weight[e];
      for (Index c = c0; c < c1; ++c) to[c] += weight * g[c];
    }
  }
}

// The same for the points of keys.
void ZetaAttention::scatter_keys(Index bh, const ZetaKernel& kernel, const ZetaSaved& saved) {
  const Index n = problem_.n, n_kv = problem_.n_kv;
  const Index list = options_.list_size(n_kv), width = ZetaPoints::width(options_.points.d_key);
  const float* const k = heads_.k.data() + bh * n_kv * width;
  float* const dk = heads_.dk.data() + bh * n_kv * width;
  std::fill_n(dk, n_kv * width, 0.0f);
  for (Index row = 0; row < n; ++row) {
    const Index at = bh * n + row;
    const float* const q = heads_.q.data() + (bh * n + saved.query[at]) * width;
    for (Index e = at * list; e < at * list + saved.count[at]; ++e) {
      const Index key = static_cast<Index>(saved.keys[e]) * width;
      add_key_gradient(kernel, q, k + key, heads_.slope[e], dk + key);
    }
  }
}

// Where queries meet keys without choice nothing is kept between the two steps: a head at a time.
void ZetaAttention::scatter_all(const Inputs& in, Index bh, const ZetaKernel& kernel,
                                ConstTensorView dout, const ZetaSaved& saved, float* dv,
                                Work& work) {
  const Index n = problem_.n, n_kv = problem_.n_kv, d_v = problem_.d_v;
  const Index width = ZetaPoints::width(options_.points.d_key);
  const Index row_blocks = (n + kRowBlock - 1) / kRowBlock;
  const float* const k = heads_.k.data() + bh * n_kv * width;
  float* const dk = heads_.dk.data() + bh * n_kv * width;
  std::fill_n(dk, n_kv * width, 0.0f);
  std::fill_n(dv, n_kv * d_v, 0.0f);
  std::fill_n(heads_.dwidth.data() + bh * row_blocks, row_blocks, 0.0);
  for (Index row = 0; row < n; ++row) {
    const Differentiated one = differentiate(in, bh, row, kernel, dout, saved, work);
    heads_.dwidth[bh * row_blocks + row / kRowBlock] += one.dwidth;
    const float* const q = heads_.q.data() + (bh * n + one.query) * width;
    const float* const g = dout.head(bh).data() + one.query * d_v;
    for (Index e = 0; e < one.count; ++e) {
      const Index key = work.index[e];
      float* const to = dv + key * d_v;
      for (Index c = 0; c < d_v; ++c) to[c] += work.weight[e] * g[c];
      add_key_gradient(kernel, q, k + key * width, work.slope[e], dk + key * width);
    }
  }
}

// What the averaged tokens hand down to the values, columns [c0, c1): one sum from the last token
// to the first. O(n_kv (c1 - c0)).
void ZetaAttention::spread_values(const Inputs& in, Index bh, Index c0, Index c1,
                                  ConstTensorView dout, float* dv) const {
  const Index n = problem_.n, d_v = problem_.d_v, offset = problem_.causal_offset();
  const auto real = keys_of_batch(in, bh / problem_.heads);
  constexpr Index kColumns = 64;
  for (Index first = c0; first < c1; first += kColumns) {
    const Index columns = std::min(kColumns, c1 - first);
    double sum[kColumns] = {};
    const auto add = [&](Index i) {
      const float count = heads_.mean_count[bh * n + i];
      if (!(count > 0)) return;
      const double part =
          static_cast<double>(heads_.mean_weight[bh * n + i]) / static_cast<double>(count);
      const float* const g = dout.head(bh).data() + i * d_v + first;
      for (Index c = 0; c < columns; ++c) sum[c] += part * static_cast<double>(g[c]);
    };
    if (!problem_.causal)
      for (Index i = n - 1; i >= 0; --i) add(i);
    for (Index j = problem_.n_kv - 1; j >= 0; --j) {
      if (problem_.causal && j >= offset) add(j - offset);
      if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
      for (Index c = 0; c < columns; ++c) {
        float& to = dv[j * d_v + first + c];
        to = static_cast<float>(static_cast<double>(to) + sum[c]);
      }
    }
  }
}

// The same to the points of keys.
void ZetaAttention::spread_keys(const Inputs& in, Index bh, const ZetaKernel& kernel) {
  const Index n = problem_.n, n_kv = problem_.n_kv, offset = problem_.causal_offset();
  const Index width = ZetaPoints::width(options_.points.d_key);
  const auto real = keys_of_batch(in, bh / problem_.heads);
  double sum[kMaxPointWidth] = {};
  const auto add = [&](Index i) {
    const float count = heads_.mean_count[bh * n + i];
    if (!(count > 0)) return;
    float one[kMaxPointWidth] = {};
    add_key_gradient(kernel, heads_.q.data() + (bh * n + i) * width,
                     heads_.mean_k.data() + (bh * n + i) * width, heads_.mean_slope[bh * n + i],
                     one);
    for (Index c = 0; c < width; ++c)
      sum[c] += static_cast<double>(one[c]) / static_cast<double>(count);
  };
  if (!problem_.causal)
    for (Index i = n - 1; i >= 0; --i) add(i);
  for (Index j = n_kv - 1; j >= 0; --j) {
    if (problem_.causal && j >= offset) add(j - offset);
    if (!real.empty() && real[static_cast<std::size_t>(j)] == 0) continue;
    float* const to = heads_.dk.data() + (bh * n_kv + j) * width;
    for (Index c = 0; c < width; ++c) to[c] += static_cast<float>(sum[c]);
  }
}

void ZetaAttention::backward(const Inputs& in, const float* theta, ConstTensorView,
                             ConstTensorView dout, const ZetaSaved& saved, const Gradients& grads,
                             float* dtheta) {
  prepare_call(in, {}, dout);
  const Index heads = problem_.batch * problem_.heads, n = problem_.n, n_kv = problem_.n_kv;
  const Index d_v = problem_.d_v, list = options_.list_size(n_kv);
  const Index row_blocks = (n + kRowBlock - 1) / kRowBlock;
  if (options_.range_size(n_kv, problem_.causal) > 0) {
    parallel_for(heads, [&](Index bh, int thread) {
      scatter_all(in, bh, kernel(theta, bh), dout, saved, grads.dv.head(bh).data(),
                  work_[static_cast<std::size_t>(thread)]);
      if (!options_.history) return;
      spread_values(in, bh, 0, d_v, dout, grads.dv.head(bh).data());
      spread_keys(in, bh, kernel(theta, bh));
    });
  } else {
    parallel_for(heads * row_blocks, [&](Index item, int thread) {
      const Index bh = item / row_blocks, first = item % row_blocks * kRowBlock;
      Work& work = work_[static_cast<std::size_t>(thread)];
      double dwidth = 0;
      for (Index row = first; row < std::min(n, first + kRowBlock); ++row) {
        const Differentiated one = differentiate(in, bh, row, kernel(theta, bh), dout, saved, work);
        std::copy_n(work.weight.data(), one.count, heads_.weight.data() + (bh * n + row) * list);
        std::copy_n(work.slope.data(), one.count, heads_.slope.data() + (bh * n + row) * list);
        dwidth += one.dwidth;
      }
      heads_.dwidth[item] = dwidth;
    });
    // Columns are divided only as far as there are threads: each part reads all lists again.
    const Index wanted = heads >= thread_count() ? 1 : (thread_count() + heads - 1) / heads;
    const Index columns = std::max(whole_vectors((d_v + wanted - 1) / wanted), Index{1});
    const Index parts = (d_v + columns - 1) / columns;
    parallel_for(heads * (parts + 1), [&](Index item, int) {
      const Index bh = item / (parts + 1), part = item % (parts + 1);
      if (part == parts) {
        scatter_keys(bh, kernel(theta, bh), saved);
        if (options_.history) spread_keys(in, bh, kernel(theta, bh));
        return;
      }
      const Index c0 = part * columns, c1 = std::min(d_v, c0 + columns);
      scatter_values(bh, c0, c1, dout, saved, grads.dv.head(bh).data());
      if (options_.history) spread_values(in, bh, c0, c1, dout, grads.dv.head(bh).data());
    });
  }
  const Index width = ZetaPoints::width(options_.points.d_key);
  const Index q_items = (n + kTokenBlock - 1) / kTokenBlock;
  const Index k_items = (n_kv + kTokenBlock - 1) / kTokenBlock;
  parallel_for(heads * (q_items + k_items), [&](Index item, int) {
    const Index bh = item / (q_items + k_items), part = item % (q_items + k_items);
    const bool is_q = part < q_items;
    const Index length = is_q ? n : n_kv;
    const Index first = (is_q ? part : part - q_items) * kTokenBlock;
    const Index at = (bh * length + first) * width;
    points_.pull_back((is_q ? heads_.q : heads_.k).data() + at,
                      (is_q ? heads_.dq : heads_.dk).data() + at,
                      std::min(kTokenBlock, length - first),
                      (is_q ? grads.dq : grads.dk).head(bh).data() + first * problem_.d_k);
  });
  for (Index bh = 0; bh < heads; ++bh) {
    double dwidth = 0;
    for (Index block = 0; block < row_blocks; ++block)
      dwidth += heads_.dwidth[bh * row_blocks + block];
    const Index place = options_.gamma_per_head ? bh % problem_.heads : 0;
    const double gamma = 1 / (1 + std::exp(-static_cast<double>(theta[place])));
    const double through = gamma * gamma > 1e-6 ? 2 * gamma * gamma * (1 - gamma) : 0;
    dtheta[place] += static_cast<float>(dwidth * through);
  }
}

}  // namespace subquad
