#include "methods/engines/adore_controller.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "methods/engines/row_attention.h"
#include "methods/engines/vector_math.h"

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

Vec sigmoid(Vec x) { return 1.0f / (exp_any(-x) + 1.0f); }
Vec tanh_of(Vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

class ControllerScorer final : public TokenScorer {
 public:
  ControllerScorer(const StreamConfig& config, std::shared_ptr<const AdoreController> net,
                   bool all_tokens)
      : config_(config),
        net_(std::move(net)),
        all_tokens_(all_tokens),
        distances_(net_->options.distances),
        hidden_(net_->options.hidden),
        wide_(round_up(hidden_, kLanes)),
        table_(table_floats(config.capacity, hidden_, all_tokens)),
        near_(all_tokens ? hidden_ * (distances_ + 2 * kLanes) : 0),
        buckets_(net_->distance.value.size() / net_->options.d_z * wide_),
        bucket_of_(distances_),
        now_(wide_),
        now_z_(wide_),
        w2_(wide_),
        input_(net_->d_e),
        z_(round_up(net_->options.d_z, kLanes)),
        by_x_(3 * z_.size()),
        by_z_(3 * z_.size()),
        tail_(kLanes) {
    SUBQUAD_CHECK(net_->d_e == controller_width(config), "the controller reads {}, tokens have {}",
                  net_->d_e, controller_width(config));
  }

  // Also reads the parameters anew: they may have been trained meanwhile.
  void reset() override {
    std::fill_n(z_.data(), z_.size(), 0.0f);
    std::copy_n(net_->w2.value.data(), hidden_, w2_.data());
    const Index d_z = net_->options.d_z;
    const auto w1 = matrix(net_->w1, hidden_);
    const auto p = matrix(net_->distance, net_->distance.value.size() / d_z);
    for (Index b = 0; b < p.rows(); ++b)
      for (Index j = 0; j < hidden_; ++j) buckets_[b * wide_ + j] = w1.row(j).dot(p.row(b));
    for (Index d = 0; d < distances_; ++d)
      bucket_of_[d] = static_cast<std::int32_t>(distance_bucket(d, distances_) * wide_);
    if (!all_tokens_) return;
    const Index width = distances_ + 2 * kLanes;
    for (Index j = 0; j < hidden_; ++j)
      // Column kLanes + c is distance distances - 1 - c; beyond both ends the last one.
      for (Index c = 0; c < width; ++c)
        near_[j * width + c] = buckets_
            [bucket_of_[std::clamp<Index>(distances_ - 1 - (c - kLanes), 0, distances_ - 1)] + j];
  }

  void append(const StreamTokens& token, Index n) override {
    const float* x = token.x;
    if (x == nullptr) {
      for (Index h = 0; h < config_.heads; ++h)
        std::copy_n(token.k + h * token.k_stride, config_.d_k, input_.data() + h * config_.d_k);
      x = input_.data();
    }
    advance(x);
    if (all_tokens_) {
      product(net_->w1, z_.data(), net_->options.d_z, now_.data());
      float* const block = table_.data() + n / kLanes * kLanes * hidden_ + n % kLanes;
      for (Index j = 0; j < hidden_; ++j) block[j * kLanes] = now_[j];
    } else {
      product(net_->w1, z_.data(), net_->options.d_z, table_.data() + n * wide_);
    }
    std::copy_n(net_->b1.value.data(), hidden_, now_.data());
    if (!net_->options.pairwise) return;
    product(net_->w1_now, z_.data(), net_->options.d_z, now_z_.data());
    for (Index j = 0; j < hidden_; ++j) now_[j] += now_z_[j];
  }

  // The sum before the sigmoid: the same order. kLanes tokens at a time.
  void score_past(Index n, float* s) override {
    if (!all_tokens_)
      return score_rows(
          n, [](Index i) { return i; }, n, s);
    const Index width = distances_ + 2 * kLanes;
    const float *const w2 = w2_.data(), b2 = net_->b2.value[0];
    for (Index i = 0; i < n; i += kLanes) {
      const float* const a = table_.data() + i * hidden_;
      Vec sum = broadcast(b2);
      const Index column = kLanes + distances_ - 1 - (n - i);  // of the distance of token i
      if (column <= 0) {
        for (Index j = 0; j < hidden_; ++j)
          sum += broadcast(w2[j]) *
                 max(load(a + j * kLanes) + broadcast(near_[j * width] + now_[j]), Vec{});
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
    if (!all_tokens_)
      return score_rows(
          n, [positions](Index e) { return Index{positions[e]}; }, count, s);
    for (Index e = 0; e < count; ++e) {
      const Index i = positions[e];
      const float* const a = table_.data() + i / kLanes * kLanes * hidden_ + i % kLanes;
      const float* const near = buckets_.data() + bucket_of_[std::min(n - i, distances_ - 1)];
      float sum = net_->b2.value[0];
      for (Index j = 0; j < hidden_; ++j)
        sum += w2_[j] * std::max(a[j * kLanes] + near[j] + now_[j], 0.0f);
      s[e] = sum;
    }
  }

  double aux_bytes(Index n) const override {
    return 4.0 * static_cast<double>(table_floats(n, hidden_, all_tokens_) + z_.size() +
                                     near_.size() + buckets_.size() + bucket_of_.size());
  }

  // W1 z of the tokens: in blocks of kLanes tokens, or a row for each.
  static Index table_floats(Index tokens, Index hidden, bool all_tokens) {
    return all_tokens ? round_up(tokens, kLanes) * hidden : tokens * round_up(hidden, kLanes);
  }

 private:
  // Tokens position(0), ..., a row of the table each.
  template <class Position>
  void score_rows(Index n, const Position& position, Index count, float* s) const {
    const auto row = [&](Index e) {
      const Index i = position(e);
      const float* const a = table_.data() + i * wide_;
      const float* const near = buckets_.data() + bucket_of_[std::min(n - i, distances_ - 1)];
      Vec sum{};
      for (Index j = 0; j < wide_; j += kLanes)
        sum +=
            load(w2_.data() + j) * max(load(a + j) + load(near + j) + load(now_.data() + j), Vec{});
      return sum;
    };
    const float b2 = net_->b2.value[0];
    for (Index e = 0; e < count; e += kLanes) {
      Vec sums[kLanes];
      for (Index i = 0; i < kLanes; ++i) sums[i] = row(std::min(e + i, count - 1));
      const Vec all = reduce_each(sums, [](Vec a, Vec b) { return a + b; }) + b2;
      if (e + kLanes <= count) {
        store(s + e, all);
      } else {
        store_part(s + e, count - e, all);
      }
    }
  }

  // y = W x.
  void product(const Parameter& w, const float* x, Index in, float* y) {
    const Index rows = w.value.size() / in;
    RowQuery(x, in, tail_.data()).score(ContiguousRows{w.value.data(), in}, rows, y);
  }

  void advance(const float* x) {
    const Index d_z = net_->options.d_z;
    const auto add = [](const Parameter& bias, float* y) {
      for (Index c = 0; c < bias.value.size(); ++c) y[c] += bias.value[c];
    };
    product(net_->w, x, net_->d_e, by_x_.data());
    add(net_->b_w, by_x_.data());
    const auto each = [&](const auto& f) {
      for (Index c = 0; c < d_z; c += kLanes) {
        if (c + kLanes <= d_z) {
          store(z_.data() + c, f(c));
        } else {
          store_part(z_.data() + c, d_z - c, f(c));
        }
      }
    };
    if (!net_->options.gru) return each([&](Index c) { return tanh_of(load(by_x_.data() + c)); });
    product(net_->u, z_.data(), d_z, by_z_.data());
    add(net_->b_u, by_z_.data());
    const float *const a = by_x_.data(), *const b = by_z_.data();
    each([&](Index c) {
      const Vec reset = sigmoid(load(a + c) + load(b + c));
      const Vec update = sigmoid(load(a + d_z + c) + load(b + d_z + c));
      const Vec candidate = tanh_of(load(a + 2 * d_z + c) + reset * load(b + 2 * d_z + c));
      return (1.0f - update) * candidate + update * load(z_.data() + c);
    });
  }

  StreamConfig config_;
  std::shared_ptr<const AdoreController> net_;
  bool all_tokens_;
  Index distances_, hidden_, wide_;  // wide_: hidden_ rounded up to whole vectors
  AlignedArray<float> table_;        // W1 z_i, see table_floats
  AlignedArray<float> near_;         // W1 p by distance, far first: [hidden, distances + 2 kLanes]
  AlignedArray<float> buckets_;      // W1 p by bucket: [buckets, wide_]
  AlignedArray<std::int32_t> bucket_of_;  // [distances] where a distance's row begins
  AlignedArray<float> now_, now_z_, w2_;  // [wide_]
  AlignedArray<float> input_, z_, by_x_, by_z_, tail_;
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

double controller_scorer_bytes(Index capacity, const ControllerOptions& o, bool all_tokens) {
  const Index buckets = distance_bucket(o.distances - 1, o.distances) + 1;
  const Index floats = ControllerScorer::table_floats(capacity, o.hidden, all_tokens) +
                       (all_tokens ? o.hidden * (o.distances + 2 * kLanes) : 0) +
                       buckets * round_up(o.hidden, kLanes) + o.distances;
  return 4.0 * static_cast<double>(floats);
}

std::unique_ptr<TokenScorer> make_controller_scorer(const StreamConfig& config,
                                                    std::shared_ptr<const AdoreController> net,
                                                    bool all_tokens) {
  return std::make_unique<ControllerScorer>(config, std::move(net), all_tokens);
}

}  // namespace subquad
