// Training a Transformer on a labelled task.
//
// A batch is cut into shards, whatever the number of threads; threads take shards, every shard has
// a gradient buffer of its own, and the buffers are added in order. So the same seed gives the same
// weights to the bit for any number of threads, and a shard's activations stay in the cache.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "harness/core/task.h"
#include "harness/model/method_attention.h"
#include "harness/model/optimizer.h"

namespace subquad {

struct TrainSetup {
  TrainOptions options;
  std::vector<LayerMethod> methods;  // one for every layer
  const Task* task = nullptr;
  Problem problem;  // batch, heads, n, d_k, d_v, causal, scale
  Seed seed = 0;
  std::string identity;  // a checkpoint is only taken up by a run with the same text
  // What a checkpoint says of its model, so that it can be made again (trained_model.h).
  std::string task_name;   // registered; "" = the checkpoint says nothing
  Settings task_settings;  // resolved
  Settings train;          // `options`, resolved
};

struct Scores {
  double loss = 0;      // mean cross-entropy over the labels, nats
  double accuracy = 0;  // share of the labels with the largest logit (the first, if several are)
  Index labels = 0;
};

class TrainedModel;

// The model and its optimizer: everything but the loop.
class TrainState {
 public:
  explicit TrainState(const TrainSetup& setup);
  ~TrainState();

  // One optimizer step on a batch; `step` is 1-based. Returns the loss before it. From the second
  // step on allocates nothing.
  double step(Index step, const TokenBatch& batch);
  // Gradients of a batch without a step; the loss.
  double gradients(Index step, const TokenBatch& batch, bool training);
  Scores evaluate(const TokenBatch& batch);

  const ParameterLayout& layout() const;
  float* weights() { return weights_.data(); }
  const float* gradient() const { return grads_.data(); }  // [layout().size()], of the last batch
  Optimizer& optimizer() { return *optimizer_; }
  double last_norm() const { return norm_; }  // of the gradient, before clipping
  double activation_bytes() const;            // of all threads
  const TrainedModel* teacher() const { return teacher_.get(); }  // or null

 private:
  struct Lane;
  double run(Index step, const TokenBatch& batch, bool gradients, bool training, Scores* scores);
  Lane& lane(int thread);
  void reduce();

  TrainSetup setup_;
  Index shards_ = 1, shard_batch_ = 1;
  Problem shard_problem_;
  bool key_padding_ = false;
  std::unique_ptr<Transformer<float>> model_;
  std::unique_ptr<TrainedModel> teacher_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Scores> parts_;            // of the shards; loss is a sum
  AlignedArray<float> weights_, grads_;  // grads: of the shards one after another; the sum is first
  std::unique_ptr<Optimizer> optimizer_;
  double norm_ = 0;
};

struct CurvePoint {
  Index step = 0;
  double train_loss = 0;  // mean since the last point
  Scores validation;
  double learning_rate = 0;
  double seconds = 0;  // of training so far, evaluation left out
};

struct TrainProgress {
  Index step, steps;
  double loss;          // of this step
  double seconds_left;  // estimated
  std::optional<CurvePoint> point;
};

struct TrainReport {
  Index steps = 0;                // done
  Index best_step = 0;            // of the lowest validation loss
  std::string stopped = "steps";  // why: steps, accuracy, patience, diverged
  Index half_step = 0;            // first validation with an accuracy above 0.5; 0 = never
  Scores validation, test;        // at the end
  double best_accuracy = 0;       // of the validations
  double train_s = 0;             // of the steps alone
  FitReport fit;                  // of the methods to the teacher, before the first step
  double fit_s = 0;
  bool methods_initial = false;  // the checkpoint of the initial weights has none for the methods
  double tokens_per_s = 0;
  Index parameters = 0;
  std::vector<CurvePoint> curve;
};

struct TrainFiles {
  std::string directory;  // checkpoint.safetensors and curves.csv; "" = none
  bool resume = false;    // from the checkpoint that is there, if any
};

// Trains, validates on Split::validation and tests once on Split::test at the end. With
// TrainFiles::resume the result is that of the uninterrupted run, bit for bit.
TrainReport train(const TrainSetup& setup, const TrainFiles& files,
                  const std::function<void(const TrainProgress&)>& progress);

// The model's sizes for a problem of a task.
ModelSizes model_sizes(const TrainSetup& setup);

}  // namespace subquad
