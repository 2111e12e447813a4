#include "methods/engines/holographic.h"

#include <algorithm>

#include "harness/core/parallel.h"

namespace subquad {
namespace {

class HolographicDecoder final : public Decoder {
 public:
  HolographicDecoder(const DecodeConfig& config, const HolographicOptions& options)
      : config_(config),
        options_(options),
        transform_(config.d_k, options.kind()),
        heads_(config.batch * config.heads) {
    state_ = AlignedArray<double>(heads_ * (transform_.width() + 1));
    work_ = AlignedArray<float>(heads_ * work_floats());
  }
  void reset() override {
    std::fill_n(state_.data(), state_.size(), 0.0);
    length_ = 0;
  }
  void step(const DecodeStep& in, float* out) override {
    ++length_;
    parallel_for(heads_, [&](Index bh, int) {
      const Index width = transform_.width(), bins = transform_.bins(), d = config_.d_k;
      double* sum = state_.data() + bh * (width + 1);
      float* q = work_.data() + bh * work_floats();
      float *k = q + width, *v = k + width, *vhat = v + width, *spare = vhat + width;
      transform_.forward(in.q + bh * d, 1, q, spare);
      transform_.forward(in.k + bh * d, 1, k, spare);
      transform_.forward(in.v + bh * d, 1, v, spare);
      add_spectra<false>(k, v, bins, sum);
      unbind(sum, q, bins, options_.inverse == "exact", vhat);
      const double e = std::exp(options_.temperature * (Match(transform_, v, vhat).cosine() - 1));
      sum[width] += e;
      const double scale = options_.rescale ? static_cast<double>(length_) : 1;
      for (Index c = 0; c < d; ++c)
        out[bh * d + c] = static_cast<float>(e / sum[width] * scale) * in.v[bh * d + c];
    });
  }
  CacheBytes bytes() const override {
    return {.kv = 8.0 * static_cast<double>(state_.size()),
            .scratch = 4.0 * static_cast<double>(work_.size())};
  }

 private:
  Index work_floats() const {
    return (4 * transform_.width() + transform_.scratch_floats() + 15) / 16 * 16;
  }
  DecodeConfig config_;
  HolographicOptions options_;
  RowTransform transform_;
  Index heads_, length_ = 0;
  AlignedArray<double> state_;  // [heads, width + 1]
  AlignedArray<float> work_;    // [heads, work_floats]
};

}  // namespace

std::unique_ptr<Decoder> make_holographic_decoder(const DecodeConfig& config,
                                                  const HolographicOptions& options) {
  return std::make_unique<HolographicDecoder>(config, options);
}

}  // namespace subquad
