// Learning from a teacher: a trained model of the same sizes, usually with dense attention.
//
// Before the first step every layer's method can be fitted alone to the teacher's attention (its
// q, k, v and output), the rest standing still; the steps of training can then add to the labels'
// cross-entropy, each with its weight (options.h),
//   logits    KL(teacher || student) of the classes, mean over the labelled positions
//   hidden    mean squared distance of what attention layers read, mean over layers
//   context   ... of what they give, before the output projection
//   matrix    the methods' own distance to the teacher's attention matrix (LearnsMatrix)
// Teacher and student each go on from their own hidden states.
// Source: Lee et al. 2024 (arXiv 2310.01777), section 3.3; hidden states after the layer norm are
// our choice, and that the last one is left to the logits.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "harness/core/learns_matrix.h"
#include "harness/model/trained_model.h"

namespace subquad {

// UserError when the teacher's sizes are not the student's.
void require_same_sizes(const TrainedModel& teacher, const ModelSizes& student, bool same_n);

// The teacher on one thread.
class TeacherLane {
 public:
  struct Layer {
    autodiff::Var<float> q, k, v, x, out;
  };
  // `problem`: one call of attention for a part of a batch.
  TeacherLane(const TrainedModel& teacher, const Problem& problem, bool key_padding);
  // The part's forward; what it leaves is valid until the next.
  void run(ModelInput input);
  const Layer& layer(Index i) const { return layers_[static_cast<std::size_t>(i)]; }
  autodiff::Var<float> logits() const { return logits_; }
  double bytes() const { return tape_.bytes(); }

 private:
  const TrainedModel& teacher_;
  MethodAttention methods_;
  autodiff::Tape<float> tape_;
  ModelWork work_;
  std::vector<Layer> layers_;
  autodiff::Var<float> logits_;
};

// The student's attention, compared with the teacher's on the way. `share`: this part's share of
// the batch.
class DistilledAttention final : public LayerAttention<float> {
 public:
  DistilledAttention(MethodAttention& student, const TeacherLane& teacher,
                     const TrainOptions& options, double share)
      : student_(student), teacher_(teacher), options_(options), share_(share) {}

  autodiff::Var<float> attend(Index layer, autodiff::Var<float> q, autodiff::Var<float> k,
                              autodiff::Var<float> v, autodiff::Var<float> x,
                              std::span<const std::uint8_t> key_mask) override;
  // The whole loss of the part; `denominator`: labels of the batch.
  autodiff::Var<float> loss(const ModelOutput<float>& out, double denominator) const;

 private:
  void add(autodiff::Var<float> loss);

  MethodAttention& student_;
  const TeacherLane& teacher_;
  const TrainOptions& options_;
  double share_;
  autodiff::Var<float> sum_;
};

// Weights of a checkpoint by name into a model of the same sizes. Those of methods stay as they are
// where the layer's method is another; false when some do. UserError when any other is missing, or
// when a method's random features would not be those of the checkpoint.
bool take_initial_weights(const std::string& path, const TrainSetup& setup, TrainState* state);

// Fits every layer's method to the teacher; the mean of their losses over the layers.
FitReport fit_to_teacher(const TrainedModel& teacher, const TrainSetup& setup, TrainState* state);

}  // namespace subquad
