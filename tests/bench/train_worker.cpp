// Seconds of single training steps, for a round robin with other trainers.
//
// Reads lines "train MODEL LAYERS D_MODEL HEADS N BATCH VOCAB" and answers each with
// "ok s1 s2 ..." (after a warm-up, MIN_S seconds in all; environment, default 1) or "skip reason".
// MODEL is lm (causal, pre-norm, MLP of 4 d_model, learned positions, loss at every position) or
// mqar (convolution in front, no MLP, no positions, loss at n / 8 positions). The argument is the
// number of threads. A second argument names another method than dense.

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>

#include "harness/core/parallel.h"
#include "harness/model/trainer.h"

namespace subquad {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Random tokens whose second half repeats the first; the label is the next token, at every
// position or at one in eight.
class Repeats final : public Task {
 public:
  Repeats(Index vocabulary, bool sparse) : vocabulary_(vocabulary), sparse_(sparse) {}
  void fill(const Problem&, Seed, Index, QKV*) const override {}
  LabelSpec labels(Index) const override {
    return {LabelKind::per_token, vocabulary_, vocabulary_, 1};
  }
  TokenBatch tokens(Split, Index first, Index batch, Index n, Seed seed) const override {
    TokenBatch out;
    out.batch = batch;
    out.n = n;
    for (Index b = 0; b < batch; ++b) {
      Random random(seed, "repeats", {static_cast<std::uint64_t>(first + b)});
      std::vector<std::int32_t> text;
      for (Index t = 0; t <= n; ++t) {
        const auto half = static_cast<std::size_t>(n / 2 + 1), at = static_cast<std::size_t>(t);
        text.push_back(at >= half ? text[at - half]
                                  : static_cast<std::int32_t>(
                                        random.below(static_cast<std::uint64_t>(vocabulary_))));
      }
      for (std::size_t t = 0; t < static_cast<std::size_t>(n); ++t) {
        out.tokens.push_back(text[t]);
        out.labels.push_back(sparse_ && random.below(8) != 0 ? kIgnore : text[t + 1]);
      }
    }
    return out;
  }

 private:
  Index vocabulary_;
  bool sparse_;
};

std::string answer(const std::string& line, const std::string& method) {
  std::istringstream in(line);
  std::string command, model;
  Index layers, d, heads, n, batch, vocabulary;
  if (!(in >> command >> model >> layers >> d >> heads >> n >> batch >> vocabulary))
    return "skip malformed_line";
  const bool mqar = model == "mqar";
  const Repeats task(vocabulary, mqar);
  TrainSetup setup;
  setup.options.layers = layers;
  setup.options.steps = 1000000;
  setup.options.schedule = "constant";
  setup.options.warmup = 0;
  if (mqar) {
    setup.options.mlp = 0;
    setup.options.positions = "none";
    setup.options.conv = 3;
  }
  for (Index i = 0; i < layers; ++i) setup.methods.push_back({method, {}});
  setup.task = &task;
  setup.problem = {.batch = batch,
                   .heads = heads,
                   .n = n,
                   .n_kv = n,
                   .d_k = d / heads,
                   .d_v = d / heads,
                   .causal = true};
  setup.seed = 1;
  TrainState state(setup);
  std::vector<TokenBatch> batches;
  for (Index i = 0; i < 8; ++i)
    batches.push_back(task.tokens(Split::train, i * batch, batch, n, 1));
  const char* const minimum = std::getenv("MIN_S");
  const double min_s = minimum == nullptr ? 1 : std::atof(minimum);
  std::string text = "ok";
  double total = 0, loss = 0;
  for (Index step = 1, timed = 0; timed < 2 || total < min_s; ++step) {
    const double start = now_s();
    loss = state.step(step, batches[static_cast<std::size_t>(step % 8)]);
    const double s = now_s() - start;
    if (step <= 3) continue;
    ++timed;
    total += s;
    text += fmt::format(" {:.6e}", s);
  }
  if (!(loss < 1.2 * std::log(static_cast<double>(vocabulary))))
    return fmt::format("skip loss_{}", loss);
  return text;
}

}  // namespace
}  // namespace subquad

int main(int argc, char** argv) {
  if (argc > 1) omp_set_num_threads(std::atoi(argv[1]));
  const std::string method = argc > 2 ? argv[2] : "dense";
  for (std::string line; std::getline(std::cin, line);) {
    std::string text;
    try {
      text = subquad::answer(line, method);
    } catch (const std::exception& error) {
      text = fmt::format("skip {}", error.what());
    }
    std::puts(text.c_str());
    std::fflush(stdout);
  }
}
