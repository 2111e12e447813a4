#include "harness/core/tensor.h"

#include <catch2/catch.hpp>
#include <numeric>

using namespace subquad;

namespace {
Tensor counting(Index batch, Index heads, Index n, Index d) {
  Tensor tensor(batch, heads, n, d);
  std::iota(tensor.data(), tensor.data() + tensor.size(), 0.0f);
  return tensor;
}
}  // namespace

TEST_CASE("memory is aligned to 64 bytes and starts at zero", "[tensor]") {
  for (const Index n : {1, 2, 3, 15, 16, 17, 1000}) {
    Tensor tensor(1, 1, n, 1);
    CHECK(reinterpret_cast<std::uintptr_t>(tensor.data()) % 64 == 0);
    CHECK(std::all_of(tensor.data(), tensor.data() + n, [](float x) { return x == 0; }));
    TensorD doubles(1, 1, n, 3);
    CHECK(reinterpret_cast<std::uintptr_t>(doubles.data()) % 64 == 0);
  }
}

TEST_CASE("a head is a row-major matrix at its place", "[tensor]") {
  Tensor tensor = counting(2, 3, 4, 5);
  CHECK(tensor.shape() == Shape{2, 3, 4, 5});
  CHECK(tensor.size() == 120);
  CHECK(tensor.shape().str() == "[2, 3, 4, 5]");
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index i = 0; i < 4; ++i)
        for (Index c = 0; c < 5; ++c) {
          const auto expected = static_cast<float>(((b * 3 + h) * 4 + i) * 5 + c);
          CHECK(tensor.head(b, h)(i, c) == expected);
          CHECK(tensor.view().head(b * 3 + h)(i, c) == expected);
          CHECK(tensor.view().head_data(b, h)[i * 5 + c] == expected);
        }
}

TEST_CASE("a view sees the tensor's memory, a copy has its own", "[tensor]") {
  Tensor tensor = counting(1, 2, 3, 4);
  Tensor copy = tensor;
  TensorView view = tensor;
  ConstTensorView read_only = view;
  view.head(0, 1)(2, 3) = -1;
  CHECK(tensor.data()[23] == -1);
  CHECK(read_only.head(0, 1)(2, 3) == -1);
  CHECK(copy.data()[23] == 23);
  copy = tensor;
  CHECK(copy.data()[23] == -1);
  CHECK(copy.data() != tensor.data());
  const Tensor& self = copy;
  copy = self;
  CHECK(copy.data()[23] == -1);
}

TEST_CASE("a moved tensor keeps its memory", "[tensor]") {
  Tensor tensor = counting(1, 1, 3, 4);
  const float* data = tensor.data();
  const Tensor moved = std::move(tensor);
  CHECK(moved.data() == data);
  CHECK(moved.shape() == Shape{1, 1, 3, 4});
}

TEST_CASE("empty tensors and views are empty", "[tensor]") {
  CHECK(Tensor().empty());
  CHECK(TensorView().empty());
  CHECK(TensorView().size() == 0);
  CHECK(Tensor(1, 1, 0, 4).empty());
  const Tensor none, copy = none;
  CHECK(copy.empty());
  CHECK(!Tensor(1, 1, 1, 1).empty());
  CHECK(!Tensor(1, 1, 1, 1).view().empty());
}

TEST_CASE("fill and cast reach every element", "[tensor]") {
  Tensor tensor(2, 2, 3, 3);
  tensor.fill(1.5f);
  const TensorD doubles = cast<double>(tensor);
  CHECK(doubles.shape() == tensor.shape());
  CHECK(std::all_of(doubles.data(), doubles.data() + doubles.size(),
                    [](double x) { return x == 1.5; }));
  const Tensor back = cast<float>(doubles.view());
  CHECK(std::equal(back.data(), back.data() + back.size(), tensor.data()));
}

TEST_CASE("a negative size is a broken invariant, not a crash", "[tensor]") {
  CHECK_THROWS_AS(Tensor(1, 1, -1, 4), InternalError);
}
