// Learning from a teacher: losses, their gradients, fitting layers, what a checkpoint hands on.
#include "harness/model/distill.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>

#include "harness/core/registry.h"
#include "harness/model/checkpoint.h"
#include "tests/model/model_fixture.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::temp_directory_path() / fmt::format("subquad_distill_{}", getpid());
  Folder() { fs::remove_all(path); }
  ~Folder() { fs::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
};

struct Setup {
  std::unique_ptr<Task> task;
  TrainSetup setup;
};

// Two layers of a method on recall, 24 tokens, bidirectional unless the method says otherwise.
Setup setup_of(const std::string& method, const Settings& method_settings, const Settings& given) {
  Setup s;
  TrainSetup& t = s.setup;
  t.task_name = "mqar_fused";
  t.task_settings = resolve(t.task_name, Registry::instance().task(t.task_name).params,
                            {{"n_keys", Index{20}}, {"n_values", Index{6}}});
  s.task = make_task(t.task_name, t.task_settings);
  t.task = s.task.get();
  Settings options = given;
  for (const auto& [key, value] : Settings{{"layers", Index{2}},
                                           {"steps", Index{4}},
                                           {"warmup", Index{1}},
                                           {"eval_every", Index{2}},
                                           {"eval_examples", Index{8}},
                                           {"init_std", 0.3},
                                           {"merge", std::string("sum")}})
    options.emplace(key, value);
  t.train = resolve("train", specs_of(train_fields()), options);
  t.options = subquad::bind(train_fields(), t.train);
  for (Index i = 0; i < t.options.layers; ++i)
    t.methods.push_back(
        {method, resolve(method, Registry::instance().method(method).params, method_settings)});
  t.problem = {.batch = 4, .heads = 2, .n = 24, .n_kv = 24, .d_k = 8, .d_v = 8, .causal = false};
  t.seed = 3;
  t.identity = "distilled";
  return s;
}

const Settings kSea{{"cells", Index{8}}, {"top_k", Index{12}}};

std::string teacher_in(const Folder& folder, Seed seed = 3) {
  const std::string path = folder.file("teacher.safetensors");
  Setup s = setup_of("dense", {}, {{"save", path}});
  s.setup.seed = seed;
  train(s.setup, {}, {});
  return path;
}

TokenBatch batch_of(const TrainSetup& setup, Index number) {
  return setup.task->tokens(Split::train, 4 * number, 4, setup.problem.n, setup.seed);
}

// The gradient along itself against a central difference of the loss.
void require_slope(const TrainSetup& setup, double tolerance) {
  TrainState state(setup);
  const TokenBatch batch = batch_of(setup, 7);
  state.gradients(1, batch, true);
  const Index size = state.layout().size();
  const std::vector<float> slope(state.gradient(), state.gradient() + size);
  double norm = 0;
  for (const float g : slope) norm += static_cast<double>(g) * static_cast<double>(g);
  norm = std::sqrt(norm);
  REQUIRE(norm > 0);
  const std::vector<float> start(state.weights(), state.weights() + size);
  const auto loss_at = [&](double step) {
    for (Index i = 0; i < size; ++i) {
      const auto at = static_cast<std::size_t>(i);
      state.weights()[i] = static_cast<float>(static_cast<double>(start[at]) +
                                              step / norm * static_cast<double>(slope[at]));
    }
    return state.gradients(1, batch, true);
  };
  const double h = 4e-3;
  const double measured = (loss_at(h) - loss_at(-h)) / (2 * h);
  INFO("norm " << norm << " measured " << measured);
  CHECK(std::abs(measured - norm) <= tolerance * norm);
}

}  // namespace

TEST_CASE("a student that is its teacher has nothing to learn from it", "[model][distill]") {
  const Folder folder;
  const Setup s = setup_of("dense", {},
                           {{"teacher", teacher_in(folder)},
                            {"task_weight", 0.0},
                            {"logits_weight", 1.0},
                            {"hidden_weight", 1.0},
                            {"context_weight", 1.0}});
  TrainState state(s.setup);
  CHECK(state.gradients(1, batch_of(s.setup, 0), true) > 1e-3);  // random weights: another model
  CHECK(take_initial_weights(s.setup.options.teacher, s.setup, &state));
  CHECK(std::abs(state.gradients(1, batch_of(s.setup, 0), true)) <= 1e-6);
  double largest = 0;
  for (Index i = 0; i < state.layout().size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(state.gradient()[i])));
  CHECK(largest <= 1e-6);
}

