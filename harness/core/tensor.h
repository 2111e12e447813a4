// Dense tensors [batch, heads, n, d]: contiguous, row-major, base aligned to 64 bytes.
//
// One head is an [n, d] row-major matrix, seen as an Eigen::Map without a copy. Views do not own;
// a view must not outlive its tensor. BasicTensor<double> exists for references and tests.
#pragma once

#include <fmt/core.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

#include "harness/core/error.h"
#include "harness/core/types.h"

namespace subquad {

inline constexpr std::size_t kAlignment = 64;  // a cache line, and one AVX-512 register

struct Shape {
  Index batch = 0, heads = 0, n = 0, d = 0;

  Index size() const { return batch * heads * n * d; }
  bool operator==(const Shape&) const = default;
  std::string str() const { return fmt::format("[{}, {}, {}, {}]", batch, heads, n, d); }
};

// A raw array of T, aligned to kAlignment, zero-filled. The only owner of tensor memory.
template <class T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(Index size) : size_(size) {
    if (size < 0) throw InternalError(fmt::format("AlignedArray: negative size {}", size));
    if (size == 0) return;
    const std::size_t bytes =
        (static_cast<std::size_t>(size) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    void* memory = std::aligned_alloc(kAlignment, bytes);
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory, 0, bytes);
    data_.reset(static_cast<T*>(memory));
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  Index size() const { return size_; }
  T& operator[](Index i) { return data_.get()[i]; }
  const T& operator[](Index i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  Index size_ = 0;
};

// A view of a tensor; T may be const. `empty()` is a view of nothing (an absent optional input).
template <class T>
class BasicTensorView {
 public:
  using Scalar = std::remove_const_t<T>;
  using Map =
      Eigen::Map<std::conditional_t<std::is_const_v<T>, const MatrixT<Scalar>, MatrixT<Scalar>>>;

  BasicTensorView() = default;
  BasicTensorView(T* data, Shape shape) : data_(data), shape_(shape) {}
  // A writable view converts to a read-only one.
  template <class U, class = std::enable_if_t<std::is_same_v<const U, T> && !std::is_same_v<U, T>>>
  BasicTensorView(const BasicTensorView<U>& other) : data_(other.data()), shape_(other.shape()) {}

  T* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  Index batch() const { return shape_.batch; }
  Index heads() const { return shape_.heads; }
  Index n() const { return shape_.n; }
  Index d() const { return shape_.d; }
  Index size() const { return shape_.size(); }
  bool empty() const { return data_ == nullptr; }

  // Pointer to row 0 of head (b, h).
  T* head_data(Index b, Index h) const {
    return data_ + (b * shape_.heads + h) * shape_.n * shape_.d;
  }
  // Head (b, h) as an [n, d] matrix.
  Map head(Index b, Index h) const { return Map(head_data(b, h), shape_.n, shape_.d); }
  // Head number b * heads + h.
  Map head(Index bh) const { return Map(data_ + bh * shape_.n * shape_.d, shape_.n, shape_.d); }

 private:
  T* data_ = nullptr;
  Shape shape_;
};

using TensorView = BasicTensorView<float>;
using ConstTensorView = BasicTensorView<const float>;

template <class T>
class BasicTensor {
 public:
  BasicTensor() = default;
  explicit BasicTensor(Shape shape) : shape_(shape), data_(shape.size()) {}
  BasicTensor(Index batch, Index heads, Index n, Index d)
      : BasicTensor(Shape{batch, heads, n, d}) {}
  BasicTensor(BasicTensor&&) noexcept = default;
  BasicTensor& operator=(BasicTensor&&) noexcept = default;
  BasicTensor(const BasicTensor& other) : BasicTensor(other.shape_) {
    if (size() > 0) std::memcpy(data(), other.data(), static_cast<std::size_t>(size()) * sizeof(T));
  }
  BasicTensor& operator=(const BasicTensor& other) {
    if (this != &other) *this = BasicTensor(other);
    return *this;
  }

  T* data() { return data_.data(); }
  const T* data() const { return data_.data(); }
  const Shape& shape() const { return shape_; }
  Index batch() const { return shape_.batch; }
  Index heads() const { return shape_.heads; }
  Index n() const { return shape_.n; }
  Index d() const { return shape_.d; }
  Index size() const { return shape_.size(); }
  bool empty() const { return size() == 0; }

  BasicTensorView<T> view() { return {data(), shape_}; }
  BasicTensorView<const T> view() const { return {data(), shape_}; }
  operator BasicTensorView<T>() { return view(); }
  operator BasicTensorView<const T>() const { return view(); }
  auto head(Index b, Index h) { return view().head(b, h); }
  auto head(Index b, Index h) const { return view().head(b, h); }

  void fill(T value) {
    for (Index i = 0; i < size(); ++i) data_[i] = value;
  }

 private:
  Shape shape_;
  AlignedArray<T> data_;
};

using Tensor = BasicTensor<float>;
using TensorD = BasicTensor<double>;

// Element-wise conversion, for example to the double precision of a reference.
template <class To, class From>
BasicTensor<To> cast(const BasicTensorView<From>& from) {
  BasicTensor<To> to(from.shape());
  for (Index i = 0; i < from.size(); ++i) to.data()[i] = static_cast<To>(from.data()[i]);
  return to;
}
template <class To, class From>
BasicTensor<To> cast(const BasicTensor<From>& from) {
  return cast<To>(from.view());
}

}  // namespace subquad
