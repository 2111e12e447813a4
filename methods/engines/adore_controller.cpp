#include "methods/engines/adore_controller.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "methods/engines/simd.h"

namespace subquad {

using namespace engine;

namespace {

constexpr Index kExactDistances = 16;

Parameter make_parameter(const char* name, std::vector<Index> shape, double spread, Seed seed) {
  Parameter p;
  p.name = name;
  p.shape = std::move(shape);
  Index count = 1;
  for (const Index size : p.shape) count *= size;
  p.value = AlignedArray<float>(count);
  p.grad = AlignedArray<float>(count);
  Random random(seed, name);
  for (Index e = 0; e < count; ++e)
    p.value[e] = static_cast<float>(random.uniform(-spread, spread));
  return p;
}

ConstMatrixMap matrix(const Parameter& p, Index rows) {
  return {p.value.data(), rows, p.value.size() / rows};
}

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

class ControllerScorer final : public TokenScorer {
 public:
  ControllerScorer(const StreamConfig& config, std::shared_ptr<const AdoreController> net)
      : config_(config),
        net_(std::move(net)),
        distances_(net_->options.distances),
        hidden_(net_->options.hidden),
        table_((config.capacity + kLanes - 1) / kLanes * kLanes * hidden_),
        near_(hidden_ * (distances_ + 2 * kLanes)),
        far_(hidden_),
        now_(hidden_),
        input_(net_->d_e),
        z_(net_->options.d_z),
        by_x_(3 * net_->options.d_z),
        by_z_(3 * net_->options.d_z) {
    SUBQUAD_CHECK(net_->d_e == controller_width(config), "the controller reads {}, tokens have {}",
                  net_->d_e, controller_width(config));
  }

  // Also reads the parameters anew: they may have been trained meanwhile.
  void reset() override {
    z_.setZero();
    const Index d_z = net_->options.d_z, width = distances_ + 2 * kLanes;
    const auto w1 = matrix(net_->w1, hidden_);
    const auto p = matrix(net_->distance, net_->distance.value.size() / d_z);
    for (Index j = 0; j < hidden_; ++j)
      // Column kLanes + c is distance distances - 1 - c; beyond both ends the last one.
      for (Index c = 0; c < width; ++c) {
        const Index distance = std::clamp<Index>(distances_ - 1 - (c - kLanes), 0, distances_ - 1);
        near_[j * width + c] = w1.row(j).dot(p.row(distance_bucket(distance, distances_)));
      }
    for (Index j = 0; j < hidden_; ++j) far_[j] = near_[j * width];
  }

  void append(const StreamTokens& token, Index n) override {
    const float* x = token.x;
    if (x == nullptr) {
      for (Index h = 0; h < config_.heads; ++h)
        std::copy_n(token.k + h * token.k_stride, config_.d_k, input_.data() + h * config_.d_k);
      x = input_.data();
    }
    advance(x);
    const auto w1 = matrix(net_->w1, hidden_);
    float* const block = table_.data() + n / kLanes * kLanes * hidden_ + n % kLanes;
    for (Index j = 0; j < hidden_; ++j) block[j * kLanes] = w1.row(j).dot(z_);
    for (Index j = 0; j < hidden_; ++j) now_[j] = net_->b1.value[j];
    if (!net_->options.pairwise) return;
    const auto w_now = matrix(net_->w1_now, hidden_);
    for (Index j = 0; j < hidden_; ++j) now_[j] += w_now.row(j).dot(z_);
  }

  // The sum before the sigmoid: the same order. kLanes tokens at a time.
  void score_past(Index n, float* s) override {
    const Index width = distances_ + 2 * kLanes;
    const float *const w2 = net_->w2.value.data(), b2 = net_->b2.value[0];
    for (Index i = 0; i < n; i += kLanes) {
      const float* const a = table_.data() + i * hidden_;
      Vec sum = broadcast(b2);
      const Index column = kLanes + distances_ - 1 - (n - i);  // of the distance of token i
      if (column <= 0) {
        for (Index j = 0; j < hidden_; ++j)
          sum += broadcast(w2[j]) * max(load(a + j * kLanes) + broadcast(far_[j] + now_[j]), Vec{});
      } else {
        for (Index j = 0; j < hidden_; ++j)
          sum += broadcast(w2[j]) *
                 max(load(a + j * kLanes) + load(near_.data() + j * width + column) +
                         broadcast(now_[j]),
                     Vec{});
      }
      if (i + kLanes <= n) {
        store(s + i, sum);
      } else {
        float last[kLanes];
        store(last, sum);
        std::copy_n(last, n - i, s + i);
      }
    }
  }

