// The learned part of SEA: from what kernel attention saw of a row to scores of its cells and the
// two gates (MLP, row decoder, CNN over rows and cells).
// Source: Lee et al. 2024, "SEA" (arXiv 2310.01777), section 3.1, details from the authors' code:
//   X = [kernel output | v]            Z = GELU(LN(X W1 + b1))        gates = sigmoid(Z W3 + b3)
//   image = Z W2 + b2 in c_h channels per head and cells / c_s columns
//   bidirectional: conv 3x3 stride (2, 1), ReLU, conv 3x3, ReLU, rows x 2, conv 3x3, bilinear
//   causal: LN, two causal conv 3x3 of dilation 2 with ReLU, columns x c_s, conv 1x1, LN
#pragma once

#include <memory>
#include <vector>

#include "harness/core/method.h"

namespace subquad {

struct SeaShape {
  bool causal = false;
  Index heads = 1, n = 0, d_v = 64;
  Index cells = 64;                 // K_c
  Index channels = 4, stretch = 2;  // c_h per head; c_s columns of the result per image column
  bool cnn = true;                  // off: a linear read-out of all cells
  bool block_norm = false;          // LN without affine over each d_v-wide block of X
  bool quirks = false;              // causal: the code's padded 1x1 convolution
  Index skip = 1;                   // rows are estimated for every skip-th query
  Index positions = 0;              // rows of the learned position values; 0: none

  Index hidden() const { return 2 * d_v; }
  Index inputs() const { return 3 * d_v; }
  Index width() const { return cnn ? cells / stretch : cells; }  // of the image
  Index per_head() const { return cnn ? channels : 1; }
  Index image_channels() const { return heads * per_head(); }
  Index rows() const { return (n + skip - 1) / skip; }
};

// The learned tensors, in PyTorch's layouts but for w1, w2, w3 [in, out].
struct SeaWeights {
  Parameter w1, b1, ln1_w, ln1_b, w2, b2, w3, b3;
  Parameter ln2_w, ln2_b, conv1_w, conv1_b, conv2_w, conv2_b, conv3_w, conv3_b, ln3_w, ln3_b;
  Parameter positions;

  // Initial values: N(0, 0.02) for linear layers, uniform for convolutions, N(0, 1) for positions.
  void make(const SeaShape& shape, Seed seed, bool gradients);
  std::vector<Parameter*> all();  // those that the shape has
  // The values of another set of tensors, if it was made for the same shape.
  void take_values(const SeaWeights& from);
  static double bytes(const SeaShape& shape, bool gradients);
};

// The forward pass over blocks of rows. Same bits for any division into blocks.
class SeaEstimator {
 public:
  void prepare(const SeaShape& shape);
  // Rounds weights to whole vectors; at the start of a call.
  void pack(const SeaWeights& weights);

  // Rows of a block that keeps the images of all heads within a second-level cache.
  static Index block_rows(const SeaShape& shape);
  // Floats of work space for a block of `rows` rows.
  static Index work_floats(const SeaShape& shape, Index rows);
  static double bytes(const SeaShape& shape);
  static double flops_per_row(const SeaShape& shape);  // all heads

  // Estimated rows [first, last) of one batch item. kernel [heads, n, 2 d_v] and v [heads, n, d_v]
  // are that item's; scores [last - first, heads, wide cells], gates [last - first, heads, 2].
  void rows(const float* kernel, const float* v, Index first, Index last, float* work,
            float* scores, float* gates) const;

  // The same in two steps, for decoding: one image row from one token's kernel output and value
  // of every head, `stride` floats apart ...
  void image_row(const float* kernel, Index kernel_stride, const float* v, Index v_stride,
                 float* image, float* gates, float* work) const;
  // ... and the scores of row t from image rows max(0, t - 8) .. t; `image` is the first of them.
  void last_row(const float* image, Index t, float* work, float* scores) const;

  Index wide_cells() const { return wide_cells_; }
  Index image_floats() const { return image_floats_; }  // of one image row, all channels
  static constexpr Index kHistory = 8;                  // image rows before t that row t needs

 private:
  struct Range {
    Index first, last;
    Index count() const { return last - first; }
  };
  struct Needs {  // rows of every stage that scores of [first, last) need
    Range image, middle1, middle2, top;
  };
  Needs needs(Range out) const;
  void fill_image(const float* kernel, Index kernel_head, Index kernel_row, const float* v,
                  Index v_head, Index v_row, Range rows, Range gated, float* image, float* gates,
                  float* work) const;
  void convolve(const float* in, Range in_rows, Index limit, Index step, const Index* row_offsets,
                Index dilation, const float* weights, const float* bias, Index out_channels,
                bool relu, Range out_rows, float* out) const;
  void finish_bidirectional(const float* top, Range top_rows, Range out, float* scores) const;
  void finish_causal(const float* middle, Range out, float* work, float* scores) const;
  void scores_from_image(const float* image, Range image_rows, const Needs& need, Range out,
                         float* work, float* scores) const;

  SeaShape shape_;
  Index wide_in_ = 0, wide_hidden_ = 0, wide_width_ = 0, wide_cells_ = 0;
  Index ld_ = 0;            // floats of one channel's row in an image, zeros around it included
  Index image_floats_ = 0;  // of one image row
  AlignedArray<float> w1_, b1_, ln1_w_, ln1_b_, w2_, b2_, w3_, ln2_w_, ln2_b_, ln3_w_, ln3_b_;
  AlignedArray<float> conv1_w_, conv1_b_, conv2_w_, conv2_b_, conv3_w_, conv3_b_;
  AlignedArray<float> zeros_;  // [ld_]
  float b3_[2] = {};
};

}  // namespace subquad
