#include "methods/engines/favor.h"

#include <Eigen/QR>
#include <cmath>

#include "harness/core/parallel.h"
#include "methods/engines/band.h"
#include "methods/engines/score_tile.h"
#include "methods/engines/vector_math.h"

namespace subquad {

MatrixD favor_projection(Index draws, Index d, const FavorOptions& options, Seed seed) {
  Random random(seed, "favor");
  MatrixD w(draws, d);
  const auto fill = [&](auto&& m) {
    for (Index r = 0; r < m.rows(); ++r)
      for (Index c = 0; c < m.cols(); ++c) m(r, c) = random.normal();
  };
  if (!options.orthogonal) {
    fill(w);
    return w;
  }
  for (Index first = 0; first < draws; first += d) {
    MatrixD gaussian(d, d), norms(d, d);
    fill(gaussian);
    fill(norms);
    const Eigen::HouseholderQR<MatrixD> qr(gaussian);
    MatrixD q = qr.householderQ();
    for (Index c = 0; c < d; ++c)
      if (qr.matrixQR()(c, c) < 0) q.col(c) = -q.col(c);
    for (Index r = 0; r < std::min(d, draws - first); ++r)
      w.row(first + r) = q.row(r) * (options.norms == "chi" ? norms.row(r).norm()
                                                            : std::sqrt(static_cast<double>(d)));
  }
  return w;
}

namespace {

using namespace engine;

enum class Form { positive, hyperbolic, trigonometric };

class Favor final : public FeatureMap {
 public:
  Favor(const FavorOptions& options, double scale)
      : options_(options),
        form_(options.form == "positive"     ? Form::positive
              : options.form == "hyperbolic" ? Form::hyperbolic
                                             : Form::trigonometric),
        root_scale_(static_cast<float>(std::sqrt(scale))) {
    SUBQUAD_CHECK(scale > 0, "FAVOR+ needs a positive scale, got {}", scale);
  }

  Index features(Index d) const override {
    return form_ == Form::positive ? draws(d) : 2 * draws(d);
  }

  void prepare(Index d, Seed seed, Index heads, Index n_kv) override {
    const Index m = draws(d), wide_d = round_up(d, kLanes);
    wide_ = round_up(m, kLanes);
    const MatrixD w = favor_projection(m, d, options_, seed);
    columns_ = AlignedArray<float>(d * wide_);
    rows_ = AlignedArray<float>(m * wide_d);
    for (Index r = 0; r < m; ++r)
      for (Index x = 0; x < d; ++x) {
        const auto scaled = static_cast<float>(w(r, x) * static_cast<double>(root_scale_));
        columns_[x * wide_ + r] = rows_[r * wide_d + x] = scaled;
      }
    key_shift_ = AlignedArray<float>(heads);
    block_max_ = AlignedArray<float>(heads * blocks(n_kv));
    if (n_kv > 0) grow(d);
  }
  double bytes(Index d, Index heads, Index n_kv) const override {
    const Index m = draws(d), scratch = n_kv > 0 ? thread_count() * begin_floats(d) : 0;
    return 4.0 * static_cast<double>(d * round_up(m, kLanes) + m * round_up(d, kLanes) + heads +
                                     heads * blocks(n_kv) + scratch);
  }

  // The largest exponent over the keys of every head.
  void begin(const Problem& p, const Inputs& in) override {
    const Index heads = p.batch * p.heads, count = blocks(p.n_kv);
    std::fill_n(key_shift_.data(), heads, 0.0f);
    if (!options_.stabiliser || p.causal) return;
    grow(p.d_k);
    parallel_for(heads * count, [&](Index item, int thread) {
      const Index bh = item / count, first = item % count * kBlock;
      const auto real = keys_of_batch(in, bh / p.heads);
      float* const scratch = begin_scratch_.data() + thread * begin_floats(p.d_k);
      float largest = -kInfinity;
      for (Index j = first; j < std::min(first + kBlock, p.n_kv); j += kRows) {
        const Index rows = std::min({kRows, first + kBlock - j, p.n_kv - j});
        const float* const x = in.k.data() + (bh * p.n_kv + j) * p.d_k;
        project(x, rows, p.d_k, scratch);
        for (Index r = 0; r < rows; ++r) {
          if (!real.empty() && real[static_cast<std::size_t>(j + r)] == 0) continue;
          const float half = half_square(x + r * p.d_k, p.d_k);
          const float top =
              form_ == Form::trigonometric ? half : largest_exponent(scratch + r * wide_) - half;
          if (top > largest) largest = top;
        }
      }
      block_max_[item] = largest;
    });
    for (Index bh = 0; bh < heads; ++bh) {
      float largest = -kInfinity;
      for (Index b = 0; b < count; ++b) largest = std::max(largest, block_max_[bh * count + b]);
      if (std::isfinite(largest)) key_shift_[bh] = largest;
    }
  }

