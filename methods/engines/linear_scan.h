// Linear attention of any feature map, as matrix products over chunks of tokens:
//
//   out_i = sum_j w_ij phi(q_i).phi(k_j) v_j / (sum_j phi(q_i).phi(k_j) + eps)
//
// over all keys, or over j <= i + n_kv - n when causal; w_ij = decay^(i - j) with a decay, and then
// without the division. O(n) time and memory, the same bits for any thread count, strictly causal
// bit for bit.
//
// Source: Katharopoulos et al. 2020 (arXiv 2006.16236), equations 8-20; the chunked form is that of
// Lightning Attention-2 (arXiv 2401.04658) and flash-linear-attention. Causal backward goes from
// the last segment of tokens to the first: through each one forward in time for dq, from the state
// that forward has left, and at once back for dk and dv, while all of it is near; the denominator
// takes part as one more column of the values, of ones. README.md says what bounds the speed.
#pragma once

#include <memory>
#include <vector>

#include "harness/core/method.h"
#include "methods/engines/feature_map.h"
#include "methods/engines/scan_schedule.h"
#include "methods/engines/scan_totals.h"

namespace subquad {

namespace engine {

// Powers of the decay of one head, or none.
struct Decay {
  const float* up = nullptr;    // up[e] = decay^e; kLanes zeros in front
  const float* down = nullptr;  // down[a] = decay^(chunk - a), a <= chunk; zeros behind

  explicit operator bool() const { return up != nullptr; }
  static Index floats(Index rows) { return (2 * rows + 3 * kLanes) / kLanes * kLanes; }
};

}  // namespace engine

struct LinearScanOptions {
  bool normalize = true;
  double eps = 1e-6;          // added to the normaliser
  Index chunk = 0;            // tokens of a chunk, a multiple of 16; 0: chosen
  std::vector<double> decay;  // per head, in [0, 1]; empty: none. Needs normalize = false
};

// What backward needs of a forward call.
struct LinearScanSaved final : Saved {
  // [batch * heads * n]: one over the normaliser of each row, 0 for a row without one.
  AlignedArray<float> inverse_norm;
  // [batch * heads, segments, state]: the state before each; not causal: that of all keys.
  AlignedArray<float> states;
};

class LinearScan {
 public:
  // Makes the work space. The map is prepared by the caller.
  void prepare(const Problem& problem, std::shared_ptr<FeatureMap> map,
               const LinearScanOptions& options, bool gradients);

  // For a problem prepared for gradients.
  std::unique_ptr<LinearScanSaved> make_saved() const;
  // out [batch, heads, n, d_v]. `saved` is null, or an object of make_saved() to be filled.
  void forward(const Inputs& in, TensorView out, LinearScanSaved* saved);
  // Overwrites grads.dq, dk, dv; out is that of the forward call that filled `saved`.
  void backward(const Inputs& in, ConstTensorView out, ConstTensorView dout,
                const LinearScanSaved& saved, const Gradients& grads);

  // Bytes that prepare() allocates with the present thread count (without the map's own).
  static double work_bytes(const Problem& problem, const FeatureMap& map,
                           const LinearScanOptions& options, bool gradients);
  // Bytes of make_saved().
  static double saved_bytes(const Problem& problem, const FeatureMap& map,
                            const LinearScanOptions& options);
  // Nominal operations, those of the recurrent form: one update of a state per key, one product
  // with it per query; backward has five such products where forward has two, the state of the keys
  // formed again among them, whether it is or not.
  static double flops(const Problem& problem, Index features, bool normalize, Pass pass);

