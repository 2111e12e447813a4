// Every op against central differences over random shapes, odd sizes and vector remainders
// included.

#include "tests/autodiff/gradient_check.h"

namespace subquad::autodiff {
namespace {

using V = Var<double>;
using Vs = std::vector<V>;

// Sizes that are no multiple of a vector, and one that is.
const std::vector<Dims> kShapes{{1}, {3, 5}, {2, 3, 8}, {2, 1, 3, 17}};

TEST_CASE("element-wise ops have exact gradients", "[autodiff]") {
  const std::vector<std::pair<const char*, std::function<V(V)>>> ops{
      {"exp", [](V x) { return exp(x); }},
      {"square", [](V x) { return square(x); }},
      {"tanh", [](V x) { return tanh(x); }},
      {"sigmoid", [](V x) { return sigmoid(x); }},
      {"elu", [](V x) { return elu(x); }},
      {"relu", [](V x) { return relu(x); }},
      {"gelu", [](V x) { return gelu(x); }},
      {"gelu_tanh", [](V x) { return gelu_tanh(x); }},
      {"scale", [](V x) { return scale(x, -1.7); }},
      {"shift", [](V x) { return shift(x, 0.3); }},
      {"log of a square", [](V x) { return log(shift(square(x), 0.1)); }},
      {"sqrt of a square", [](V x) { return sqrt(shift(square(x), 0.1)); }},
      {"dropout", [](V x) { return dropout(x, 0.4, 11); }},
      {"used twice", [](V x) { return mul(x, tanh(x)); }},
      {"shared gradient", [](V x) { return square(add(x, add(x, x))); }}};
  for (const auto& [name, op] : ops)
    for (std::size_t s = 0; s < kShapes.size(); ++s) {
      INFO(name << " " << kShapes[s].str());
      const auto& f = op;
      check_gradient({kShapes[s]}, [&](Tape<double>&, const Vs& v) { return f(v[0]); },
                     {.seed = 7 + s});
    }
}

TEST_CASE("arithmetic broadcasts and its gradients are summed back", "[autodiff]") {
  const std::vector<std::pair<Dims, Dims>> pairs{
      {{2, 3, 5}, {2, 3, 5}}, {{2, 3, 5}, {5}},       {{2, 3, 5}, {3, 1}}, {{4, 1}, {1, 7}},
      {{3, 9}, Dims{}},       {{2, 1, 3, 4}, {3, 1}}, {{1}, {2, 17}}};
  for (const auto& [a, b] : pairs) {
    INFO(a.str() << " and " << b.str());
    check_gradient({a, b}, [](Tape<double>&, const Vs& v) { return add(v[0], v[1]); });
    check_gradient({a, b}, [](Tape<double>&, const Vs& v) { return sub(v[0], v[1]); });
    check_gradient({a, b}, [](Tape<double>&, const Vs& v) { return mul(v[0], v[1]); });
    check_gradient({a, b}, [](Tape<double>&, const Vs& v) { return div(v[0], v[1]); },
                   {.low = 0.5, .high = 2});
  }
}

TEST_CASE("reductions and running sums have exact gradients", "[autodiff]") {
  const Dims dims{3, 4, 5};
  check_gradient({dims}, [](Tape<double>&, const Vs& v) { return sum(square(v[0])); });
  check_gradient({dims}, [](Tape<double>&, const Vs& v) { return mean(square(v[0])); });
  for (int axis = -1; axis < 2; ++axis) {
    check_gradient({dims}, [&](Tape<double>&, const Vs& v) { return sum(v[0], axis); });
    check_gradient({dims}, [&](Tape<double>&, const Vs& v) { return mean(square(v[0]), axis); });
    check_gradient({dims}, [&](Tape<double>&, const Vs& v) { return max(v[0], axis); });
    check_gradient({dims}, [&](Tape<double>&, const Vs& v) { return cumsum(v[0], axis); });
  }
}

TEST_CASE("ops that move elements have exact gradients", "[autodiff]") {
  check_gradient({{2, 6}}, [](Tape<double>&, const Vs& v) {
    return square(reshape(square(v[0]), {3, 4}));
  });
  check_gradient({{2, 3, 4, 5}}, [](Tape<double>&, const Vs& v) {
    return transpose(v[0], {2, 0, 3, 1});
  });
  check_gradient({{2, 3}}, [](Tape<double>&, const Vs& v) {
    return square(transpose(v[0], {1, 0}));
  });
  check_gradient({{2, 3, 4}, {2, 1, 4}, {2, 5, 4}}, [](Tape<double>&, const Vs& v) {
    return square(concat<double>({v[0], v[1], v[2], v[0]}, 1));
  });
  check_gradient({{2, 7, 3}}, [](Tape<double>&, const Vs& v) {
    return add(slice(v[0], 1, 1, 3), slice(square(v[0]), 1, 4, 3));
  });
  const std::vector<std::int32_t> index{4, 0, 4, 2};
  check_gradient({{5, 3}}, [&](Tape<double>&, const Vs& v) { return square(gather(v[0], index)); });
  check_gradient({{5, 3}}, [&](Tape<double>&, const Vs& v) {
    return square(embedding(v[0], index, {2, 2}));
  });
  check_gradient({{4, 3}},
                 [&](Tape<double>&, const Vs& v) { return square(scatter_add(v[0], index, 6)); });
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 0, 1};
  check_gradient({{3, 2, 3}},
                 [&](Tape<double>&, const Vs& v) { return square(masked_fill(v[0], mask, -2)); });
}

TEST_CASE("products have exact gradients", "[autodiff]") {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      const Dims a = ta ? Dims{2, 5, 3} : Dims{2, 3, 5}, b = tb ? Dims{2, 4, 5} : Dims{2, 5, 4};
      const Dims shared = tb ? Dims{4, 5} : Dims{5, 4};
      check_gradient({a, b},
                     [&](Tape<double>&, const Vs& v) { return matmul(v[0], v[1], ta, tb); });
      check_gradient({a, shared},
                     [&](Tape<double>&, const Vs& v) { return matmul(v[0], v[1], ta, tb); });
    }
  check_gradient({{2, 3, 5}, {4, 5}, {4}, {2, 3, 4}}, [](Tape<double>&, const Vs& v) {
    return add(linear(v[0], v[1], v[2], v[3]), linear(v[0], v[1]));
  });
  check_gradient({{2, 3, 5}, {4, 5}, {4}},
                 [](Tape<double>&, const Vs& v) { return linear_gelu(v[0], v[1], v[2]); });
  check_gradient({{2, 3, 5}, {6, 5}, {6}},
                 [](Tape<double>&, const Vs& v) { return linear_to_heads(v[0], v[1], v[2], 2); });
  check_gradient({{2, 3, 4, 2}, {5, 6}, {5}, {2, 4, 5}}, [](Tape<double>&, const Vs& v) {
    return linear_from_heads(v[0], v[1], v[2], v[3]);
  });
}

