// A cache of the last m tokens whose rows stay in the order of the tokens: how the oldest one is
// dropped. Same tokens and outputs as `window`, which writes the newest over it.
// Source: ADORE, Zhang et al. 2024 (arXiv 2407.02328), "matrix slicing": keys and values are
// multiplied by a prepared 0/1 matrix, the identity without one row, instead of deleting by index.
// A trick for GPUs; here for comparison (ablation A6).

#include "methods/engines/cache_policy.h"

namespace subquad {
namespace {

struct Params {
  Index m = 128;
  std::string release = "slice";
};

class SlicedWindow final : public PolicyStream {
 public:
  SlicedWindow(const StreamConfig& config, const Params& params)
      : PolicyStream(config),
        m_(params.m),
        cache_(1, slots(config, params.m), config.d_k, config.d_v) {
    if (params.release != "slice" || cache_.slots() <= m_) return;
    slicing_ = Matrix::Zero(m_, m_ + 1);
    for (Index i = 0; i < m_; ++i) slicing_(i, i + 1) = 1;
    sliced_ = Matrix(m_, std::max(config.d_k, config.d_v));
  }

  void reset() override {
    PolicyStream::reset();
    count_ = 0;
  }

  void step(const StreamTokens& token, float* out, Index) override {
    check_room(1);
    if (count_ > m_) release();
    cache_.write(0, count_++, token.k, token.v);
    ++length_;
    cache_.attend(0, token.q, config_.scale, count_, out);
  }

  CacheBytes bytes() const override {
    const Index kept = std::min(count_, m_);
    return {.kv = CacheSlots::kv_bytes(1, kept, config_.d_k, config_.d_v),
            .scratch = CacheSlots::kv_bytes(1, 1, config_.d_k, config_.d_v) +
                       CacheSlots::work_bytes(1, cache_.slots(), config_.d_k, config_.d_v) +
                       4.0 * static_cast<double>(slicing_.size() + sliced_.size())};
  }
  std::vector<VisibleKey> visible(Index) const override {
    std::vector<VisibleKey> keys;
    for (Index s = 0; s < count_; ++s) keys.push_back({length_ - count_ + s, cache_.weights(0)[s]});
    return keys;
  }

  static double allocated(const StreamConfig& c, const Params& params) {
    const Index count = slots(c, params.m);
    double floats = static_cast<double>(c.d_v);
    if (params.release == "slice" && count > params.m)
      floats += static_cast<double>(params.m * (params.m + 1 + std::max(c.d_k, c.d_v)));
    return CacheSlots::kv_bytes(1, count, c.d_k, c.d_v) +
           CacheSlots::work_bytes(1, count, c.d_k, c.d_v) + 4 * floats;
  }

 private:
  static Index slots(const StreamConfig& c, Index m) { return std::min(m + 1, c.capacity); }

  // Drops row 0 of m + 1. Moving O(m d), slicing O(m^2 d).
  void release() {
    const auto drop = [&](float* rows, Index d) {
      if (slicing_.size() == 0) {
        std::copy(rows + d, rows + (m_ + 1) * d, rows);
        return;
      }
      MatrixMap all(rows, m_ + 1, d);
      sliced_.leftCols(d).noalias() = slicing_ * all;
      all.topRows(m_) = sliced_.leftCols(d);
    };
    drop(cache_.key(0, 0), config_.d_k);
    drop(cache_.value(0, 0), config_.d_v);
    count_ = m_;
  }

  Index m_;
  CacheSlots cache_;
  Matrix slicing_, sliced_;  // [m, m + 1]; [m, d]
  Index count_ = 0;          // slots in use in a step: at most m + 1
};

const RegisterMethod<BudgetPolicy<SlicedWindow, Params>, Params> kRegistration{
    policy_info("sliced_window", "ADORE, arXiv 2407.02328, matrix slicing",
                "cache of the last m tokens that drops the oldest row, its order kept"),
    {param("m", &Params::m, {1, 1 << 14}, "tokens kept between steps"),
     choice("release", &Params::release, {"slice", "move"},
            "the oldest row goes by a product with a 0/1 matrix, or the later ones move up")}};

}  // namespace
}  // namespace subquad
