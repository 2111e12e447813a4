// Attention of clustered queries as a method: everything of `clustered` and `improved_clustered`.
// Source: Vyas et al. 2020 (arXiv 2007.04825), with the rules of its authors' code. Clusters c of
// queries (query_clusters.h) attend with the mean q_c of their members:
//   A_cj = softmax_j(scale q_c . k_j),   out_i = sum_j A_cj v_j  for every member i
// With top_k, T_c being the top_k keys of largest q_c . k_j (ties: lowest index),
//   m_c = sum_{j in T_c} A_cj,   P_ij = softmax_{j in T_c}(scale q_i . k_j)
//   out_i = sum_{j not in T_c} A_cj v_j + m_c sum_{j in T_c} P_ij v_j
// and causal out_i = sum_{j in T_c, j <= i} P_ij v_j, P over these keys; zero when there are none.
// Gradients take groups and T_c as constants.
#pragma once

#include <vector>

#include "harness/core/method.h"
#include "methods/engines/gathered_attention.h"
#include "methods/engines/query_clusters.h"
#include "methods/engines/tiled_attention.h"

namespace subquad {

// What a call leaves for backward.
struct ClusteredCall final : Saved {
  QueryGroups groups;
  AlignedArray<float> centroid;      // [heads, clusters, d_k] q_c
  AlignedArray<float> centroid_out;  // [heads, clusters, d_v] sum_j A_cj v_j; see `bottom`
  AlignedArray<float> centroid_lse;  // [heads, clusters]
  // With top_k:
  AlignedArray<std::int32_t> top;    // [heads, clusters, top_k] T_c, ascending
  AlignedArray<std::int32_t> count;  // [heads, clusters] keys of T_c
  AlignedArray<float> mass;          // [heads, clusters] m_c
  AlignedArray<float> bottom;        // [heads, clusters, d_v] sum over j not in T_c
  AlignedArray<float> lse;           // [heads, n] of P
};

class ClusteredMethod : public Method {
 public:
  // top_k = 0: no correction.
  ClusteredMethod(const ClusterOptions& options, Index top_k)
      : options_(options), most_keys_(top_k) {}

  void prepare(const Problem& problem, const Env& env) override;
  std::unique_ptr<Saved> make_saved() const override;
  // Time O(n bits (d_k + iterations) + n clusters iterations + clusters n_kv (d_k + d_v)
  // + n top_k (d_k + d_v)), extra memory O(n + clusters n_kv) at most, the latter with top_k.
  void forward(const Inputs& in, TensorView out, Saved* saved) override;
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout, const Saved& saved,
                const Gradients& grads) override;
  bool attention_rows(const Inputs& in, Index b, Index h, std::span<const Index> rows,
                      Eigen::Ref<Matrix> weights) override;
  double extra_bytes(const Problem& p, Pass pass) const override;
  double flops(const Problem& p, Pass pass) const override;

 private:
  struct Candidate {
    float score;
    std::int32_t key;
  };
  struct Sizes;

  Index heads() const { return problem_.batch * problem_.heads; }
  Index clusters() const { return QueryClusters::clusters(problem_, options_); }
  Index top_k(const Problem& p) const { return std::min(most_keys_, p.n_kv); }
  // Whether centroids attend to all keys: they only choose some in the causal form.
  bool whole(const Problem& p) const { return !p.causal; }
  ClusteredCall make_call() const;
  void grow_scratch();
  float* scratch(int thread) { return scratch_.data() + thread * scratch_floats_; }
  GatheredHead head(const Inputs& in, Index bh) const;
  Inputs centroid_inputs(const Inputs& in, const ClusteredCall& call) const;

  void find_centroids(const Inputs& in, ClusteredCall& call);
  void choose_keys(const Inputs& in, ClusteredCall& call);
  void split_output(const Inputs& in, ClusteredCall& call, Index bh, Index c, int thread);
  void attend_members(const Inputs& in, ClusteredCall& call, Index bh, Index c, int thread,
                      TensorView out);
  void differentiate_members(const Inputs& in, const ClusteredCall& call, Index bh, Index c,
                             int thread, ConstTensorView dout, const Gradients& grads);
  void add_key_gradients(const ClusteredCall& call, Index bh, Index first, Index last,
                         const Gradients& grads) const;

  ClusterOptions options_;
  Index most_keys_;
  Problem problem_;
  bool gradients_ = false;
  QueryClusters clusters_;
  TiledAttention attention_;  // of the centroids
  ClusteredCall call_;        // of calls that save nothing
  Index scratch_floats_ = 0;
  AlignedArray<float> scratch_;               // [threads, scratch_floats_]
  std::vector<std::vector<Candidate>> best_;  // [threads][2 top_k]
  // Backward:
  AlignedArray<float> dcentroid_out_;  // [heads, clusters, d_v]
  AlignedArray<float> dcentroid_;      // [heads, clusters, d_k]
  AlignedArray<float> delta_;          // [heads, clusters]
  AlignedArray<float> dtop_;           // [heads, clusters, top_k, d_k + d_v] of the keys of T_c
};

}  // namespace subquad