TEST_CASE("gradients of every distillation loss are slopes of it", "[model][distill]") {
  const Folder folder;
  const std::string teacher = teacher_in(folder);
  for (const char* weight : {"logits_weight", "hidden_weight", "context_weight"}) {
    INFO(weight);
    const Settings options{{"teacher", teacher}, {"task_weight", 0.0}, {weight, 1.0}};
    require_slope(setup_of("dense", {}, options).setup, 0.01);
  }
  // The estimate has no jumps: the choice of cells plays no part in it.
  for (const double task : {0.0, 1.0}) {
    const Settings options{{"teacher", teacher}, {"task_weight", task}, {"matrix_weight", 1.0}};
    Settings all = kSea;  // every key is kept, so that the output has no jumps either
    all["top_k"] = Index{24};
    require_slope(setup_of("sea", all, options).setup, 0.02);
  }
}

TEST_CASE("the losses do not depend on how a batch is cut", "[model][distill]") {
  const Folder folder;
  const std::string teacher = teacher_in(folder);
  double losses[2];
  for (const Index shards : {1, 4}) {
    const Setup s = setup_of("sea", kSea,
                             {{"teacher", teacher},
                              {"shards", shards},
                              {"logits_weight", 0.7},
                              {"hidden_weight", 0.5},
                              {"context_weight", 0.3},
                              {"matrix_weight", 0.9}});
    TrainState state(s.setup);
    losses[shards == 1 ? 0 : 1] = state.gradients(1, batch_of(s.setup, 0), true);
  }
  CHECK(std::abs(losses[0] - losses[1]) <= 1e-5 * losses[0]);
}

TEST_CASE("layers are fitted to the teacher, with the same bits on any number of threads",
          "[model][distill]") {
  const Folder folder;
  const std::string teacher = teacher_in(folder), student = folder.file("student.safetensors");
  const Setup s = setup_of(
      "sea", kSea,
      {{"teacher", teacher}, {"fit_steps", Index{60}}, {"steps", Index{0}}, {"save", student}});
  double loss = 0;
  for (const int count : {1, 2}) {
    const Threads threads(count);
    const TrainReport report = train(s.setup, {}, {});
    CHECK(report.steps == 0);
    CHECK(report.fit.steps == 120);  // of two layers
    CHECK(report.fit.last_loss < report.fit.first_loss);
    CHECK(report.methods_initial);
    if (count == 1) loss = report.test.loss;
    CHECK(report.test.loss == loss);
  }
  // All of it is in the file, and other settings of the method may follow it.
  Settings options{{"init", student}, {"steps", Index{0}}};
  const TrainReport again = train(setup_of("sea", kSea, options).setup, {}, {});
  CHECK(again.test.loss == loss);
  CHECK_FALSE(again.methods_initial);
  CHECK(again.fit.steps == 0);
  Settings more = kSea;
  more["top_k"] = Index{24};
  CHECK(train(setup_of("sea", more, options).setup, {}, {}).test.loss != loss);
  // Random features of another seed are not those that were fitted.
  Setup other = setup_of("sea", kSea, options);
  other.setup.seed = 4;
  CHECK_THROWS_WITH(train(other.setup, {}, {}), Catch::Contains("of seed 3, expected seed 4"));
}

TEST_CASE("a resumed student does not fit again", "[model][distill]") {
  const Folder folder;
  const Setup s = setup_of("sea", kSea,
                           {{"teacher", teacher_in(folder)},
                            {"fit_steps", Index{20}},
                            {"context_weight", 1.0},
                            {"host_rate", 0.0}});
  const TrainFiles files{folder.file("run"), true};
  const TrainReport first = train(s.setup, files, {}), again = train(s.setup, files, {});
  CHECK(again.fit_s == first.fit_s);
  CHECK(again.fit.steps == 40);
  CHECK(again.methods_initial);
  CHECK(again.test.loss == first.test.loss);
  // With a rate of zero everything but the method stays the teacher's.
  const TensorFile teacher = read_safetensors(s.setup.options.teacher),
                   student = read_safetensors(folder.file("run/checkpoint.safetensors"));
  for (const auto& [name, tensor] : teacher.tensors) {
    INFO(name);
    CHECK(student.tensors.at(name).bytes == tensor.bytes);
  }
}

TEST_CASE("what cannot teach is refused", "[model][distill]") {
  const Folder folder;
  const std::string teacher = teacher_in(folder);
  Setup s = setup_of("sea", kSea, {{"teacher", teacher}});
  s.setup.problem.n = s.setup.problem.n_kv = 26;
  CHECK_THROWS_WITH(train(s.setup, {}, {}), Catch::Contains("n=24, expected 26"));
  s = setup_of("sea", kSea, {{"fit_steps", Index{5}}});
  CHECK_THROWS_WITH(train(s.setup, {}, {}), Catch::Contains("needs a teacher"));
  s = setup_of("dense", {}, {{"teacher", teacher}, {"fit_steps", Index{5}}});
  CHECK(train(s.setup, {}, {}).fit.steps == 0);  // dense attention has nothing to fit
  s = setup_of("sea", kSea, {{"teacher", folder.file("none")}});
  CHECK_THROWS_WITH(train(s.setup, {}, {}), Catch::Contains("no such file"));
}

}  // namespace subquad
