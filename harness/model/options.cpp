#include "harness/model/options.h"

namespace subquad {

const std::vector<Field<TrainOptions>>& train_fields() {
  using O = TrainOptions;
  static const std::vector<Field<O>> fields{
      param("layers", &O::layers, {0, 64}, "blocks of attention and MLP"),
      param("d_model", &O::d_model, {0, 1 << 16}, "width; 0 = heads * d_v"),
      param("mlp", &O::mlp, {0, 64}, "hidden width of the MLP / d_model; 0 = no MLP"),
      choice("norm", &O::norm, {"pre", "post"}, "layer norm before each part, or after the sum"),
      choice("activation", &O::activation, {"gelu", "gelu_tanh", "relu"}, "of the MLP"),
      choice("positions", &O::positions,
             {"none", "learned", "sinusoidal", "sinusoidal_concat", "rope"},
             "learned or sinusoidal are added to the embedding, sinusoidal_concat takes half of "
             "it, rope turns q and k"),
      param("conv", &O::conv, {0, 64}, "taps of a causal depthwise convolution in front; 0 = none"),
      param("tied", &O::tied, "the output layer of a token model is the embedding"),
      choice("pool", &O::pool, {"mean", "cls", "last"}, "what a sequence classifier reads"),
      param("dropout", &O::dropout, {0, 0.99}, "of the embedding and of every residual branch"),
      param("init_std", &O::init_std, {0, 10}, "standard deviation of the initial weights"),
      param("qk_std", &O::qk_std, {0, 10}, "that of queries and keys; 0 = init_std"),
      choice("merge", &O::merge, {"concat", "sum"},
             "embeddings of several tokens in one position: side by side, or added"),
      param("init", &O::init,
            "checkpoint whose weights are the initial ones; empty: the teacher's, or random ones. "
            "{method}, {label}, {seed} stand for those of the cell here and below"),
      choice("optimizer", &O::optimizer, {"adamw", "adam", "radam"},
             "weight decay is decoupled "
             "for adamw and radam"),
      param("learning_rate", &O::learning_rate, {0, 10}, "highest of the schedule"),
      param("beta1", &O::beta1, {0, 0.99999}, "decay of the mean gradient"),
      param("beta2", &O::beta2, {0, 0.9999999}, "decay of the mean squared gradient"),
      param("weight_decay", &O::weight_decay, {0, 10}, "on matrices"),
      param("clip", &O::clip, {0, 1e6}, "largest gradient norm; 0 = any"),
      param("clip_each", &O::clip_each, "the norm of each tensor instead of the global one"),
      choice("schedule", &O::schedule, {"constant", "cosine", "linear", "step"},
             "of the learning rate after the warm-up"),
      param("warmup", &O::warmup, {0, 1 << 30}, "steps from 0 to the learning rate"),
      param("decay_at", &O::decay_at, {0, 1 << 30}, "schedule step: the step of the decay"),
      param("decay_factor", &O::decay_factor, {0, 1}, "schedule step: the factor"),
      param("steps", &O::steps, {0, 1 << 30}, "optimizer steps"),
      param("examples", &O::examples, {0, 1 << 30},
            "size of the training set, gone through in order; 0 = fresh examples at every step"),
      param("eval_every", &O::eval_every, {1, 1 << 30}, "steps between validations"),
      param("eval_examples", &O::eval_examples, {1, 1 << 24},
            "of each validation and of the final test, rounded up to whole batches"),
      param("stop_accuracy", &O::stop_accuracy, {0, 2}, "stop once the validation reaches this"),
      param("patience", &O::patience, {0, 1 << 20},
            "stop after so many validations without a lower loss; 0 = never"),
      param("checkpoint_every", &O::checkpoint_every, {0, 1 << 30},
            "steps between checkpoints; 0 = at validations"),
      param("shards", &O::shards, {0, 1024},
            "parts of a batch whose gradients are added in order; also the most threads used; 0 = "
            "4 to 8"),
      param("save", &O::save, "file (.safetensors) for the weights at the end; empty = not kept"),
      param("teacher", &O::teacher,
            "checkpoint of a trained model of the same sizes, from which this one learns"),
      param("fit_steps", &O::fit_steps, {0, 1 << 30},
            "first every layer's method alone is fitted to the teacher's attention, one example a "
            "step"),
      param("fit_rate", &O::fit_rate, {0, 10}, "highest learning rate of these steps"),
      param("host_rate", &O::host_rate, {0, 100},
            "learning rate of all but the methods' parameters, relative to learning_rate"),
      param("task_weight", &O::task_weight, {0, 1e6}, "weight of the labels' cross-entropy"),
      param("logits_weight", &O::logits_weight, {0, 1e6},
            "weight of KL(teacher || student) over the classes"),
      param("hidden_weight", &O::hidden_weight, {0, 1e6},
            "weight of the squared distance of what attention layers read"),
      param("context_weight", &O::context_weight, {0, 1e6},
            "weight of the squared distance of what attention layers give"),
      param("matrix_weight", &O::matrix_weight, {0, 1e6},
            "weight of the distance of attention matrices, for methods that learn one")};
  return fields;
}

}  // namespace subquad