  Index scratch_floats(Index d, Index rows) const override {
    return round_up(rows, 8) * round_up(draws(d), kLanes) + round_up(features(d), kLanes);
  }

  void apply(Side side, Index bh, const float* x, Index rows, Index d, float* phi, Index wide,
             float* scratch) const override {
    project(x, rows, d, scratch);
    for (Index r = 0; r < rows; ++r)
      row_features(scratch + r * wide_, d, shift(side, bh, x + r * d, d, scratch + r * wide_),
                   phi + r * wide, wide);
  }

  // With a = phi - eps: d exp(W x - |x|^2/2) = a (w_r - x); the halves of the hyperbolic form have
  // +w_r and -w_r; cosine and sine give -sin w_r and cos w_r, and exp(|x|^2/2) gives +x. Constants
  // of the stabiliser do not count.
  void pull_back(Side side, Index bh, const float* x, const float* phi, const float* dphi,
                 Index rows, Index d, Index wide, float* dx, float* scratch) const override {
    const Index m = draws(d), wide_d = round_up(d, kLanes);
    float* const own = scratch + round_up(rows, 8) * wide_;  // phi of one row
    const auto eps = static_cast<float>(options_.feature_eps);
    if (phi == nullptr) project(x, rows, d, scratch);
    for (Index r = 0; r < rows; ++r) {
      const float* a = phi == nullptr ? own : phi + r * wide;
      float* const s = scratch + r * wide_;
      const float* const row = x + r * d;
      if (phi == nullptr)
        row_features(s, d, shift(side, bh, row, d, s), own, round_up(features(d), kLanes));
      const float* const g = dphi + r * wide;
      double inner = 0;
      for (Index f = 0; f < features(d); ++f) inner += static_cast<double>((a[f] - eps) * g[f]);
      if (form_ == Form::positive) {
        for (Index f = 0; f < m; ++f) s[f] = (a[f] - eps) * g[f];
      } else if (form_ == Form::hyperbolic) {
        for (Index f = 0; f < m; ++f) s[f] = (a[f] - eps) * g[f] - (a[m + f] - eps) * g[m + f];
      } else {
        for (Index f = 0; f < m; ++f) s[f] = (a[f] - eps) * g[m + f] - (a[m + f] - eps) * g[f];
      }
      // dx = root_scale (sum_r s_r w_r -+ inner x root_scale); rows_ holds root_scale w_r.
      float* const to = dx + r * d;
      const float pull = static_cast<float>(inner) * root_scale_ * root_scale_ *
                         (form_ == Form::trigonometric ? 1.0f : -1.0f);
      for (Index c = 0; c < d; c += kLanes) {
        const Index count = std::min<Index>(kLanes, d - c);
        Vec even{}, odd{};
        Index f = 0;
        for (; f + 2 <= m; f += 2) {
          even += s[f] * load(rows_.data() + f * wide_d + c);
          odd += s[f + 1] * load(rows_.data() + (f + 1) * wide_d + c);
        }
        if (f < m) even += s[f] * load(rows_.data() + f * wide_d + c);
        const Vec here = count == kLanes ? load(row + c) : load_part(row + c, count);
        const Vec sum = even + odd + pull * here;
        if (count == kLanes) {
          store(to + c, sum);
        } else {
          store_part(to + c, count, sum);
        }
      }
    }
  }

 private:
  static constexpr Index kRows = 32;     // rows that begin() projects at once
  static constexpr Index kBlock = 1024;  // keys of an item of begin()

  Index draws(Index d) const {
    const Index features = options_.features != 0 ? options_.features : 2 * d;
    return form_ == Form::positive ? features : std::max<Index>(1, features / 2);
  }
  static Index blocks(Index n_kv) { return (n_kv + kBlock - 1) / kBlock; }
  Index begin_floats(Index d) const { return kRows * round_up(draws(d), kLanes); }
  void grow(Index d) {
    if (begin_scratch_.size() < thread_count() * begin_floats(d))
      begin_scratch_ = AlignedArray<float>(thread_count() * begin_floats(d));
  }

