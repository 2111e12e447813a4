// The ops of the tape. Shapes are written [a, b, c]; `rows` are all axes but the last. Every op
// exists for float and double; gradients are those of the formula, exactly.
#pragma once

#include <cstdint>
#include <span>

#include "harness/autodiff/tape.h"
#include "harness/core/random.h"

namespace subquad::autodiff {

// ---- arithmetic, broadcast as in NumPy (axes aligned at the end, sizes equal or 1) ----
template <class T>
Var<T> add(Var<T> a, Var<T> b);
template <class T>
Var<T> sub(Var<T> a, Var<T> b);
template <class T>
Var<T> mul(Var<T> a, Var<T> b);
template <class T>
Var<T> div(Var<T> a, Var<T> b);
template <class T>
Var<T> scale(Var<T> x, double factor);
template <class T>
Var<T> shift(Var<T> x, double constant);  // x + constant

// ---- element by element ----
template <class T>
Var<T> exp(Var<T> x);
template <class T>
Var<T> log(Var<T> x);
template <class T>
Var<T> sqrt(Var<T> x);
template <class T>
Var<T> square(Var<T> x);
template <class T>
Var<T> relu(Var<T> x);
template <class T>
Var<T> tanh(Var<T> x);
template <class T>
Var<T> sigmoid(Var<T> x);
template <class T>
Var<T> elu(Var<T> x);  // x, or exp(x) - 1 below 0
template <class T>
Var<T> gelu(Var<T> x);  // x Phi(x), exact
template <class T>
Var<T> gelu_tanh(Var<T> x);  // the tanh approximation
// The values as a constant: nothing flows back.
template <class T>
Var<T> stop_gradient(Var<T> x);
// `value` where the mask is 0; the mask covers the last axes of x and repeats over the first.
template <class T>
Var<T> masked_fill(Var<T> x, std::span<const std::uint8_t> mask, double value);
// Zero with probability p, else x / (1 - p). Element i is decided by (seed, i) alone.
template <class T>
Var<T> dropout(Var<T> x, double p, Seed seed);

// ---- reductions ----
template <class T>
Var<T> sum(Var<T> x);  // a scalar
template <class T>
Var<T> mean(Var<T> x);
template <class T>
Var<T> sum(Var<T> x, int axis);  // the axis stays with size 1
template <class T>
Var<T> mean(Var<T> x, int axis);
template <class T>
Var<T> max(Var<T> x, int axis);  // the gradient goes to the first maximum
template <class T>
Var<T> cumsum(Var<T> x, int axis);

// ---- shape ----
template <class T>
Var<T> reshape(Var<T> x, Dims dims);  // no copy
// Axis a of the result is axis order[a] of x.
template <class T>
Var<T> transpose(Var<T> x, std::initializer_list<int> order);
template <class T>
Var<T> concat(std::initializer_list<Var<T>> parts, int axis);
template <class T>
Var<T> slice(Var<T> x, int axis, Index first, Index count);
// Row index[i] of table [rows, d] -> [index.size(), d]; the indices must stay until backward.
template <class T>
Var<T> gather(Var<T> table, std::span<const std::int32_t> index);
template <class T>
Var<T> embedding(Var<T> table, std::span<const std::int32_t> ids, Dims leading);  // [leading, d]
// out[index[i]] += x[i]: x [index.size(), d] -> [rows, d].
template <class T>
Var<T> scatter_add(Var<T> x, std::span<const std::int32_t> index, Index rows);

// ---- products ----
// a [..., m, k] b [..., k, n]; a flag reads the last two axes swapped. b may lack the leading axes.
template <class T>
Var<T> matmul(Var<T> a, Var<T> b, bool transpose_a = false, bool transpose_b = false);
// x [..., in], weight [out, in], bias [out] or empty -> x weight^T + bias (+ residual [..., out]).
template <class T>
Var<T> linear(Var<T> x, Var<T> weight, Var<T> bias = {}, Var<T> residual = {});
// gelu(linear(x)), without a pass of its own over memory.
template <class T>
Var<T> linear_gelu(Var<T> x, Var<T> weight, Var<T> bias = {});
// linear, from x [batch, n, in] to [batch, heads, n, out / heads]; and from there back.
template <class T>
Var<T> linear_to_heads(Var<T> x, Var<T> weight, Var<T> bias, Index heads);
template <class T>
Var<T> linear_from_heads(Var<T> x, Var<T> weight, Var<T> bias = {}, Var<T> residual = {});

// ---- normalisation, over the last axis ----
template <class T>
Var<T> softmax(Var<T> x);
template <class T>
Var<T> log_softmax(Var<T> x);
// (x - mean) / sqrt(biased variance + eps) * weight + bias; either may be empty.
template <class T>
Var<T> layer_norm(Var<T> x, Var<T> weight, Var<T> bias, double eps = 1e-5);
// x / sqrt(mean of squares + eps) * weight
template <class T>
Var<T> rms_norm(Var<T> x, Var<T> weight, double eps = 1e-5);

// ---- convolution, interpolation ----
// x [batch, n, d], taps [k, d]: out_t = sum_j taps_j x_{t + offset - j}, zero outside. offset 0 is
// causal (tap j is j steps back), k / 2 is centred.
template <class T>
Var<T> depthwise_conv(Var<T> x, Var<T> taps, Index offset = 0);
struct Conv2d {
  Index stride_y = 1, stride_x = 1, dilation_y = 1, dilation_x = 1;
  Index pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
};
// x [batch, c_in, h, w], weight [c_out, c_in, k_h, k_w], bias [c_out] or empty.
template <class T>
Var<T> conv2d(Var<T> x, Var<T> weight, Var<T> bias, const Conv2d& options);
enum class Interpolation { nearest, linear, area };
// Another size of one axis. nearest: floor(i * in / out); linear: half-pixel centres, clamped at
// the borders; area: mean of the cells from floor(i in / out) to ceil((i + 1) in / out).
template <class T>
Var<T> interpolate(Var<T> x, int axis, Index size, Interpolation kind);

// ---- recurrence and position ----
// One step of a GRU: x [b, in], z [b, s], w [3 s, in], u [3 s, s], b_w, b_u [3 s] (rows: reset,
// update, candidate). z' = (1 - u) c + u z, c = tanh(W x + b + r (U z + b')).
template <class T>
Var<T> gru_cell(Var<T> x, Var<T> z, Var<T> w, Var<T> u, Var<T> b_w, Var<T> b_u);
// x [batch, heads, n, d] with pairs (i, i + d / 2) of position t turned by the angle whose cosine
// and sine are tables [n, d / 2], which stay the caller's.
template <class T>
Var<T> rotate(Var<T> x, const T* cosine, const T* sine);

// ---- losses: scalars ----
// Sum over rows with labels[i] != kIgnore of -log softmax(logits_i)[labels_i], divided by
// `denominator` (0: the number of such rows). labels must stay until backward.
template <class T>
Var<T> cross_entropy(Var<T> logits, std::span<const std::int32_t> labels, double denominator = 0);
// Mean over rows of sum_j target_j (log target_j - log_q_j); target gets no gradient.
template <class T>
Var<T> kl_divergence(Var<T> target, Var<T> log_q);
template <class T>
Var<T> mse(Var<T> a, Var<T> b);  // mean over all elements

}  // namespace subquad::autodiff
