// The loop: determinism, checkpoints, memory.

#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "harness/core/parallel.h"
#include "harness/measure/alloc_counter.h"
#include "harness/model/checkpoint.h"
#include "tests/model/model_fixture.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / fmt::format("subquad_model_{}", getpid());
  TemporaryFolder() { fs::remove_all(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
};

std::vector<float> weights_after(const TrainSetup& setup, Index steps) {
  TrainState state(setup);
  for (Index step = 1; step <= steps; ++step)
    state.step(step, setup.task->tokens(Split::train, (step - 1) * setup.problem.batch,
                                        setup.problem.batch, setup.problem.n, setup.seed));
  return {state.weights(), state.weights() + state.layout().size()};
}

void require_same(const TrainReport& a, const TrainReport& b) {
  REQUIRE(a.curve.size() == b.curve.size());
  for (std::size_t i = 0; i < a.curve.size(); ++i) {
    REQUIRE(a.curve[i].step == b.curve[i].step);
    REQUIRE(a.curve[i].train_loss == b.curve[i].train_loss);
    REQUIRE(a.curve[i].validation.loss == b.curve[i].validation.loss);
    REQUIRE(a.curve[i].validation.accuracy == b.curve[i].validation.accuracy);
  }
  REQUIRE(a.test.loss == b.test.loss);
  REQUIRE(a.best_step == b.best_step);
}

TEST_CASE("weights are the same to the bit for any number of threads", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.dropout = 0.1;
  std::vector<float> one;
  for (const int count : {1, 2, 3}) {
    const Threads threads(count);
    const std::vector<float> weights = weights_after(setup, 5);
    if (one.empty()) one = weights;
    REQUIRE(weights == one);
  }
}

TEST_CASE("training learns, and the same seed gives the same curve", "[model]") {
  const Threads threads(1);  // steps this small gain nothing from more
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.steps = 400;
  setup.options.eval_every = 50;
  setup.options.learning_rate = 1e-2;
  const TrainReport first = train(setup, {}, {}), second = train(setup, {}, {});
  require_same(first, second);
  CHECK(first.steps == 400);
  CHECK(first.curve.front().validation.accuracy < 0.6);
  CHECK(first.test.accuracy > 0.9);  // chance is 1 / 11
  CHECK(first.half_step > 0);
  setup.seed = 4;
  setup.options.steps = 20;
  CHECK(train(setup, {}, {}).curve.front().train_loss != first.curve.front().train_loss);
}

TEST_CASE("a run that was killed at any step goes on to the same curve", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.checkpoint_every = 3;
  const Threads threads(1);
  const TrainReport whole = train(setup, {}, {});
  for (const Index kill_at : {2, 10, 11, 37}) {
    const TemporaryFolder folder;
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {  // one thread: an OpenMP team does not survive fork
      train(setup, {folder.path.string(), true}, [&](const TrainProgress& p) {
        if (p.step == kill_at) raise(SIGKILL);
      });
      _exit(1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
    INFO("killed at step " << kill_at);
    require_same(train(setup, {folder.path.string(), true}, {}), whole);
    std::ifstream curve(folder.path / "curves.csv");
    const std::string text((std::istreambuf_iterator<char>(curve)), {});
    CHECK(std::count(text.begin(), text.end(), '\n') == 5);  // header and four points
  }
}

TEST_CASE("a checkpoint of another run or a damaged one is refused", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.steps = 10;
  const TemporaryFolder folder;
  train(setup, {folder.path.string(), false}, {});
  TrainSetup other = setup;
  other.identity = "other";
  CHECK_THROWS_AS(train(other, {folder.path.string(), true}, {}), UserError);
  other = setup;
  other.options.mlp = 2;
  CHECK_THROWS_AS(train(other, {folder.path.string(), true}, {}), UserError);
  fs::resize_file(folder.path / "checkpoint.safetensors", 5000);
  CHECK_THROWS_AS(train(setup, {folder.path.string(), true}, {}), UserError);
}

TEST_CASE("a diverging run stops and says so", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.learning_rate = 1e38;  // the second step's logits overflow
  setup.options.warmup = 0;
  const TrainReport report = train(setup, {}, {});
  CHECK(report.stopped == "diverged");
  CHECK(report.steps == 2);
}

TEST_CASE("early stopping by accuracy and by patience", "[model]") {
  const ToyTask task(kToyTokens);
  TrainSetup setup = toy_setup(task);
  setup.options.steps = 400;
  setup.options.stop_accuracy = 0.01;
  CHECK(train(setup, {}, {}).stopped == "accuracy");
  setup.options.stop_accuracy = 2;
  setup.options.learning_rate = 0;
  setup.options.weight_decay = 0;
  setup.options.patience = 2;
  const TrainReport report = train(setup, {}, {});
  CHECK(report.stopped == "patience");
  CHECK(report.steps == 30);
  CHECK(report.best_step == 10);
}

TEST_CASE("a step allocates nothing after the first", "[model]") {
  if (!hooks_active()) return;
  const ToyTask task(kToyTokens);
  const Threads threads(1);
  const TrainSetup setup = toy_setup(task);
  TrainState state(setup);
  const TokenBatch batch = task.tokens(Split::train, 0, 8, 12, 3);
  state.step(1, batch);
  const std::uint64_t before = alloc_calls();
  state.step(2, batch);
  state.step(3, batch);
  CHECK(alloc_calls() == before);
}

TEST_CASE(
    "memory of a step grows linearly with n for linear and streamed attention, "
    "quadratically for whole matrices",
    "[model]") {
  const auto bytes = [](Index n, const char* method) {
    const ToyTask task(kToyTokens);
    TrainSetup setup = toy_setup(task, method);
    setup.options.layers = 2;
    setup.problem.batch = 1;
    setup.problem.n = setup.problem.n_kv = n;
    const Threads threads(1);
    const std::int64_t before = live_bytes();
    reset_peak();
    TrainState state(setup);
    state.step(1, task.tokens(Split::train, 0, 1, n, 3));
    return static_cast<double>(peak_bytes() - before);
  };
  if (!hooks_active()) return;
  // Twice the length: twice the memory when it is linear, four times when it is quadratic.
  const double linear = bytes(2048, "linear") / bytes(1024, "linear"),
               dense = bytes(2048, "dense") / bytes(1024, "dense"),
               naive = bytes(2048, "dense_naive") / bytes(1024, "dense_naive");
  INFO("linear " << linear << ", dense " << dense << ", dense_naive " << naive);
  CHECK(linear < 2.2);
  CHECK(linear > 1.5);
  CHECK(dense < 2.2);
  CHECK(dense > 1.5);
  CHECK(naive > 3);
}

}  // namespace
}  // namespace subquad
