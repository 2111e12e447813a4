#include "methods/engines/feature_map.h"

#include "methods/engines/vector_math.h"

namespace subquad {
namespace {

using namespace engine;

constexpr float kLog2e = 1.44269504088896340736f;

// An element-wise map is two functions of x: its value and its slope; the latter also from the
// value, where that is cheaper.
struct Identity {
  Vec value(Vec x) const { return x; }
  Vec slope(Vec) const { return broadcast(1.0f); }
  Vec slope_of_value(Vec x, Vec) const { return slope(x); }
};

// elu(x) + 1 = x + 1 above zero, exp(x) below (Katharopoulos et al. 2020, equation 7).
struct Elu1 {
  Vec value(Vec x) const { return x > 0.0f ? x + 1.0f : exp_nonpositive(x); }
  Vec slope(Vec x) const { return x > 0.0f ? broadcast(1.0f) : exp_nonpositive(x); }
  Vec slope_of_value(Vec, Vec value) const { return value > 1.0f ? broadcast(1.0f) : value; }
};

struct Relu {
  float shift = 0;
  Vec value(Vec x) const { return (x < 0.0f ? Vec{} : x) + shift; }
  Vec slope(Vec x) const { return x > 0.0f ? broadcast(1.0f) : Vec{}; }
  Vec slope_of_value(Vec x, Vec) const { return slope(x); }
};

struct Exp {
  Vec value(Vec x) const { return exp_any(x); }
  Vec slope(Vec x) const { return exp_any(x); }
  Vec slope_of_value(Vec, Vec value) const { return value; }
};

template <class Function>
class Elementwise final : public FeatureMap {
 public:
  explicit Elementwise(Function function) : function_(function) {}

  Index features(Index d) const override { return d; }

  void apply(Side, Index, const float* x, Index rows, Index d, float* phi, Index wide,
             float*) const override {
    map_rows(x, rows, d, phi, wide, [this](Vec v) { return function_.value(v); });
  }

  void pull_back(Side, Index, const float* x, const float* phi, const float* dphi, Index rows,
                 Index d, Index wide, float* dx, float*) const override {
    const Index whole = d / kLanes * kLanes;
    for (Index r = 0; r < rows; ++r, x += d, dphi += wide, dx += d) {
      const float* const value = phi == nullptr ? nullptr : phi + r * wide;
      const auto slope = [&](Vec y, Index c) {
        return value == nullptr ? function_.slope(y) : function_.slope_of_value(y, load(value + c));
      };
      for (Index c = 0; c < whole; c += kLanes)
        store(dx + c, slope(load(x + c), c) * load(dphi + c));
      if (whole < d)
        store_part(dx + whole, d - whole,
                   slope(load_part(x + whole, d - whole), whole) * load(dphi + whole));
    }
  }

 private:
  Function function_;
};

}  // namespace

std::unique_ptr<FeatureMap> make_elementwise_map(const std::string& name, double shift) {
  if (name == "identity") return std::make_unique<Elementwise<Identity>>(Identity{});
  if (name == "elu1") return std::make_unique<Elementwise<Elu1>>(Elu1{});
  if (name == "relu") return std::make_unique<Elementwise<Relu>>(Relu{static_cast<float>(shift)});
  SUBQUAD_CHECK(name == "exp", "unknown feature map {}", name);
  return std::make_unique<Elementwise<Exp>>(Exp{});
}

}  // namespace subquad