  void score_some(Index n, const std::int32_t* positions, Index count, float* s) override {
    const Index width = distances_ + 2 * kLanes;
    for (Index e = 0; e < count; ++e) {
      const Index i = positions[e];
      const float* const a = table_.data() + i / kLanes * kLanes * hidden_ + i % kLanes;
      const Index column = kLanes + std::max<Index>(0, distances_ - 1 - (n - i));
      float sum = net_->b2.value[0];
      for (Index j = 0; j < hidden_; ++j)
        sum +=
            net_->w2.value[j] * std::max(a[j * kLanes] + near_[j * width + column] + now_[j], 0.0f);
      s[e] = sum;
    }
  }

  double aux_bytes(Index n) const override {
    return 4.0 * static_cast<double>(n * hidden_ + z_.size() + near_.size());
  }

 private:
  void advance(const float* x) {
    const Index d_z = net_->options.d_z;
    const Eigen::Map<const Vector> in(x, net_->d_e);
    const auto bias = [](const Parameter& p) {
      return Eigen::Map<const Vector>(p.value.data(), p.value.size());
    };
    if (!net_->options.gru) {
      z_ = bias(net_->b_w);
      z_.noalias() += matrix(net_->w, d_z) * in;
      for (Index c = 0; c < d_z; ++c) z_[c] = std::tanh(z_[c]);
      return;
    }
    by_x_ = bias(net_->b_w);
    by_x_.noalias() += matrix(net_->w, 3 * d_z) * in;
    by_z_ = bias(net_->b_u);
    by_z_.noalias() += matrix(net_->u, 3 * d_z) * z_;
    for (Index c = 0; c < d_z; ++c) {
      const float reset = sigmoid(by_x_[c] + by_z_[c]);
      const float update = sigmoid(by_x_[d_z + c] + by_z_[d_z + c]);
      const float candidate = std::tanh(by_x_[2 * d_z + c] + reset * by_z_[2 * d_z + c]);
      z_[c] = (1 - update) * candidate + update * z_[c];
    }
  }

  StreamConfig config_;
  std::shared_ptr<const AdoreController> net_;
  Index distances_, hidden_;
  AlignedArray<float> table_;  // W1 z_i: [blocks of kLanes tokens, hidden, kLanes]
  AlignedArray<float> near_;   // W1 p by distance, far ones first: [hidden, distances + 2 kLanes]
  AlignedArray<float> far_, now_, input_;
  Vector z_, by_x_, by_z_;
};

}  // namespace

Index distance_bucket(Index distance, Index distances) {
  const Index d = std::min(distance, distances - 1);
  if (d < kExactDistances) return d;
  const auto octave = static_cast<Index>(std::bit_width(static_cast<std::uint64_t>(d))) - 1;
  return kExactDistances + 4 * (octave - 4) + (d >> (octave - 2) & 3);
}

AdoreController::AdoreController(const ControllerOptions& o, Index input, Seed seed)
    : options(o), d_e(input) {
  const Index gates = o.gru ? 3 * o.d_z : o.d_z;
  const double spread = 1 / std::sqrt(static_cast<double>(o.d_z));
  const Seed own = derive(seed, "adore.controller");
  const auto make = [&](const char* name, std::vector<Index> shape) {
    return make_parameter(name, std::move(shape), spread, own);
  };
  w = make("w", {gates, d_e});
  b_w = make("b_w", {gates});
  if (o.gru) u = make("u", {gates, o.d_z}), b_u = make("b_u", {gates});
  distance = make("distance", {distance_bucket(o.distances - 1, o.distances) + 1, o.d_z});
  w1 = make("w1", {o.hidden, o.d_z});
  if (o.pairwise) w1_now = make("w1_now", {o.hidden, o.d_z});
  b1 = make("b1", {o.hidden});
  w2 = make("w2", {o.hidden});
  b2 = make("b2", {1});
}

std::vector<Parameter*> AdoreController::all() {
  std::vector<Parameter*> list;
  for (Parameter* p : {&w, &u, &b_w, &b_u, &distance, &w1, &w1_now, &b1, &w2, &b2})
    if (p->value.size() > 0) list.push_back(p);
  return list;
}

Index controller_width(const StreamConfig& config) {
  return config.d_e > 0 ? config.d_e : config.heads * config.d_k;
}

std::unique_ptr<TokenScorer> make_controller_scorer(const StreamConfig& config,
                                                    std::shared_ptr<const AdoreController> net) {
  return std::make_unique<ControllerScorer>(config, std::move(net));
}

}  // namespace subquad
