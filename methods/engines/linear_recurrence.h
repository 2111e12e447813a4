// Linear attention token by token: a state S [features, d_v] and z [features] per head,
//   S = decay S + phi(k) v^T,  z += phi(k),  out = phi(q)^T S / (phi(q).z + eps)
// (Katharopoulos et al. 2020, equations 16-20). The reference of the chunked form, and decoding.
#pragma once

#include <memory>
#include <vector>

#include "harness/core/method.h"
#include "methods/engines/feature_map.h"
#include "methods/engines/linear_scan.h"

namespace subquad {

// The sequential form of causal attention: one token after the other, forward and backward (two
// passes, equations 13-15). Heads in parallel. Time O(n f d_v), extra memory one state per thread.
class LinearRecurrence {
 public:
  void prepare(const Problem& problem, std::shared_ptr<FeatureMap> map,
               const LinearScanOptions& options);
  void forward(const Inputs& in, TensorView out, float* inverse_norm);
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                const float* inverse_norm, const Gradients& grads);
  static double work_bytes(const Problem& problem, const FeatureMap& map);

 private:
  struct Row;  // work space of one thread
  void grow();
  Row row(int thread);

  Problem problem_;
  std::shared_ptr<FeatureMap> map_;
  LinearScanOptions options_;
  Index features_ = 0, wide_f_ = 0, wide_v_ = 0, floats_ = 0;
  AlignedArray<float> work_;  // [threads, floats_]
};

// The map is prepared by the caller. The state has the same size at every position.
std::unique_ptr<Decoder> make_linear_decoder(const DecodeConfig& config,
                                             std::shared_ptr<FeatureMap> map,
                                             const LinearScanOptions& options);
// Bytes of that decoder: states and work space.
double linear_decoder_bytes(const Problem& problem, const FeatureMap& map);

}  // namespace subquad
