// subquad plot --attention: matrices of a trained model as files and as a picture.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "harness/core/npy.h"
#include "tests/cli/shell.h"

namespace fs = std::filesystem;
using subquad::Index;
using subquad::test::Finished;
using subquad::test::TemporaryDirectory;

namespace {

void train_sea(const TemporaryDirectory& dir) {
  std::ofstream(dir / "c.yaml") << R"(name: small
passes: train
threads: 1
rounds: 1
problem: {batch: 2, heads: 2, n: 40, head_dim: 8, causal: true}
methods: [{name: sea, cells: 8, top_k: 6, stretch: 1}]
tasks: [{name: mqar, vocabulary: 64, pairs: 2}]
train: {layers: 1, steps: 2, warmup: 1, eval_every: 2, eval_examples: 2, mlp: 0}
)";
  const Finished done =
      subquad::test::subquad("train " + (dir / "c.yaml") + " --out " + (dir / "t"));
  INFO(done.err);
  REQUIRE(done.status == 0);
}

}  // namespace

TEST_CASE("the attention of a trained model is written and drawn", "[cli][plot]") {
  const TemporaryDirectory dir;
  train_sea(dir);
  const Finished drawn = subquad::test::subquad(
      "plot --attention " + (dir / "t") + " --head 1 --csv --format png --out " + (dir / "a"));
  INFO(drawn.err);
  REQUIRE(drawn.status == 0);
  CHECK(fs::file_size(dir / "a/attention.png") > 5000);
  CHECK_FALSE(fs::exists(dir / "a/attention.svg"));
  for (const std::string name : {"dense", "estimated", "method"}) {
    INFO(name);
    const subquad::NpyArray matrix = subquad::read_npy(dir / ("a/" + name + ".npy"));
    REQUIRE(matrix.shape == std::vector<Index>{40, 40});
    for (Index t = 0; t < 40; ++t) {
      double sum = 0, future = 0;
      for (Index j = 0; j < 40; ++j)
        (j <= t ? sum : future) +=
            static_cast<double>(matrix.values[static_cast<std::size_t>(40 * t + j)]);
      CHECK(future == 0);
      // The gates take from the sparse part of SEA what they do not give to pooled values.
      if (name == "method") {
        CHECK((sum > 0.1 && sum <= 1 + 1e-5));
      } else {
        CHECK(std::abs(sum - 1) <= 1e-5);
      }
    }
  }
  const std::string text = subquad::test::contents(dir / "a/attention.csv");
  CHECK(text.substr(0, 34) == "query,key,dense,estimated,method\n0");
  CHECK(std::count(text.begin(), text.end(), '\n') == 1 + 40 * 41 / 2);
}

TEST_CASE("attention that cannot be drawn is one line", "[cli][plot]") {
  const TemporaryDirectory dir;
  train_sea(dir);
  const Finished layer = subquad::test::subquad("plot --attention " + (dir / "t") + " --layer 3");
  CHECK(layer.status == 2);
  CHECK(layer.err.find("has 1 layers, expected 0 to 0") != std::string::npos);
  const Finished none = subquad::test::subquad("plot --attention " + (dir / "nothing"));
  CHECK(none.status == 2);
  CHECK(none.err.find("no such file") != std::string::npos);
  CHECK(subquad::test::subquad("plot " + (dir / "t") + " --layer 1").status == 2);
}
