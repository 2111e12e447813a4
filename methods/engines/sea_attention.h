// SEA: sparse attention over the keys that a compressed, estimated attention matrix points to.
// Source: Lee et al. 2024, "SEA: Sparse Linear Attention with Estimated Attention Mask"
// (arXiv 2310.01777), details from the authors' code. One call:
//   1. kernel attention of [position value | v] (linear_scan, sea_features)
//   2. scores of K_c cells per query and two gates (sea_estimator), or another source of scores
//   3. the best cells, in four groupings (sea_select), stretched to keys (sea_cells)
//   4. exact softmax over those keys (row_attention), times the gate s_prob
//   5. out = s_mix sparse + (1 - s_mix) pooled values
// Blocks of rows go through 2 to 5 at once: extra memory O(n) for 1, O(1) per thread for the rest.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "harness/autodiff/tape.h"
#include "harness/core/stage_probe.h"
#include "methods/engines/linear_scan.h"
#include "methods/engines/sea_estimator.h"
#include "methods/engines/sea_select.h"

namespace subquad {

struct SeaOptions {
  enum class Source { learned, oracle, random, local, identity };
  enum class Group { row, query, head, batch };  // row: all heads of a query compete
  enum class Position { identity, nearest, learned, none };

  Index top_k = 32;  // keys per query and head, on average
  Index cells = 64;
  Source source = Source::learned;
  Group group = Group::row;
  Position position = Position::identity;
  bool relu = false;   // kernel features
  Index features = 0;  // 0: d ln(d) / 8
  Index channels = 4, stretch = 2;
  bool cnn = true, block_norm = false, quirks = false;
  bool mask_empty = true;  // cells without a key score -infinity
  bool absolute = false;   // cells of fixed width max_n / cells
  bool normalize_pool = false;
  bool gates = true;  // off: s_prob = s_mix = 1
  Index skip = 1;
  Index max_n = 0;  // longest sequence; 0: n
};

// What a call consists of; sea_stage_names() in this order.
enum class SeaStage { kernel, estimator, top_k, stretch, sparse, rest };
std::vector<std::string> sea_stage_names();

// What a call leaves for backward.
struct SeaSaved final : Saved {
  Tensor kernel;                          // [batch, heads, n, 2 d_v]
  std::unique_ptr<LinearScanSaved> scan;  // of the attention that made it
  AlignedArray<float> gates;              // [batch, n, heads, 2]: s_prob, s_mix
  AlignedArray<std::uint32_t> kept;       // [batch, n, heads, words]: one bit per cell
  AlignedArray<float> pool;  // [batch, heads, wide cells]: mean probability (not causal)
};

struct SeaWork;

class SeaAttention {
 public:
  // One row's keys: positions [count] and their weights before gates.
  using RowSink = std::function<void(Index h, Index t, const std::int32_t* keys, Index count,
                                     const float* weights, float s_prob, float s_mix)>;

  void prepare(const Problem& problem, const SeaOptions& options, SeaWeights* weights, Seed seed,
               bool gradients);
  std::unique_ptr<SeaSaved> make_saved() const;
  void forward(const Inputs& in, TensorView out, SeaSaved* saved);
  void backward(const Inputs& in, ConstTensorView dout, const SeaSaved& saved,
                const Gradients& grads);

  // Runs a forward of which the attention of rows [first, last) of batch item b is shown as well.
  void show(const Inputs& in, Index b, Index first, Index last, const RowSink& sink);
  // pooled(j) of the last shown call: weight of v_j in the pooled term of row t.
  double pool_weight(Index b, Index h, Index t, Index j) const;
  // The estimated attention matrix: softmax over visible keys of the stretched scores.
  void estimated_row(const Inputs& in, Index b, Index h, Index t, float* row);
  void estimated_matrix(const Inputs& in, Index b, Index h, Eigen::Ref<Matrix> to);  // [n, n]

  static SeaShape shape_of(const Problem& p, const SeaOptions& o);
  static double bytes(const Problem& p, const SeaOptions& o, bool gradients);
  static double flops(const Problem& p, const SeaOptions& o, Pass pass);
  double kept_keys() const { return kept_keys_; }        // per query and head, last call
  void set_probe(StageProbe* probe) { probe_ = probe; }  // forward marks its stages for it

  // ---- for fitting ----
  bool has_estimator() const { return options_.source == SeaOptions::Source::learned; }
  bool has_kernel() const {
    return has_estimator() || options_.source == SeaOptions::Source::identity;
  }
  const Problem& problem() const { return problem_; }
  const SeaShape& shape() const { return shape_; }
  const SeaOptions& options() const { return options_; }
  // Kernel attention of a call -> [batch, heads, n, 2 d_v].
  void kernel(const Inputs& in, TensorView out, LinearScanSaved* saved);
  // Its gradient: dout [batch, heads, n, 2 d_v] -> dq, dk, and dvalues like out. The gradient of
  // learned position values is added to theirs.
  void kernel_backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                       const LinearScanSaved& saved, TensorView dq, TensorView dk,
                       TensorView dvalues);
  // Keys of cell c in row t: [first, last).
  std::pair<Index, Index> cell_keys(Index c, Index t) const;

