// Feature maps of linear attention: phi(x) row by row, and the pull-back of a gradient through it.
// A map knows nothing of scans; a scan knows nothing of what a map does.
#pragma once

#include <memory>
#include <string>

#include "harness/core/method.h"

namespace subquad {

class FeatureMap {
 public:
  enum class Side { query, key };

  virtual ~FeatureMap() = default;

  // Width of phi for rows of width d.
  virtual Index features(Index d) const = 0;
  // Draws, and buffers for begin(): rows of width d, `heads` (with the batch) times `n_kv` keys.
  virtual void prepare(Index /*d*/, Seed, Index /*heads*/, Index /*n_kv*/) {}
  // Bytes that prepare allocates with the present thread count.
  virtual double bytes(Index /*d*/, Index /*heads*/, Index /*n_kv*/) const { return 0; }
  // Looks at the inputs of a call before any row is mapped (constants that need a maximum over all
  // keys).
  virtual void begin(const Problem&, const Inputs&) {}
  // Floats of work space that apply and pull_back need for `rows` rows.
  virtual Index scratch_floats(Index /*d*/, Index /*rows*/) const { return 0; }

  // x [rows, d] -> phi [rows, wide], zero beyond features(d); wide is a multiple of kLanes. bh is
  // batch * heads + head.
  virtual void apply(Side side, Index bh, const float* x, Index rows, Index d, float* phi,
                     Index wide, float* scratch) const = 0;
  // dphi [rows, wide] -> dx [rows, d], overwritten. phi is what apply gave, or null.
  virtual void pull_back(Side side, Index bh, const float* x, const float* phi, const float* dphi,
                         Index rows, Index d, Index wide, float* dx, float* scratch) const = 0;
};

// "identity", "elu1" (elu(x) + 1), "relu" (max(x, 0) + shift), "exp".
std::unique_ptr<FeatureMap> make_elementwise_map(const std::string& name, double shift = 0);

}  // namespace subquad
