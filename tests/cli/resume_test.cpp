// Training that is killed with SIGKILL at random moments and goes on: the same curve to the bit.
#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "harness/core/random.h"
#include "harness/core/safetensors.h"
#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

void write_config(const TemporaryDirectory& dir) {
  std::ofstream(dir / "c.yaml") << R"(
name: study
threads: 1
rounds: 1
plots: false
passes: train
problem: {batch: 16, heads: 2, n: 32, head_dim: 16, causal: true}
methods: [dense]
tasks: [{name: mqar, vocabulary: 64, pairs: 4}]
train: {layers: 2, dropout: 0.1, steps: 240, warmup: 5, eval_every: 40, eval_examples: 32, checkpoint_every: 3}
)";
}

// The lines without the columns of these names: times differ, and so does the attempt.
std::string without(const std::string& csv, const std::vector<std::string>& left_out) {
  std::istringstream lines(csv);
  std::string line, kept;
  std::vector<bool> keep;
  while (std::getline(lines, line)) {
    std::istringstream fields(line);
    std::string field;
    std::size_t number = 0;
    for (; std::getline(fields, field, ','); ++number) {
      if (keep.size() <= number)
        keep.push_back(std::find(left_out.begin(), left_out.end(), field) == left_out.end());
      if (keep[number]) kept += field + ",";
    }
    kept += "\n";
  }
  return kept;
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Runs the command, killed after a random part of `whole` seconds for the first `kills` times,
// until it ends by itself. Returns how often it was killed.
int killed_often(const std::string& command, double whole, int kills, subquad::Random& random) {
  int killed = 0;
  for (int attempt = 0; attempt < 40; ++attempt) {
    const bool kill = killed < kills;
    const double after = whole * (0.1 + 0.25 * random.uniform());
    const Finished done =
        shell(kill ? fmt::format("timeout -s KILL {:.3f} {}", after, command) : command);
    if (done.status == 137) {
      ++killed;
      continue;
    }
    INFO(done.err);
    REQUIRE(done.status == 0);
    return killed;
  }
  FAIL("never ended");
  return killed;
}

}  // namespace

TEST_CASE("a training run killed at random goes on to the same curve and weights",
          "[cli][train][slow]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const auto command = [&](const std::string& out, int threads = 1) {
    return fmt::format("'{}' train '{}' --threads {} --out '{}'", SUBQUAD_BINARY, dir / "c.yaml",
                       threads, dir / out);
  };
  const double start = seconds();
  REQUIRE(shell(command("whole")).status == 0);
  const double whole = seconds() - start;
  const std::string curve = without(contents(dir / "whole/curves.csv"), {"seconds"});
  CHECK(line_count(curve) == 7);

  REQUIRE(shell(command("again")).status == 0);
  CHECK(without(contents(dir / "again/curves.csv"), {"seconds"}) == curve);
  REQUIRE(shell(command("two", 2)).status == 0);
  CHECK(without(contents(dir / "two/curves.csv"), {"seconds"}) == curve);

  subquad::Random random(
      static_cast<subquad::Seed>(std::chrono::steady_clock::now().time_since_epoch().count()),
      "kills");
  const int killed = killed_often(command("killed"), whole, 3, random);
  CHECK(killed >= 1);
  CHECK(without(contents(dir / "killed/curves.csv"), {"seconds"}) == curve);
  const auto a = subquad::read_safetensors(dir / "whole/checkpoint.safetensors");
  const auto b = subquad::read_safetensors(dir / "killed/checkpoint.safetensors");
  REQUIRE(a.tensors.size() == b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    INFO(name);
    CHECK(tensor.bytes == b.tensors.at(name).bytes);
  }
}

TEST_CASE("a training cell of a sweep killed at random goes on to the same curve",
          "[cli][train][slow]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const auto command = [&](const std::string& out) {
    return fmt::format("'{}' run '{}' --no-plots --out '{}'", SUBQUAD_BINARY, dir / "c.yaml",
                       dir / out);
  };
  const double start = seconds();
  REQUIRE(shell(command("whole")).status == 0);
  const double whole = seconds() - start;
  CHECK_FALSE(fs::exists(dir / "whole/.cache"));
  const std::string curve = without(contents(dir / "whole/curves.csv"), {"seconds", "attempt"});
  CHECK(line_count(curve) == 7);
  subquad::Random random(
      static_cast<subquad::Seed>(std::chrono::steady_clock::now().time_since_epoch().count()),
      "kills");
  const int killed = killed_often(command("killed") + " --resume", whole, 2, random);
  CHECK(killed >= 1);
  CHECK(without(contents(dir / "killed/curves.csv"), {"seconds", "attempt"}) == curve);
  CHECK(line_count(contents(dir / "killed/results.csv")) == 2);
}
