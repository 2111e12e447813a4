#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

void write_config(const TemporaryDirectory& dir) {
  std::ofstream(dir / "c.yaml") << R"(
name: study
threads: 1
passes: train
problem: {batch: 8, n: 16, head_dim: 8, causal: true}
methods: [dense, dense_naive]
tasks: [{name: mqar, vocabulary: 64, pairs: 2}]
train: {layers: 2, conv: 3, steps: 12, warmup: 2, eval_every: 4, eval_examples: 16}
)";
}

}  // namespace

TEST_CASE("train writes a checkpoint and a curve, and goes on from them", "[cli][train]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const std::string command = "train " + (dir / "c.yaml") + " --filter method=dense --out ";
  const Finished first = subquad::test::subquad(command + (dir / "a"));
  INFO(first.err);
  REQUIRE(first.status == 0);
  const auto result = nlohmann::json::parse(first.out);
  CHECK(result.at("steps") == "12");
  CHECK(first.err.find("floor") != std::string::npos);
  CHECK(first.err.find("left") != std::string::npos);
  const std::string curve = contents(dir / "a/curves.csv");
  CHECK(line_count(curve) == 4);
  REQUIRE(fs::exists(dir / "a/checkpoint.safetensors"));
  REQUIRE(fs::exists(dir / "a/config.resolved.yaml"));

  const Finished again = subquad::test::subquad(command + (dir / "a"));
  CHECK(again.status == 0);  // nothing is left to do but the test
  CHECK(nlohmann::json::parse(again.out).at("loss") == result.at("loss"));
  const Finished fresh = subquad::test::subquad(command + (dir / "a") + " --fresh");
  CHECK(nlohmann::json::parse(fresh.out).at("loss") == result.at("loss"));
  const Finished other = subquad::test::subquad(command + (dir / "a") + " --set train.steps=13");
  CHECK(other.status == 2);
  CHECK(other.err.find("belongs to another run") != std::string::npos);
}

TEST_CASE("train wants exactly one run", "[cli][train]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const std::string command = "train " + (dir / "c.yaml") + " --out " + (dir / "a");
  const Finished two = subquad::test::subquad(command);
  CHECK(two.status == 2);
  CHECK(two.err.find("2 cells of the train pass") != std::string::npos);
  const Finished none = subquad::test::subquad(command + " --set passes=forward");
  CHECK(none.status == 2);
  const Finished mixed =
      subquad::test::subquad(command + " --filter method=dense --layers dense,dense_naive");
  CHECK(mixed.status == 0);
  const Finished few =
      subquad::test::subquad(command + " --fresh --filter method=dense --layers dense");
  CHECK(few.status == 2);
  CHECK(few.err.find("expected 2") != std::string::npos);
}

TEST_CASE("a sweep with a train pass gives rows and curves", "[cli][train]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const Finished run = subquad::test::subquad("run " + (dir / "c.yaml") +
                                              " --no-plots --set rounds=1 --out " + (dir / "r"));
  INFO(run.err);
  CHECK(run.status == 0);
  CHECK(line_count(contents(dir / "r/results.csv")) == 3);
  CHECK(line_count(contents(dir / "r/curves.csv")) == 7);
}