 private:
  struct Sizes {
    Index features, wide_f, wide_v;  // width of phi; rounded up to whole vectors; d_v rounded up
    Index plus, wide_plus;           // d_v and, with a normaliser, one more column; rounded up
    Index chunk, group, sum_chunk;   // tokens of a chunk, chunks of a group, tokens of a group
    Index state, state_plus;         // floats of [features, wide_v] and z, of [wide_plus, wide_f]
    Index segments;                  // saved states of a head
    Index near;                      // groups that backward keeps near
    Index work;                      // floats of one thread
  };
  // One thread's work space. Rows are those of a group; in a causal backward of the groups of a
  // segment, group g at g % near.
  struct Work {
    float* q;        // [rows, wide_f]: phi(q)
    float* qt;       // [wide_f, group]
    float* k;        // [rows, wide_f]: phi(k), masked and missing rows zero
    float* v;        // [group, wide_v]: values, likewise, where they are not taken as they lie
    float* g;        // [rows, wide_plus]: dout over the normaliser, and the denominator's gradient
    float* gt;       // [wide_plus, chunk]
    float* kt;       // [wide_f, group]
    float* scaled;   // [group, max(wide_f, wide_plus)]: rows times their decay
    float* scores;   // [chunk, chunk]
    float* dscores;  // [rows, chunk]: transposed, of every chunk
    float* turned;   // [wide_v, group]
    float* tile;     // [group, max(wide_f, wide_v)]
    float* norm;     // [group]
    float* scratch;  // of the feature map

    // Lays the arrays out from `base`; returns the floats needed.
    static Index layout(const Sizes& s, Index map_scratch, bool gradients, bool decay, float* base,
                        Work* work);
  };
  // The scans. Each also serves as a sum over a range of tokens.
  struct Outputs;        // state sum k v^T: forward
  struct QueryGradient;  // state sum v+ k^T: dq
  struct KeyGradient;    // state sum dout+ q^T, backward in time: dk and dv

  static Sizes sizes_of(const Problem& problem, const FeatureMap& map,
                        const LinearScanOptions& options, bool gradients);
  const Work& work(int thread) const { return works_[static_cast<std::size_t>(thread)]; }
  void grow();
  // A state of forward as that of dq: z becomes one more row, [plus, wide_f].
  void turn_state(const float* state, float* to) const;
  Index head_count() const { return problem_.batch * problem_.heads; }
  // Keys that every query sees: those before the first causal query, or all.
  static Index shared_keys(const Problem& p) { return p.causal ? p.causal_offset() : p.n_kv; }
  engine::Decay decay_of(Index bh) const;
  // Puts the sum over the shared keys (none: zero) in front of a scan.
  void start(engine::ScanSchedule& scan, const engine::ScanTotals& sum, Index shared) const {
    scan.clear_totals();
    for (Index bh = 0; bh < head_count() && shared > 0; ++bh) scan.set_total(bh, sum.total(bh));
  }
  // Calls emit for all chunks of `tokens` tokens of every head; state(head) is its state.
  template <class Scan, class State>
  void emit_all(Scan& scan, Index chunk, Index tokens, State&& state) {
    const Index chunks = (tokens + chunk - 1) / chunk;
    // Chunks of an item: a state is read from L1 after the first.
    const Index together = std::max<Index>(1, 128 / chunk);
    const Index blocks = (chunks + together - 1) / together;
    parallel_for(head_count() * blocks, [&](Index item, int thread) {
      const Index bh = item / blocks, first = item % blocks * together;
      for (Index c = first; c < std::min(first + together, chunks); ++c) {
        engine::Ahead soon;
        scan.emit(bh, c, state(bh), thread, &soon);
      }
    });
  }

  Problem problem_;
  std::shared_ptr<FeatureMap> map_;
  LinearScanOptions options_;
  bool gradients_ = false;
  Sizes sizes_{};
  engine::ScanSchedule scan_, dk_scan_;
  engine::ScanTotals sum_, dk_sum_;
  AlignedArray<float> turned_;  // not causal: [heads, state_plus], the states of dq
  AlignedArray<float> powers_;  // [heads, Decay::floats]
  AlignedArray<float> work_;    // [threads, sizes_.work]
  std::vector<Work> works_;     // [threads]: where their arrays lie
};

// Rows `rows` of the matrix w_ij phi(q_i).phi(k_j), divided by its row sum + eps where normalised,
// summed in double -> weights [rows, n_kv]. For Method::attention_rows: clear rather than fast.
void linear_attention_rows(const Inputs& in, const Problem& problem, FeatureMap& map,
                           const LinearScanOptions& options, Index b, Index h,
                           std::span<const Index> rows, Eigen::Ref<Matrix> weights);

}  // namespace subquad
