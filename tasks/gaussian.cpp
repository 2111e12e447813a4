// Independent Gaussian q, k, v. First version: to be extended.
#include "harness/core/registry.h"

namespace subquad {
namespace {

class Gaussian final : public Task {
 public:
  void fill(const Problem&, Seed seed, Index set, QKV* out) const override {
    const auto number = static_cast<std::uint64_t>(set);
    fill_normal(derive(seed, "gaussian.q", {number}), out->q.data(), out->q.size());
    fill_normal(derive(seed, "gaussian.k", {number}), out->k.data(), out->k.size());
    fill_normal(derive(seed, "gaussian.v", {number}), out->v.data(), out->v.size());
  }
};

const RegisterTask<Gaussian> kRegistration{{
    .name = "gaussian",
    .source = "",
    .summary = "independent standard normal q, k, v",
}};

}  // namespace
}  // namespace subquad
