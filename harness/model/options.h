// Everything that a training run can be told besides the method, the task and the problem. One flat
// list: each is a key of the section `train` of a config, and may be a list there.
#pragma once

#include <string>
#include <vector>

#include "harness/core/params.h"

namespace subquad {

struct TrainOptions {
  // ---- model ----
  Index layers = 2;
  Index d_model = 0;         // 0 = heads * d_v
  double mlp = 4;            // hidden width of the MLP / d_model; 0 = no MLP
  std::string norm = "pre";  // pre: x + f(LN x); post: LN(x + f(x))
  std::string activation = "gelu";
  std::string positions = "learned";
  Index conv = 0;                // taps of a causal depthwise convolution in front; 0 = none
  bool tied = true;              // the output layer of a token model is the embedding
  std::string pool = "mean";     // what a sequence classifier reads
  double dropout = 0;            // of the embedding and of every residual branch
  double init_std = 0.02;        // GPT-2
  double qk_std = 0;             // of the weights of queries and keys; 0 = init_std
  std::string merge = "concat";  // embeddings of several tokens in one position
  std::string init;              // a checkpoint whose weights are the initial ones
  // ---- optimizer ----
  std::string optimizer = "adamw";
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double weight_decay = 0.1;  // on matrices
  double clip = 1;            // of the global gradient norm; 0 = off
  bool clip_each = false;     // of every tensor's norm instead
  std::string schedule = "cosine";
  Index warmup = 100;     // steps from 0 to the learning rate
  Index decay_at = 3000;  // step schedule: factor decay_factor from there on
  double decay_factor = 0.1;
  // ---- run ----
  Index steps = 1000;
  Index examples = 0;          // size of the training set; 0 = fresh examples at every step
  Index eval_every = 250;      // steps between validations
  Index eval_examples = 512;   // of each validation and of the final test
  double stop_accuracy = 1.1;  // stop once the validation reaches this
  Index patience = 0;          // stop after so many validations without a better loss; 0 = never
  Index checkpoint_every = 0;  // steps; 0 = only at validations
  Index shards = 0;            // parts of a batch, whose gradients are added in order; 0 = 4 to 8
  std::string save;            // file for the weights at the end; "" = not kept
  // ---- distillation (distill.h) ----
  std::string teacher;        // checkpoint of a trained model; "" = none
  Index fit_steps = 0;        // of every layer's method, before anything else
  double fit_rate = 1e-3;     // highest learning rate of these steps
  double host_rate = 1;       // learning rate of what is not a method's, relative to learning_rate
  double task_weight = 1;     // of the labels' cross-entropy
  double logits_weight = 0;   // of KL(teacher || student) of the classes
  double hidden_weight = 0;   // of the squared distance of what attention reads
  double context_weight = 0;  // ... of what attention gives
  double matrix_weight = 0;   // of the methods' own distance to the teacher's attention matrix
};

const std::vector<Field<TrainOptions>>& train_fields();

}  // namespace subquad
