// ZETA (Zeng et al. 2025, arXiv 2501.14577): every query attends to the keys nearest to it in a
// space of few dimensions, which it finds next to its own place in Z-order, and to one averaged
// token. The same engine without the search, or without the choice, is its exact reference.
//
//   candidates  z_order  a window around the query in the sorted keys of earlier chunks
//               pool     all keys of earlier chunks: what z_order would find with a perfect curve
//               past     all keys up to the query: the same without the chunk rule
//               none     no choice: every key up to the query is attended to
//   attended    the top_k nearest candidates; with `local` the keys of the query's own chunk up to
//               itself; with `history` one key and value that are the means of all tokens so far
//   out_i       sum_j w_ij v_j, w_ij = u(q_i, k_j) / sum u  (zeta_kernel.h)
//
// Keys are sorted once; the sorted prefix of a chunk is what is left of them without later tokens.
// Queries of a chunk go through it in the order of their codes, so the keys and values of one are
// still in cache for the next.
#pragma once

#include <vector>

#include "harness/core/method.h"
#include "methods/engines/integer_sort.h"
#include "methods/engines/zeta_kernel.h"
#include "methods/engines/zeta_points.h"

namespace subquad {

struct ZetaOptions {
  enum class Candidates { z_order, pool, past, none };

  Candidates candidates = Candidates::z_order;
  ZetaPointOptions points;
  Index top_k = 32;
  Index window_factor = 2;  // candidates per chosen key
  Index chunk = 0;          // tokens; 0: the larger of top_k and n_kv / chunks
  Index chunks = 16;
  bool history = true;
  bool local = false;
  Similarity similarity = Similarity::cauchy;
  double gamma = 0.5;  // initial
  bool gamma_per_head = false;

  Index chunk_size(Index n_kv) const;
  // Most entries of a query's list of chosen keys, and of the keys that it meets without choice.
  Index list_size(Index n_kv) const;
  Index range_size(Index n_kv, bool causal) const;
  Index window(Index n_kv) const;  // most candidates of a query
};

// Width of the kernel from the trained parameter: gamma = sigmoid(theta), gamma^2 >= 1e-6.
float zeta_width(float theta);

// What forward leaves for backward, in the order in which queries were processed.
struct ZetaSaved final : Saved {
  ZetaSaved(Index rows, Index list) : query(rows), count(rows), keys(rows * list) {}
  AlignedArray<std::int32_t> query;  // [batch * heads, n] within the head
  AlignedArray<std::int32_t> count;  // [batch * heads, n]
  AlignedArray<std::int32_t> keys;   // [batch * heads, n, list]
};

namespace zeta_detail {

// Candidates of a query: entries [first, first + count) of points and positions.
struct Candidates {
  engine::Points points;
  const std::uint64_t* code = nullptr;
  const std::int32_t* position = nullptr;
  Index first = 0, count = 0;
};

// Work space of one thread: the sorted keys of a prefix, and what one query attends to.
struct Work {
  AlignedArray<engine::CodeAt> sort;    // two of the longer of n and n_kv
  AlignedArray<std::uint64_t> code;     // [n_kv]
  AlignedArray<std::int32_t> position;  // [n_kv]
  AlignedArray<std::int32_t> kept;      // [n_kv]
  AlignedArray<float> coordinate;       // [d_key, n_kv + kLanes]
  AlignedArray<float> distance;         // [window]
  AlignedArray<std::int32_t> chosen;    // [window + 1]
  AlignedArray<std::int32_t> index;     // [2 attended] positions; forward has two in hand
  AlignedArray<float> x;                // [2 attended] argument of the kernel
  AlignedArray<float> weight, slope;    // [attended] weight, gradient of x
  AlignedArray<float> value_dot;        // [attended]
  AlignedArray<double> running;         // [d_v + width] sums of history
  Index filtered = 0;                   // keys in code, position and coordinate
  float hint = 0;                       // of choose_nearest
};

// q_i against rows [*, width] of points: distances or products, by kind of kernel.
void kernel_arguments(const ZetaKernel& kernel, const float* q, Index width, const float* rows,
                      const std::int32_t* index, Index count, float* x);
// The top_k nearest candidates go to index, their distances to x; returns how many.
Index choose(const ZetaOptions& o, const float* q, const Candidates& candidates, Work& work,
             std::int32_t* index, float* x);
// The window around the place of `code` in sorted candidates; *place carries on from smaller codes.
Candidates window_at(const ZetaOptions& o, const Candidates& sorted, std::uint64_t code,
                     Index* place);

}  // namespace zeta_detail

class ZetaAttention {
 public:
  void prepare(const Problem& problem, const ZetaOptions& options, const Env& env);
  Index saved_list() const { return options_.list_size(problem_.n_kv); }

  // theta [1 or heads]. Time O(n log n + n (window d_key + top_k d_v) + chunks n_kv) and extra
  // memory O(n (d_key + 1)) for z_order; the references O(n n_kv (d_key + ...)).
  void forward(const Inputs& in, const float* theta, TensorView out, ZetaSaved* saved);
  // Chosen keys count as constant. dtheta is added to.
  void backward(const Inputs& in, const float* theta, ConstTensorView out, ConstTensorView dout,
                const ZetaSaved& saved, const Gradients& grads, float* dtheta);
  void rows(const Inputs& in, const float* theta, Index bh, std::span<const Index> rows,
            Eigen::Ref<Matrix> weights);

  // Of the last forward, on a sample of queries: which share of the top_k nearest keys of the pool,
  // and of all keys that the query may see, was chosen.
  struct Recall {
    double pool = 1, past = 1;
  };
  Recall recall() const;

