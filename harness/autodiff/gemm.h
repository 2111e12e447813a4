// Matrix products: the inner loop of training.
//
//   c[i, j] = (c[i, j] or 0) + bias[j] + residual[i, j] + sum_t a[i, t] * b[t, j]
//
// Every operand says where its rows and columns lie, so transposed matrices and tensors
// [batch, heads, n, d] seen as matrices [batch * n, heads * d] need no copy: neither splitting a
// projection into heads nor joining them moves data.
#pragma once

#include "harness/core/types.h"

namespace subquad::autodiff {

// Element i of an axis lies at i * stride, or, in groups of `group`, at
// (i / group) * group_stride + (i % group) * stride.
struct GemmAxis {
  Index stride = 0;
  Index group = 0;  // 0: one group
  Index group_stride = 0;

  Index at(Index i) const {
    return group == 0 ? i * stride : i / group * group_stride + i % group * stride;
  }
};

template <class T>
struct GemmMatrix {
  T* data = nullptr;
  GemmAxis rows, cols;

  GemmMatrix transposed() const { return {data, cols, rows}; }
};

// A plain row-major matrix.
template <class T>
GemmMatrix<T> plain(T* data, Index ld) {
  return {data, {ld}, {1}};
}
// [batch, heads, n, d] as [batch * n, heads * d].
template <class T>
GemmMatrix<T> by_heads(T* data, Index heads, Index n, Index d) {
  return {data, {d, n, heads * n * d}, {1, d, n * d}};
}

// Called with rows [first, last) of c when they are complete, while they are still in the cache.
struct RowsDone {
  const void* context = nullptr;
  void (*call)(const void* context, Index first, Index last) = nullptr;

  template <class F>
  static RowsDone of(const F& f) {
    return {&f, [](const void* p, Index first, Index last) {
              (*static_cast<const F*>(p))(first, last);
            }};
  }
};

template <class T>
struct Gemm {
  Index m = 0, n = 0, k = 0;
  GemmMatrix<const T> a, b;  // [m, k], [k, n]
  GemmMatrix<T> c;           // [m, n]
  bool accumulate = false;
  const T* bias = nullptr;      // [n]
  const T* residual = nullptr;  // laid out as c
  RowsDone done = {};
};

// Elements of work space that gemm() needs for a product with n columns and k terms.
Index gemm_work(Index n, Index k);
// O(m n k). Rows of c are computed by parallel_for in blocks that do not depend on the thread
// count; every sum is taken in the same order.
template <class T>
void gemm(const Gemm<T>& g, T* work);

}  // namespace subquad::autodiff
