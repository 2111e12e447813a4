// What a killed run needs to go on to the bit: weights, moments, and the progress of the loop.
#pragma once

#include <string>

#include "harness/core/safetensors.h"
#include "harness/model/trainer.h"

namespace subquad {

// The loop's own variables.
struct TrainLoop {
  Index step = 0;  // done
  double best_loss = 0;
  bool has_best = false;
  Index best_step = 0, bad_validations = 0;
  double loss_sum = 0;  // since the last point of the curve
  Index loss_count = 0;
  TrainReport report;  // curve, half_step, best_accuracy, train_s
};

// checkpoint.safetensors: weights by name, "adam.mean." and "adam.square." + name, and as metadata
// the loop and what the model is (describe_model). StorageError when it cannot be written entirely.
void write_checkpoint(const std::string& path, const TrainSetup& setup, TrainState& state,
                      const TrainLoop& loop);
// The same without moments, from which no run goes on; makes the folder.
void save_model(const std::string& path, const TrainSetup& setup, TrainState& state,
                const TrainLoop& loop);
// False when there is none. UserError when it belongs to another run or is damaged.
bool read_checkpoint(const std::string& path, const TrainSetup& setup, TrainState* state,
                     TrainLoop* loop);
// Weights only, by name, with the checkpoint's strictness.
void read_weights(const std::string& path, TrainState* state);
void read_weights(const TensorFile& file, const std::string& path, const ParameterLayout& layout,
                  float* weights);

// curves.csv, entirely rewritten (a temporary file is renamed).
void write_curve(const std::string& path, const std::vector<CurvePoint>& curve);

}  // namespace subquad
