#include "methods/engines/conv_mean.h"

#include "methods/engines/conv_cost.h"

namespace subquad {

PartitionedConv<double>::Sizes MeanProfiles::sizes(Index n, Index d_k, Index max_segments,
                                                   bool causal) {
  const Index block =
      choose_conv_plan({n, d_k, d_k, max_segments, causal, false}, "partitioned").block;
  return {n, d_k, max_segments, causal, block, true};
}

void MeanProfiles::prepare(Index n, Index d_k, Index max_segments, bool causal, Planner planner) {
  n_ = n, d_k_ = d_k;
  correlator_.prepare(sizes(n, d_k, max_segments, causal), planner);
  sums_ = ConvKernels<double>(n, max_segments, causal);
  q_ = AlignedArray<double>(n * d_k);
  k_ = AlignedArray<double>(n * d_k);
}

double MeanProfiles::bytes(Index n, Index d_k, Index max_segments, bool causal) {
  return PartitionedConv<double>::bytes(sizes(n, d_k, max_segments, causal)) +
         ConvKernels<double>::bytes(n, max_segments, causal) + 16.0 * static_cast<double>(n * d_k);
}

template <class T>
void MeanProfiles::fill(const float* q, const float* k, double scale, ConvKernels<T>* to) {
  for (Index e = 0; e < n_ * d_k_; ++e) {
    q_[e] = scale * static_cast<double>(q[e]);
    k_[e] = static_cast<double>(k[e]);
  }
  sums_.set_starts(to->starts());
  correlator_.set_kernels(sums_);  // for its pieces; what the kernels hold does not matter
  correlator_.correlate(q_.data(), k_.data(), d_k_, &sums_);
  for (Index i = 0; i < to->count(); ++i)
    for (Index lag = to->lowest(i); lag <= to->highest(i); ++lag) {
      const Index pairs = std::min(n_, to->end(i) + lag) - std::max<Index>(0, to->start(i) + lag);
      to->profile(i)[lag] = static_cast<T>(sums_.profile(i)[lag] / static_cast<double>(pairs));
    }
}

template void MeanProfiles::fill(const float*, const float*, double, ConvKernels<float>*);
template void MeanProfiles::fill(const float*, const float*, double, ConvKernels<double>*);

}  // namespace subquad
