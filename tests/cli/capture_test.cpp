// subquad capture, and its files as the task npy.
#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "harness/core/npy.h"
#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

std::string trained(const TemporaryDirectory& dir) {
  std::ofstream(dir / "c.yaml") << R"(
name: study
threads: 1
passes: train
problem: {batch: 8, heads: 2, n: 16, head_dim: 8, causal: true}
methods: [dense]
tasks: [{name: mqar, vocabulary: 64, pairs: 2}]
train: {layers: 2, conv: 3, steps: 4, warmup: 2, eval_every: 4, eval_examples: 16}
)";
  const Finished run =
      subquad::test::subquad("train " + (dir / "c.yaml") + " --out " + (dir / "run"));
  INFO(run.err);
  REQUIRE(run.status == 0);
  return dir / "run";
}

}  // namespace

TEST_CASE("capture writes every layer, and a sweep over the files runs", "[cli][capture]") {
  const TemporaryDirectory dir;
  const std::string run = trained(dir);
  const Finished done =
      subquad::test::subquad("capture " + run + " --count 3 --out " + (dir / "cap"));
  INFO(done.err);
  REQUIRE(done.status == 0);
  for (const char* name : {"layer0_q", "layer0_k", "layer1_v"}) {
    INFO(name);
    CHECK(subquad::read_npy_shape(dir / (std::string("cap/") + name + ".npy")) ==
          std::vector<subquad::Index>{3, 2, 16, 8});
  }
  CHECK(subquad::read_npy_shape(dir / "cap/layer1_x.npy") ==
        std::vector<subquad::Index>{3, 1, 16, 16});
  CHECK_FALSE(fs::exists(dir / "cap/key_mask.npy"));
  const auto about = nlohmann::json::parse(contents(dir / "cap/capture.json"));
  CHECK(about.at("steps") == 4);
  CHECK(about.at("split") == "test");
  CHECK(about.at("model").at("task_settings").at("pairs") == 2);

  // The same numbers as the task that reads the checkpoint itself, and another layer differs.
  const Finished second = subquad::test::subquad("capture " + run +
                                                 "/checkpoint.safetensors --layer 1 --first 1 "
                                                 "--count 2 --out " +
                                                 (dir / "two"));
  REQUIRE(second.status == 0);
  CHECK_FALSE(fs::exists(dir / "two/layer0_q.npy"));
  const auto all = subquad::read_npy(dir / "cap/layer1_q.npy").values;
  const auto part = subquad::read_npy(dir / "two/layer1_q.npy").values;
  REQUIRE(part.size() == 2 * 2 * 16 * 8);
  CHECK(std::equal(part.begin(), part.end(), all.begin() + 2 * 16 * 8));

  std::ofstream(dir / "s.yaml") << "name: s\nrounds: 1\nthreads: 1\n"
                                   "problem: {batch: 3, n: 16, causal: true}\n"
                                   "methods: [dense, topk_exact]\ntasks: [{name: npy, dir: \""
                                << (dir / "cap") << "\", layer: [0, 1]}, {name: mqar, from: \""
                                << run
                                << "\", layer: [0, 1]}]\n"
                                   "measure: {min_time_s: 1e-4, repetitions: 1, input_sets: 1}\n";
  const Finished sweep =
      subquad::test::subquad("run " + (dir / "s.yaml") + " --no-plots --out " + (dir / "r"));
  INFO(sweep.err);
  CHECK(sweep.status == 0);
  CHECK(line_count(contents(dir / "r/results.csv")) == 9);
}

TEST_CASE("mistakes of capture are one line", "[cli][capture]") {
  const TemporaryDirectory dir;
  const std::string run = trained(dir);
  const auto refused = [&](const std::string& arguments, const std::string& message) {
    const Finished done = subquad::test::subquad("capture " + arguments);
    INFO(done.err);
    CHECK(done.status == 2);
    CHECK(line_count(done.err) == 1);
    CHECK(done.err.find(message) != std::string::npos);
  };
  refused((dir / "none") + " --out " + (dir / "o"), "no such file");
  refused(run, "--out");
  refused(run + " --layer 2 --out " + (dir / "o"), "has 2 layers");
  refused((dir / "c.yaml") + " --out " + (dir / "o"), "safetensors");
  CHECK_FALSE(fs::exists(dir / "o"));
}