 private:
  struct Show {
    Index b, first, last;
    const RowSink* sink;
  };
  void start(int thread) const {
    if (probe_ != nullptr) probe_->start(thread);
  }
  void lap(int thread, SeaStage stage) const {
    if (probe_ != nullptr) probe_->lap(thread, static_cast<int>(stage));
  }
  void grow();
  SeaWork work(int thread);
  Index visible(Index t) const { return problem_.causal ? t + 1 : problem_.n; }
  Index map_length(Index t) const { return options_.absolute ? max_n_ : visible(t); }
  Index blocks() const { return (problem_.n + block_ - 1) / block_; }
  Index words() const { return (options_.cells + 31) / 32; }
  void fill_values(const Inputs& in);
  void prefix_values(const Inputs& in);
  void probabilities(const Inputs& in, Index b, Index t, const float* scores, SeaWork& w) const;
  void global_limits();
  Index collect(Index t, const std::uint32_t* bits, std::int32_t* keys) const;
  void attend_block(const Inputs& in, Index b, Index block, int thread, TensorView out,
                    SeaSaved* saved, const Show* show);
  void pool_values(const Inputs& in, const float* raw);
  void show_estimate(const Inputs& in, Index b, Index h, Index t, float* row);
  void finish_pool(const Inputs& in, TensorView out, SeaSaved* saved);
  void run(const Inputs& in, TensorView out, SeaSaved* saved, const Show* show);
  void sparse_backward(const Inputs& in, ConstTensorView dout, const SeaSaved& saved,
                       const Gradients& grads);
  void estimator_backward(const Inputs& in, const SeaSaved& saved, const Gradients& grads);

  Problem problem_;
  SeaOptions options_;
  SeaShape shape_;
  SeaWeights* weights_ = nullptr;
  Seed seed_ = 0;
  bool gradients_ = false;
  Index max_n_ = 0, block_ = 0, wide_ = 0, heads_ = 0;
  SeaEstimator estimator_;
  std::shared_ptr<FeatureMap> map_;
  LinearScan scan_;
  Tensor values_;                      // [batch, heads, n, 2 d_v]: position value and v
  Tensor kernel_;                      // likewise: kernel attention, where nothing is saved
  AlignedArray<float> position_mean_;  // [d_v]
  AlignedArray<double> prefix_;        // causal: [batch * heads, blocks, d_v]: sums before a block
  AlignedArray<float> gates_;          // [batch, n, heads, 2]
  AlignedArray<float> block_pool_;     // not causal: [batch, blocks, heads, wide cells]
  AlignedArray<float> pool_;           // [batch, heads, wide cells]
  AlignedArray<float> pooled_;         // [batch, heads, d_v]
  AlignedArray<double> pool_sums_;     // [batch, heads, d_v]
  AlignedArray<float> all_;            // groups head, batch: [n, heads, wide cells] of one item
  AlignedArray<std::int32_t> limits_, ties_;  // [heads], [heads, n]
  AlignedArray<Index> block_kept_;            // [batch, blocks]
  AlignedArray<float> floats_;                // [threads, work]
  AlignedArray<std::int32_t> ints_;           // [threads, n]
  bool attending_ = true;                     // groups head, batch: the second time over the rows
  double kept_keys_ = 0;
  StageProbe* probe_ = nullptr;

  // Backward.
  Index groups_ = 1;                           // of rows, each with sums of its own
  AlignedArray<float> dk_groups_, dv_groups_;  // [groups - 1, batch * heads, n, d]
  Tensor dkernel_, dvalues_, dq_, dk_;
  AlignedArray<float> dgates_;    // [batch, heads, rows, 2]
  AlignedArray<float> dpool_;     // [batch, heads, cells]
  AlignedArray<double> dpooled_;  // [batch * heads, groups, d_v]: sums over the rows of a group
  AlignedArray<float> picked_kernel_, picked_v_;  // every skip-th row, where skip > 1
  AlignedArray<std::uint8_t> filled_;             // [cells]: has keys (not causal)
  AlignedArray<float> row_counts_;                // [rows]: queries of an estimated row
  autodiff::Tape<float> tape_;
};

std::unique_ptr<Decoder> make_sea_decoder(const DecodeConfig& config, const SeaOptions& options,
                                          std::unique_ptr<SeaWeights> weights, Seed seed);

}  // namespace subquad