  // What is subtracted from the exponents of a row with projections s.
  float shift(Side side, Index bh, const float* x, Index d, const float* s) const {
    const bool trigonometric = form_ == Form::trigonometric;
    if (options_.stabiliser && side == Side::query) return trigonometric ? 0 : largest_exponent(s);
    const float half = half_square(x, d);
    const float key = options_.stabiliser ? key_shift_[bh] : 0.0f;
    return (trigonometric ? -half : half) + key;
  }
  float half_square(const float* x, Index d) const {  // of the scaled row
    Vec sum{};
    Index c = 0;
    for (; c + kLanes <= d; c += kLanes) sum += load(x + c) * load(x + c);
    if (c < d) sum += load_part(x + c, d - c) * load_part(x + c, d - c);
    return 0.5f * horizontal_sum(sum) * root_scale_ * root_scale_;
  }

  // to [rows, wide_] = x W^T, with the square root of the scale in W.
  void project(const float* x, Index rows, Index d, float* to) const {
    for_column_blocks(wide_, [&](Index c, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      Index r = 0;
      for (; r + 4 <= rows; r += 4)
        product_block<4, kVectors, false>(x + r * d, d, 1, d, columns_.data() + c, wide_,
                                          to + r * wide_ + c, wide_);
      for (; r < rows; ++r)
        product_block<1, kVectors, false>(x + r * d, d, 1, d, columns_.data() + c, wide_,
                                          to + r * wide_ + c, wide_);
    });
  }

  // Zeros beyond the draws take part: any constant will do.
  float largest_exponent(const float* s) const {
    Vec largest = form_ == Form::hyperbolic ? Vec{} : load(s);
    for (Index f = 0; f < wide_; f += kLanes) {
      const Vec e = load(s + f);
      largest = engine::max(largest, e);
      if (form_ == Form::hyperbolic) largest = engine::max(largest, -e);
    }
    return horizontal_max(largest);
  }

  // phi [wide] from projections s [wide_]: exponents minus `shift`.
  void row_features(const float* s, Index d, float shift, float* phi, Index wide) const {
    const Index m = draws(d), whole = m / kLanes * kLanes;
    const auto eps = static_cast<float>(options_.feature_eps);
    const auto factor = static_cast<float>(
        1 / std::sqrt(static_cast<double>(form_ == Form::hyperbolic ? 2 * m : m)));
    const float scale = form_ == Form::trigonometric ? factor * std::exp(-shift) : factor;
    const auto half = [&](Index offset, auto&& function) {
      for (Index f = 0; f < whole; f += kLanes)
        store(phi + offset + f, function(load(s + f)) * scale + eps);
      if (whole < m)
        store_part(phi + offset + whole, m - whole,
                   function(load_part(s + whole, m - whole)) * scale + eps);
    };
    if (form_ == Form::trigonometric) {
      half(0, [](Vec x) {
        Vec sine, cosine;
        sin_cos(x, &sine, &cosine);
        return cosine;
      });
      half(m, [](Vec x) {
        Vec sine, cosine;
        sin_cos(x, &sine, &cosine);
        return sine;
      });
    } else {
      half(0, [&](Vec x) { return exp_any(x - shift); });
      if (form_ == Form::hyperbolic) half(m, [&](Vec x) { return exp_any(-x - shift); });
    }
    for (Index f = features(d); f < wide; ++f) phi[f] = 0;
  }

  FavorOptions options_;
  Form form_;
  float root_scale_;
  Index wide_ = 0;                     // draws rounded up
  AlignedArray<float> columns_;        // [d, wide_]: W^T times the square root of the scale
  AlignedArray<float> rows_;           // [wide_, d rounded up]: W, likewise
  AlignedArray<float> key_shift_;      // [batch * heads]
  AlignedArray<float> block_max_;      // [batch * heads, blocks of kBlock keys]
  AlignedArray<float> begin_scratch_;  // [threads, begin_floats]
};

}  // namespace

std::unique_ptr<FeatureMap> make_favor_map(const FavorOptions& options, double scale) {
  return std::make_unique<Favor>(options, scale);
}

}  // namespace subquad