TEST_CASE("softmax and norms have exact gradients", "[autodiff]") {
  for (const Dims& dims : kShapes) {
    INFO(dims.str());
    const Dims width{dims.back()};
    check_gradient({dims}, [](Tape<double>&, const Vs& v) { return softmax(v[0]); });
    check_gradient({dims}, [](Tape<double>&, const Vs& v) { return log_softmax(v[0]); });
    if (dims.back() < 2) continue;  // the norm of one element is no function of it
    check_gradient({dims, width, width},
                   [](Tape<double>&, const Vs& v) { return layer_norm(v[0], v[1], v[2], 1e-2); });
    check_gradient({dims, width},
                   [](Tape<double>&, const Vs& v) { return rms_norm(v[0], v[1], 1e-2); });
    check_gradient({dims}, [](Tape<double>&, const Vs& v) {
      return add(v[0], layer_norm(square(v[0]), V{}, V{}, 1e-2));
    });
  }
}

TEST_CASE("convolutions and interpolation have exact gradients", "[autodiff]") {
  for (const Index offset : {0, 1, 2})
    check_gradient({{2, 6, 3}, {3, 3}},
                   [&](Tape<double>&, const Vs& v) { return depthwise_conv(v[0], v[1], offset); });
  check_gradient({{1, 2, 9}, {4, 9}},
                 [](Tape<double>&, const Vs& v) { return depthwise_conv(v[0], v[1], 0); });
  check_gradient({{2, 2, 5, 6}, {3, 2, 3, 3}, {3}}, [](Tape<double>&, const Vs& v) {
    return conv2d(v[0], v[1], v[2],
                  {.stride_y = 2, .pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1});
  });
  check_gradient({{1, 2, 6, 5}, {2, 2, 3, 3}}, [](Tape<double>&, const Vs& v) {  // causal rows
    return conv2d(v[0], v[1], V{},
                  {.dilation_y = 2, .dilation_x = 2, .pad_top = 4, .pad_left = 2, .pad_right = 2});
  });
  for (const Interpolation kind :
       {Interpolation::nearest, Interpolation::linear, Interpolation::area})
    for (const Index size : {3, 5, 10, 13})
      check_gradient({{2, 5, 3}},
                     [&](Tape<double>&, const Vs& v) { return interpolate(v[0], 1, size, kind); });
}

