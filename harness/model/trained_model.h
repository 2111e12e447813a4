// A model made again from the checkpoint of a training run, and what its attention layers see.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "harness/model/trainer.h"

namespace subquad {

// The metadata "model" of a checkpoint: task, methods, problem, options and seed as JSON.
std::string describe_model(const TrainSetup& setup);

// Number of the first example that a seed takes from a split.
Index first_example(Seed seed);

// What the parallel forward of one sequence computes.
struct ModelTrace {
  std::vector<std::int32_t> tokens;  // [n]
  std::vector<QKV> layers;           // as capture()
  Matrix logits;                     // [n, classes]
};

class TrainedModel {
 public:
  // `path`: a checkpoint, or the directory that holds checkpoint.safetensors. UserError in one line
  // when it is missing, damaged, of another format or does not fit the model that it describes.
  explicit TrainedModel(const std::string& path);

  const std::string& path() const { return path_; }  // of the checkpoint
  const TrainSetup& setup() const { return setup_; }
  const Task& task() const { return *task_; }
  Index steps() const { return steps_; }  // that it was trained for
  Index sequences() const;                // attended to per example: 1, or 2 with two towers
  // One call of a layer for one example: batch = sequences(), n as attention sees it.
  const Problem& problem() const { return attention_; }
  Index d_model() const { return model_->sizes().d_model; }
  const ModelSizes& sizes() const { return model_->sizes(); }
  const ParameterLayout& layout() const { return model_->layout(); }
  const float* weights() const { return weights_.data(); }  // [layout().size()]

  // What every layer gets for one example of a split: q and k with positions turned in, v, the
  // layer's input x [sequences, 1, n, d_model], and the key mask where there is padding. Example i
  // does not depend on what was asked for before, nor on the number of threads.
  // `outputs`: also what the layer's method gives, [sequences, heads, n, d_v].
  std::vector<QKV> capture(Split split, Index example,
                           std::vector<Tensor>* outputs = nullptr) const;
  // The whole forward of a sequence of the model's length; token models only.
  ModelTrace trace(std::span<const std::int32_t> tokens) const;

  // For a forward of one's own.
  const Transformer<float>& network() const { return *model_; }
  const MethodAttention& attention() const { return *methods_; }
  Method& method(Index layer) const { return methods_->method(layer); }

 private:
  autodiff::Var<float> forward(const ModelInput& input, std::vector<QKV>* layers,
                               std::vector<Tensor>* outputs, autodiff::Tape<float>* tape,
                               ModelWork* work) const;

  std::string path_;
  TrainSetup setup_;
  std::unique_ptr<Task> task_;
  Problem attention_;
  Index steps_ = 0;
  std::unique_ptr<Transformer<float>> model_;
  mutable std::unique_ptr<MethodAttention> methods_;  // work space of a forward
  AlignedArray<float> weights_;
};

}  // namespace subquad
