// Backward of SEA. Choices (cells, keys) count as constant; everything else is exact.
// Source: the chain rule on the equations of arXiv 2310.01777. Attention over the kept keys is
// fused, kernel attention has its own backward (linear_scan), the estimator goes over the tape.

#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/sea_graph.h"
#include "methods/engines/sea_work.h"

namespace subquad {

using namespace engine;

namespace {

// to += factor * from, [count].
void add_scaled(float factor, const float* from, Index count, float* to) {
  Index c = 0;
  for (; c + kLanes <= count; c += kLanes) store(to + c, load(to + c) + factor * load(from + c));
  for (; c < count; ++c) to[c] += factor * from[c];
}

double dot(const float* a, const float* b, Index count) {
  double sum = 0;
  for (Index c = 0; c < count; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

}  // namespace

void SeaAttention::kernel_backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                                   const LinearScanSaved& saved, TensorView dq, TensorView dk,
                                   TensorView dvalues) {
  fill_values(in);
  Inputs scanned = in;
  scanned.v = values_.view();
  scan_.backward(scanned, out, dout, saved, {dq, dk, dvalues, {}});
  if (options_.position != SeaOptions::Position::learned) return;
  const Index n = problem_.n, d = problem_.d_v;
  parallel_for(n, [&](Index i, int) {
    float* const grad = weights_->positions.grad.data() + i * d;
    for (Index bh = 0; bh < heads_; ++bh)
      for (Index c = 0; c < d; ++c) grad[c] += dvalues.head(bh).data()[i * 2 * d + c];
  });
}

// dq, dk, dv of attention over the kept keys and of the pooled values, and the gradients of the
// gates before their sigmoid (dgates_) and of the mean probabilities (dpool_).
void SeaAttention::sparse_backward(const Inputs& in, ConstTensorView dout, const SeaSaved& saved,
                                   const Gradients& grads) {
  const Index heads = problem_.heads, n = problem_.n, d_k = problem_.d_k, d_v = problem_.d_v;
  const bool gated = has_estimator() && options_.gates;
  const auto scale = static_cast<float>(problem_.logit_scale());
  const float factor = static_cast<float>(problem_.logit_scale() * 1.4426950408889634073599);
  const auto first_block = [&](Index g) { return g * blocks() / groups_; };
  const auto part = [&](AlignedArray<float>& others, TensorView own, Index g, Index bh, Index d) {
    return g == 0 ? own.head(bh).data() : others.data() + ((g - 1) * heads_ + bh) * n * d;
  };
  if (problem_.causal) prefix_values(in);
  if (gated) std::fill_n(dgates_.data(), dgates_.size(), 0.0f);
  parallel_for(heads_ * groups_, [&](Index item, int thread) {
    const Index bh = item / groups_, g = item % groups_, b = bh / heads, h = bh % heads;
    const SeaWork w = work(thread);
    const float *const k = in.k.head(bh).data(), *const v = in.v.head(bh).data();
    float *const dk = part(dk_groups_, grads.dk, g, bh, d_k), *const dv = part(dv_groups_, grads.dv,
                                                                               g, bh, d_v);
    std::fill_n(dk, n * d_k, 0.0f);
    std::fill_n(dv, n * d_v, 0.0f);
    double* const total = dpooled_.data() + item * d_v;
    std::fill_n(total, d_v, 0.0);
    const Index first = first_block(g) * block_, last = std::min(n, first_block(g + 1) * block_);
    if (problem_.causal && first < last)
      std::copy_n(prefix_.data() + (bh * blocks() + first_block(g)) * d_v, d_v, w.sum);
    const GatheredRows<std::int32_t> keys{k, d_k, w.keys}, values{v, d_v, w.keys};
    for (Index t = first; t < last; ++t) {
      const Index place = (b * n + t) * heads + h;
      const float s_prob = saved.gates[2 * place], s_mix = saved.gates[2 * place + 1];
      const Index count = collect(t, saved.kept.data() + place * words(), w.keys);
      const float *const q = in.q.head(bh).data() + t * d_k, *const g_out =
                                                                 dout.head(bh).data() + t * d_v;
      for (Index c = 0; c < d_k; ++c) w.q[c] = q[c] * factor;
      const Part softmax =
          attend_rows(RowQuery(w.q, d_k, w.tail), keys, values, count, d_v, w.row, w.out);
      float* const dq = grads.dq.head(bh).data() + t * d_k;
      std::fill_n(dq, d_k, 0.0f);
      double on_sparse = 0;  // dout . R, R the unscaled average
      if (count > 0) {
        const float normal = 1 / softmax.sum;
        for (Index r = 0; r < count; ++r) w.row[r] *= normal;
        on_sparse = dot(g_out, w.out, d_v) * static_cast<double>(normal);
        for (Index c = 0; c < d_v; ++c) w.y[c] = s_prob * s_mix * g_out[c];
        RowQuery(w.y, d_v, w.tail).score(values, count, w.back);
        const auto inner = static_cast<float>(static_cast<double>(s_prob * s_mix) * on_sparse);
        for (Index r = 0; r < count; ++r) {
          add_scaled(w.row[r], w.y, d_v, dv + w.keys[r] * d_v);
          w.back[r] = scale * w.row[r] * (w.back[r] - inner);
          add_scaled(w.back[r], q, d_k, dk + w.keys[r] * d_k);
        }
        add_weighted_rows(w.back, keys, count, d_k, dq);
      }
      if (!gated) continue;
      double on_pool = 0;  // dout . A
      if (problem_.causal) {
        for (Index c = 0; c < d_v; ++c) {
          w.sum[c] += static_cast<double>(v[t * d_v + c]);
          on_pool += static_cast<double>(g_out[c]) * w.sum[c];
        }
        on_pool /= static_cast<double>(t + 1);
      } else {
        on_pool = dot(g_out, pooled_.data() + bh * d_v, d_v);
      }
      const double mix = static_cast<double>(s_mix), prob = static_cast<double>(s_prob);
      float* const dgate = dgates_.data() + (bh * shape_.rows() + t / options_.skip) * 2;
      dgate[0] += static_cast<float>(mix * on_sparse * prob * (1 - prob));
      dgate[1] += static_cast<float>((prob * on_sparse - on_pool) * mix * (1 - mix));
      const double share = (1 - mix) / (problem_.causal ? static_cast<double>(t + 1) : 1.0);
      for (Index c = 0; c < d_v; ++c) total[c] += share * static_cast<double>(g_out[c]);
    }
  });
  // Sums of the groups, in order.
  constexpr Index kRows = 64;
  const Index items = (n + kRows - 1) / kRows;
  if (groups_ > 1)
    parallel_for(heads_ * items, [&](Index item, int) {
      const Index bh = item / items, first = item % items * kRows,
                  rows = std::min(kRows, n - first);
      for (Index g = 1; g < groups_; ++g) {
        add_scaled(1, part(dk_groups_, grads.dk, g, bh, d_k) + first * d_k, rows * d_k,
                   grads.dk.head(bh).data() + first * d_k);
        add_scaled(1, part(dv_groups_, grads.dv, g, bh, d_v) + first * d_v, rows * d_v,
                   grads.dv.head(bh).data() + first * d_v);
      }
    });
  if (!gated) return;
  // The pooled values. Causal: v_j gets the sum over later queries, from the last one on.
  parallel_for(heads_ * groups_, [&](Index item, int thread) {
    const Index bh = item / groups_, g = item % groups_;
    double* const sum = work(thread).sum;
    std::fill_n(sum, d_v, 0.0);
    for (Index other = problem_.causal ? g + 1 : 0; other < groups_; ++other)
      for (Index c = 0; c < d_v; ++c) sum[c] += dpooled_[(bh * groups_ + other) * d_v + c];
    const Index first = first_block(g) * block_, last = std::min(n, first_block(g + 1) * block_);
    float* const dv = grads.dv.head(bh).data();
    if (problem_.causal) {
      for (Index j = last - 1; j >= first; --j) {
        const Index place = (bh / heads * n + j) * heads + bh % heads;
        const double share =
            static_cast<double>(1 - saved.gates[2 * place + 1]) / static_cast<double>(j + 1);
        const float* const g_out = dout.head(bh).data() + j * d_v;
        for (Index c = 0; c < d_v; ++c) {
          sum[c] += share * static_cast<double>(g_out[c]);
          dv[j * d_v + c] += static_cast<float>(sum[c]);
        }
      }
      return;
    }
    if (g > 0) return;
    double weight = 0, onto = 0;  // sum of the weights, D . A
    for (Index c = 0; c < options_.cells; ++c) {
      const auto [from, to] = cell_keys(c, 0);
      weight += static_cast<double>(to - from) * static_cast<double>(saved.pool[bh * wide_ + c]);
    }
    for (Index c = 0; c < d_v; ++c) onto += sum[c] * static_cast<double>(pooled_[bh * d_v + c]);
    const double normal = options_.normalize_pool ? 1 / weight : 1;
    for (Index cell = 0; cell < options_.cells; ++cell) {
      const auto [from, to] = cell_keys(cell, 0);
      const double share = normal * static_cast<double>(saved.pool[bh * wide_ + cell]);
      double mass = 0;
      for (Index j = from; j < to; ++j) {
        double along = options_.normalize_pool ? -onto : 0;
        for (Index c = 0; c < d_v; ++c) {
          along += sum[c] * static_cast<double>(in.v.head(bh).data()[j * d_v + c]);
          dv[j * d_v + c] += static_cast<float>(share * sum[c]);
        }
        mass += normal * along;
      }
      dpool_[bh * options_.cells + cell] = static_cast<float>(mass / static_cast<double>(n));
    }
  });
}

// The estimator and the kernel attention before it: adds to grads and to the learned tensors.
void SeaAttention::estimator_backward(const Inputs& in, const SeaSaved& saved,
                                      const Gradients& grads) {
  const Index n = problem_.n, d = problem_.d_v, rows = shape_.rows(), skip = options_.skip;
  const bool pools = !problem_.causal;
  const float* kernel = saved.kernel.data();
  const float* v = in.v.data();
  if (skip > 1) {
    for (Index bh = 0; bh < heads_; ++bh)
      for (Index r = 0; r < rows; ++r) {
        std::copy_n(kernel + (bh * n + r * skip) * 2 * d, 2 * d,
                    picked_kernel_.data() + (bh * rows + r) * 2 * d);
        std::copy_n(v + (bh * n + r * skip) * d, d, picked_v_.data() + (bh * rows + r) * d);
      }
    kernel = picked_kernel_.data();
    v = picked_v_.data();
  }
  const Index batch = problem_.batch, heads = problem_.heads, cells = options_.cells;
  tape_.clear();
  const auto kernel_leaf = tape_.leaf(kernel, {batch, heads, rows, 2 * d});
  const auto v_leaf = tape_.leaf(v, {batch, heads, rows, d});
  const auto graph =
      record_sea<float>(shape_, *weights_, kernel_leaf, v_leaf, pools, [&](Parameter& p) {
        autodiff::Dims dims;
        for (const Index size : p.shape) dims.push_back(size);
        return tape_.parameter(p.value.data(), p.grad.data(), dims);
      });
  auto loss = autodiff::sum(
      autodiff::mul(graph.gates, tape_.constant(dgates_.data(), {batch, heads, rows, 2})));
  if (pools) {
    bool all = true;
    for (Index c = 0; c < cells; ++c) {
      const auto [first, last] = cell_keys(c, 0);
      filled_[c] = first < last || !options_.mask_empty;
      all = all && filled_[c] != 0;
    }
    auto scores = graph.scores;
    if (!all)
      scores =
          autodiff::masked_fill(scores, {filled_.data(), static_cast<std::size_t>(cells)}, -1e30);
    auto p = autodiff::softmax(scores);
    if (skip > 1) {
      for (Index r = 0; r < rows; ++r)
        row_counts_[r] = static_cast<float>(std::min(skip, n - r * skip));
      p = autodiff::mul(p, tape_.constant(row_counts_.data(), {rows, 1}));
    }
    loss = autodiff::add(loss,
                         autodiff::sum(autodiff::mul(
                             p, tape_.constant(dpool_.data(), {batch, heads, Index{1}, cells}))));
  }
  tape_.backward(loss);
  const auto put = [&](const float* from, Index width, TensorView to, bool add) {
    if (!add) std::fill_n(to.data(), to.size(), 0.0f);
    for (Index bh = 0; bh < heads_ && from != nullptr; ++bh)
      for (Index r = 0; r < rows; ++r)
        add_scaled(1, from + (bh * rows + r) * width, width, to.head(bh).data() + r * skip * width);
  };
  put(tape_.grad(kernel_leaf), 2 * d, dkernel_, false);
  put(tape_.grad(v_leaf), d, grads.dv, true);
  kernel_backward(in, saved.kernel, dkernel_, *saved.scan, dq_, dk_, dvalues_);
  const Index items = (n + 255) / 256;
  parallel_for(heads_ * items, [&](Index item, int) {
    const Index bh = item / items, first = item % items * 256, last = std::min(n, first + 256);
    add_scaled(1, dq_.view().head(bh).row(first).data(), (last - first) * problem_.d_k,
               grads.dq.head(bh).row(first).data());
    add_scaled(1, dk_.view().head(bh).row(first).data(), (last - first) * problem_.d_k,
               grads.dk.head(bh).row(first).data());
    for (Index i = first; i < last; ++i)
      add_scaled(1, dvalues_.view().head(bh).row(i).data() + d, d, grads.dv.head(bh).row(i).data());
  });
}

void SeaAttention::backward(const Inputs& in, ConstTensorView dout, const SeaSaved& saved,
                            const Gradients& grads) {
  grow();
  const bool gated = has_estimator() && options_.gates;
  if (gated && !problem_.causal) pool_values(in, saved.pool.data());
  sparse_backward(in, dout, saved, grads);
  if (gated) estimator_backward(in, saved, grads);
}

}  // namespace subquad