  static double work_bytes(const Problem& p, const ZetaOptions& o, bool gradients);
  static double flops(const Problem& p, const ZetaOptions& o, Pass pass);

 private:
  // What all passes share, of every head bh.
  struct Heads {
    AlignedArray<float> q, k;             // [bh, n | n_kv, width] points
    AlignedArray<std::uint64_t> q_code;   // [bh, n] as queries are processed
    AlignedArray<std::int32_t> q_order;   // [bh, n] queries, by code within their chunk
    AlignedArray<std::uint64_t> code;     // [bh, n_kv] of real keys, sorted
    AlignedArray<std::int32_t> position;  // [bh, n_kv] real keys, sorted or in their order
    AlignedArray<float> coordinate;       // [bh, d_key, n_kv + kLanes] of those
    AlignedArray<Index> real;             // [bh] how many they are
    // The averaged token: sums and numbers of real tokens before every block, and its key.
    AlignedArray<double> sums;       // [bh, blocks + 1, d_v + width]
    AlignedArray<Index> counts;      // [bh, blocks + 1]
    AlignedArray<float> mean_k;      // [bh, n, width]
    AlignedArray<float> mean_count;  // [bh, n] tokens in it
    // Gradients.
    AlignedArray<float> dq, dk;         // [bh, n | n_kv, width]
    AlignedArray<float> weight, slope;  // [bh, n, list] as queries are processed
    AlignedArray<float> mean_weight, mean_slope, mean_dot;  // [bh, n]
    AlignedArray<double> dwidth;                            // [bh, row blocks]
  };
  template <class Make>
  static void layout(Heads& h, const ZetaOptions& o, const Problem& p, bool gradients, Make&& make);
  template <class Make>
  static void layout(zeta_detail::Work& w, const ZetaOptions& o, const Problem& p, bool gradients,
                     Make&& make);

  // One query of a backward pass; its keys, weights and gradients lie in the work space.
  struct Differentiated {
    Index query = 0, count = 0;
    double dwidth = 0;
  };
  void grow_work();
  Index blocks() const;
  ZetaKernel kernel(const float* theta, Index bh) const;
  void map_points(const Inputs& in, bool codes);
  void sort_keys(const Inputs& in, Index bh, zeta_detail::Work& work);
  void sort_queries(Index bh, Index chunk, zeta_detail::Work& work);
  void sort_heads(const Inputs& in);
  void sum_history(const Inputs& in);
  // Means at the tokens of a block: keys to mean_k, values to mean_v [n, d_v] or, in a backward
  // pass, their products with dout to mean_dot.
  void average(const Inputs& in, Index bh, Index block, float* mean_v, const float* dout,
               zeta_detail::Work& work);
  void prepare_call(const Inputs& in, TensorView mean_v, ConstTensorView dout);
  zeta_detail::Candidates prefix(Index bh, Index limit, bool fresh, zeta_detail::Work& work) const;
  zeta_detail::Candidates candidates_of(Index i, std::uint64_t code,
                                        const zeta_detail::Candidates& base, Index* place) const;
  Index choose_for(const Inputs& in, Index bh, Index i, zeta_detail::Work& work);
  void attend_rows(const Inputs& in, Index bh, Index first, Index last, const float* theta,
                   TensorView out, ZetaSaved* saved, zeta_detail::Work& work);
  // The keys that need no choice go behind the `list` chosen ones; returns how many there are now.
  Index add_range(const Inputs& in, Index bh, Index i, Index list, std::int32_t* index) const;
  // A query that is ready for its values.
  struct Query {
    Index row = 0, i = 0, chosen = 0, count = 0;
    bool mean = false;
    std::int32_t* index = nullptr;
    float* x = nullptr;
  };
  Query select(const Inputs& in, Index bh, Index row, const zeta_detail::Candidates& base,
               const ZetaKernel& kernel, Index* place, int turn, zeta_detail::Work& work) const;
  void gather(const Inputs& in, Index bh, const Query& query, const ZetaKernel& kernel,
              TensorView out, ZetaSaved* saved, zeta_detail::Work& work) const;
  Differentiated differentiate(const Inputs& in, Index bh, Index row, const ZetaKernel& kernel,
                               ConstTensorView dout, const ZetaSaved& saved,
                               zeta_detail::Work& work);
  void scatter_values(Index bh, Index c0, Index c1, ConstTensorView dout, const ZetaSaved& saved,
                      float* dv) const;
  void scatter_keys(Index bh, const ZetaKernel& kernel, const ZetaSaved& saved);
  void scatter_all(const Inputs& in, Index bh, const ZetaKernel& kernel, ConstTensorView dout,
                   const ZetaSaved& saved, float* dv, zeta_detail::Work& work);
  void spread_values(const Inputs& in, Index bh, Index c0, Index c1, ConstTensorView dout,
                     float* dv) const;
  void spread_keys(const Inputs& in, Index bh, const ZetaKernel& kernel);
  void add_key_gradient(const ZetaKernel& kernel, const float* q, const float* k, float slope,
                        float* dk) const;

  Problem problem_;
  ZetaOptions options_;
  bool gradients_ = false;
  bool values_ahead_ = false;  // the values of a head do not stay in the nearest caches
  ZetaPoints points_;
  Heads heads_;
  std::vector<zeta_detail::Work> work_;  // per thread
};

// Decoding: sorted keys of whole chunks, merged with a chunk's own when it is complete.
std::unique_ptr<Decoder> make_zeta_decoder(const DecodeConfig& config, const ZetaOptions& options,
                                           std::vector<float> theta);
double zeta_decoder_bytes(const Problem& p, const ZetaOptions& o);

}  // namespace subquad