TEST_CASE("the recurrent cell and the rotation have exact gradients", "[autodiff]") {
  check_gradient({{2, 3}, {2, 4}, {12, 3}, {12, 4}, {12}, {12}}, [](Tape<double>&, const Vs& v) {
    V z = v[1];
    for (int t = 0; t < 3; ++t) z = gru_cell(v[0], z, v[2], v[3], v[4], v[5]);
    return z;
  });
  std::vector<double> cosine, sine;
  for (int i = 0; i < 3 * 5; ++i) {
    cosine.push_back(std::cos(0.3 * i));
    sine.push_back(std::sin(0.3 * i));
  }
  check_gradient({{2, 2, 3, 10}}, [&](Tape<double>&, const Vs& v) {
    return square(rotate(v[0], cosine.data(), sine.data()));
  });
}

TEST_CASE("losses have exact gradients, and ignored labels none", "[autodiff]") {
  const std::vector<std::int32_t> labels{2, -100, 0, 4};
  check_gradient({{4, 5}}, [&](Tape<double>&, const Vs& v) { return cross_entropy(v[0], labels); });
  check_gradient({{2, 2, 5}},
                 [&](Tape<double>&, const Vs& v) { return cross_entropy(v[0], labels, 7); });
  check_gradient({{3, 4}, {3, 4}}, [](Tape<double>&, const Vs& v) { return mse(v[0], v[1]); });
  std::vector<double> target{0.1, 0.2, 0.7, 0, 0.5, 0.5};
  check_gradient({{2, 3}}, [&](Tape<double>& tape, const Vs& v) {
    return kl_divergence(tape.constant(target.data(), {2, 3}), log_softmax(v[0]));
  });
  Tape<double> tape;
  std::vector<double> logits(20, 0.5);
  const V x = tape.leaf(logits.data(), {4, 5});
  tape.backward(cross_entropy(x, labels));
  for (int i = 5; i < 10; ++i) CHECK(tape.grad(x)[i] == 0);
}

TEST_CASE("nothing flows through stop_gradient", "[autodiff]") {
  Tape<double> tape;
  const std::vector<double> value{2, 3};
  const V x = tape.leaf(value.data(), {2});
  tape.backward(sum(mul(x, stop_gradient(x))));
  CHECK(tape.grad(x)[0] == 2);
  CHECK(tape.grad(x)[1] == 3);
}

}  // namespace
}  // namespace subquad::autodiff
