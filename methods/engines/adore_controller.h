// The controller of ADORE (arXiv 2407.02328): a GRU over token embeddings and an MLP that scores
// how important token i is for the current token n, from z_i, the distance, and in the pairwise
// form z_n.
//
//   z_i = GRU(x_i, z_{i-1}), z_{-1} = 0               (mlp: z_i = tanh(W x_i + b), without history)
//   additive: s_ni = sigmoid(w2 . relu(W1 (p_{n-i} + z_i) + b1) + b2)
//   pairwise: s_ni = sigmoid(w2 . relu(W1 (p_{n-i} + z_i) + W1' z_n + b1) + b2)
//
// As published it is additive; then nothing but the distance depends on the present, and a token of
// an old topic cannot rise when the topic returns. Pairwise is our extension. Our choices: p is a
// table over distances, exact below 16 and four entries an octave above, and constant from
// `distances` - 1 on; without token embeddings the keys of all heads side by side are the input.
#pragma once

#include <span>
#include <string>

#include "harness/core/method.h"
#include "methods/engines/rebuilding_plan.h"

namespace subquad {

struct ControllerOptions {
  bool gru = true;  // else mlp
  bool pairwise = false;
  Index d_z = 32;
  Index hidden = 16;
  Index distances = 512;
};

// Entry of the distance table for a distance, which is cut to distances - 1.
Index distance_bucket(Index distance, Index distances);

// The learned parameters.
struct AdoreController {
  // Uniform in +- 1 / sqrt(d_z).
  AdoreController(const ControllerOptions& options, Index d_e, Seed seed);

  ControllerOptions options;
  Index d_e = 0;
  Parameter w, u, b_w, b_u;  // GRU: [3 d_z, d_e], [3 d_z, d_z], [3 d_z]; mlp: [d_z, d_e], [d_z]
  Parameter distance;        // [buckets, d_z]
  Parameter w1, w1_now, b1, w2, b2;  // [hidden, d_z] twice, [hidden], [hidden], [1]
  std::vector<Parameter*> all();     // without those that the form has not
};

// Embeddings of a stream's tokens where the task has them, else keys: [d_e] of row 0.
Index controller_width(const StreamConfig& config);

// Scores by the controller. One step: the GRU, 3 d_z (d_e + d_z), and hidden multiply-adds a token.
// `all_tokens`: every step scores the whole history (laid out for score_past), else the few in the
// cache (for score_some); either does both.
std::unique_ptr<TokenScorer> make_controller_scorer(const StreamConfig& config,
                                                    std::shared_ptr<const AdoreController> net,
                                                    bool all_tokens = true);
// What it allocates, but for what neither depends on the capacity nor on the distances.
double controller_scorer_bytes(Index capacity, const ControllerOptions& options, bool all_tokens);

struct ControllerTraining {
  Index top_k = 128;  // labels: the K past tokens of largest head-mean weight
  Index updates = 2000;
  Index stride = 4;  // queries that are learned from: every stride-th
  double learning_rate = 1e-3;
  Seed seed = 0;
  std::function<void(Index step, double loss)> progress;
};

// Binary cross-entropy of "is token i among the top K of token n", by Adam with gradient norms cut
// to 1; a call of `data` is a sequence for each of its batch items.
FitReport train_controller(AdoreController& net, double scale, FitData& data,
                           const ControllerTraining& options);

}  // namespace subquad
