// SEA's estimator out of differentiable ops: the same formulas as SeaEstimator, for gradients and
// for fitting. Float trains; double is what central differences are taken in.
#pragma once

#include "harness/autodiff/ops.h"
#include "methods/engines/sea_estimator.h"

namespace subquad {

template <class T>
struct SeaGraph {
  using Var = autodiff::Var<T>;
  Var gates;   // [batch, heads, rows, 2], before the sigmoid
  Var scores;  // [batch, heads, rows, cells], before any mask; empty unless asked for
};

// kernel [batch, heads, rows, 2 d_v], v [batch, heads, rows, d_v]: every skip-th row already
// picked. `place(parameter)` puts a learned tensor on the tape.
template <class T, class Place>
SeaGraph<T> record_sea(const SeaShape& s, SeaWeights& w, autodiff::Var<T> kernel,
                       autodiff::Var<T> v, bool want_scores, Place&& place) {
  namespace ad = autodiff;
  using Var = ad::Var<T>;
  const Index batch = v.dims()[0], heads = s.heads, rows = v.dims()[2], d = s.d_v;
  Var x = ad::concat<T>({kernel, v}, 3);
  if (s.block_norm) {
    x = ad::reshape(x, {batch, heads, rows, 3, d});
    x = ad::reshape(ad::layer_norm<T>(x, {}, {}), {batch, heads, rows, 3 * d});
  }
  x = ad::add(ad::matmul(x, place(w.w1)), place(w.b1));
  const Var z = ad::gelu(ad::layer_norm(x, place(w.ln1_w), place(w.ln1_b)));
  SeaGraph<T> graph;
  graph.gates = ad::add(ad::matmul(z, place(w.w3)), place(w.b3));
  if (!want_scores) return graph;
  const Index width = s.width(), channels = s.image_channels();
  Var y = ad::add(ad::matmul(z, place(w.w2)), place(w.b2));
  if (!s.cnn) {
    graph.scores = y;
    return graph;
  }
  y = ad::reshape(y, {batch, heads, rows, s.per_head(), width});
  y = ad::reshape(ad::transpose(y, {0, 1, 3, 2, 4}), {batch, channels, rows, width});
  if (s.causal) {
    const ad::Conv2d back{
        .dilation_y = 2, .dilation_x = 2, .pad_top = 4, .pad_left = 2, .pad_right = 2};
    y = ad::layer_norm(y, place(w.ln2_w), place(w.ln2_b));
    y = ad::relu(ad::conv2d(y, place(w.conv1_w), place(w.conv1_b), back));
    y = ad::relu(ad::conv2d(y, place(w.conv2_w), place(w.conv2_b), back));
    if (s.quirks) {
      y = ad::interpolate(y, 3, s.cells, ad::Interpolation::nearest);
      y = ad::conv2d(y, place(w.conv3_w), place(w.conv3_b), {.pad_left = 1, .pad_right = 1});
      y = ad::interpolate(y, 3, s.cells, ad::Interpolation::area);
    } else {  // the 1 x 1 convolution and the repetition of columns commute
      y = ad::conv2d(y, place(w.conv3_w), place(w.conv3_b), {});
      if (s.stretch > 1) y = ad::interpolate(y, 3, s.cells, ad::Interpolation::nearest);
    }
    graph.scores = ad::layer_norm(y, place(w.ln3_w), place(w.ln3_b));
  } else {
    ad::Conv2d around{.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1};
    ad::Conv2d halved = around;
    halved.stride_y = 2;
    y = ad::relu(ad::conv2d(y, place(w.conv1_w), place(w.conv1_b), halved));
    y = ad::relu(ad::conv2d(y, place(w.conv2_w), place(w.conv2_b), around));
    y = ad::interpolate(y, 2, 2 * y.dims()[2], ad::Interpolation::nearest);
    y = ad::conv2d(y, place(w.conv3_w), place(w.conv3_b), around);
    if (y.dims()[2] != rows) y = ad::interpolate(y, 2, rows, ad::Interpolation::linear);
    if (s.stretch > 1) y = ad::interpolate(y, 3, s.cells, ad::Interpolation::linear);
    graph.scores = y;
  }
  return graph;
}

}  // namespace subquad
