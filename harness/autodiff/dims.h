// The sizes of a tensor of any rank up to six, row-major.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>

#include "harness/core/error.h"
#include "harness/core/types.h"

namespace subquad::autodiff {

inline constexpr int kMaxRank = 6;

class Dims {
 public:
  Dims() = default;  // a scalar
  Dims(std::initializer_list<Index> sizes) {
    for (const Index size : sizes) push_back(size);
  }

  int rank() const { return rank_; }
  Index operator[](int axis) const { return sizes_[static_cast<std::size_t>(checked(axis))]; }
  void set(int axis, Index size) { sizes_[static_cast<std::size_t>(checked(axis))] = size; }
  Index back() const { return rank_ == 0 ? 1 : (*this)[rank_ - 1]; }
  Index count() const { return count(0, rank_); }
  Index count(int first, int last) const {  // product of the sizes of axes [first, last)
    Index product = 1;
    for (int a = first; a < last; ++a) product *= (*this)[a];
    return product;
  }
  Index rows() const { return rank_ == 0 ? 1 : count(0, rank_ - 1); }  // all axes but the last
  // A negative axis counts from the end.
  int axis(int a) const {
    const int positive = a < 0 ? a + rank_ : a;
    if (positive < 0 || positive >= rank_)
      throw InternalError(fmt::format("axis {} of a tensor {}", a, str()));
    return positive;
  }
  void push_back(Index size) {
    if (rank_ == kMaxRank) throw InternalError("a tensor of rank above 6");
    sizes_[static_cast<std::size_t>(rank_++)] = size;
  }
  Dims with(int a, Index size) const {
    Dims changed = *this;
    changed.set(axis(a), size);
    return changed;
  }
  bool operator==(const Dims& other) const {
    return rank_ == other.rank_ &&
           std::equal(sizes_.begin(), sizes_.begin() + rank_, other.sizes_.begin());
  }
  std::string str() const {
    std::string text = "[";
    for (int a = 0; a < rank_; ++a) text += fmt::format("{}{}", a > 0 ? ", " : "", (*this)[a]);
    return text + "]";
  }

 private:
  int checked(int axis) const {
    if (axis < 0 || axis >= rank_) throw InternalError(fmt::format("axis {} of {}", axis, rank_));
    return axis;
  }

  std::array<Index, kMaxRank> sizes_{};
  int rank_ = 0;
};

}  // namespace subquad::autodiff
