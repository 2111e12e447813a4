// A sweep in parts through the real binary: plan, shards, the local pool, merge, compare. What is
// not measured must not depend on where, when and in which order it was computed.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

// Twelve cells that differ in what may go wrong: random methods, gradients, two seeds.
constexpr const char* kConfig =
    "name: shards\nrounds: 1\nthreads: 1\nseeds: [1, 2]\n"
    "problem: {n: [24, 33], d_k: 8, d_v: 8, causal: true}\n"
    "methods: [dense, performer, {name: sliding_window, window: 8}]\n"
    "tasks: [gaussian]\n"
    "measure: {min_time_s: 0.001, repetitions: 2, warmup_s: 0.001, max_spread: 1000}\n"
    "plots: false\n";

// Eight trainings: what was learned, as accuracy and loss, in a shard of its own and beside others.
constexpr const char* kTraining =
    "name: shards\nrounds: 1\nthreads: 1\nseeds: [1, 2]\npasses: train\n"
    "problem: {batch: 8, heads: 2, n: 32, head_dim: 8, causal: true}\n"
    "methods: [dense, linear, performer, {name: zeta, top_k: 4, chunk: 8}]\n"
    "tasks: [{name: mqar, vocabulary: 64, pairs: 4, power_a: 0.01, random_non_queries: false}]\n"
    "train: {layers: 1, mlp: 0, dropout: 0.1, positions: none, conv: 3, learning_rate: 0.01,\n"
    "        steps: 60, warmup: 4, eval_every: 20, eval_examples: 256}\n"
    "plots: false\n";

void write_config(const TemporaryDirectory& dir) { std::ofstream(dir / "c.yaml") << kConfig; }

Finished in(const TemporaryDirectory& dir, const std::string& arguments) {
  return shell(fmt::format("cd '{}' && '{}' {}", dir.path().string(), SUBQUAD_BINARY, arguments));
}

}  // namespace

TEST_CASE("errors and accuracies are the same bits in any order, sharded or resumed",
          "[cli][shards]") {
  const auto [config, rows] = GENERATE(table<std::string, int>({{kConfig, 12}, {kTraining, 8}}));
  const TemporaryDirectory dir;
  std::ofstream(dir / "c.yaml") << config;
  const auto same = [&, rows = rows](const std::string& other) {
    const Finished compared = in(dir, "compare whole " + other + " --values");
    INFO(other << ": " << compared.out << compared.err);
    CHECK(compared.status == 0);
    CHECK(compared.out.find(fmt::format("{} and {} rows: the same", rows, rows)) !=
          std::string::npos);
  };
  REQUIRE(in(dir, "run c.yaml --out whole").status == 0);
  // Another seed of the shuffle: another order of the same cells.
  REQUIRE(in(dir, "run c.yaml --out shuffled --set seed=77").status == 0);
  CHECK(contents(dir / "whole/attempts.log").substr(0, 16) !=
        contents(dir / "shuffled/attempts.log").substr(0, 16));
  same("shuffled");
  // In two runs, the second of which resumes.
  REQUIRE(in(dir, "run c.yaml --out resumed --filter 'method=performer'").status == 0);
  REQUIRE(in(dir, "run c.yaml --out resumed --resume").status == 0);
  same("resumed");
  // Sharded by four, in the other order.
  for (int shard = 3; shard >= 0; --shard)
    REQUIRE(in(dir, fmt::format("run c.yaml --shard {}/4", shard)).status == 0);
  const Finished merged = in(dir, "merge results/shards --out merged");
  INFO(merged.err);
  REQUIRE(merged.status == 0);
  CHECK(merged.err.find(fmt::format("merged 4 directories: {} of {} runs", rows, rows)) !=
        std::string::npos);
  same("merged");
}

TEST_CASE("a difference of values, and rows that are gone, are told by the status",
          "[cli][shards]") {
  const TemporaryDirectory dir;
  write_config(dir);
  REQUIRE(in(dir, "run c.yaml --out whole").status == 0);
  REQUIRE(in(dir, "run c.yaml --out again").status == 0);
  REQUIRE(in(dir, "run c.yaml --out fewer --filter 'method=dense'").status == 0);
  CHECK(in(dir, "compare whole fewer --values").status == 1);
  CHECK(in(dir, "compare whole fewer --include-unstable --threshold 10").status == 1);
  CHECK(in(dir, "compare whole again --include-unstable --threshold 10").status == 0);
  CHECK(in(dir, "compare whole nowhere").status == 2);
}

TEST_CASE("what merge says is missing of a filtered sweep can be run as it says", "[cli][shards]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const std::string filter = " --filter 'method=dense|performer'";
  REQUIRE(in(dir, "run c.yaml --shard 0/4" + filter).status == 0);
  const Finished partial = in(dir, "merge results/shards --out merged");
  INFO(partial.err);
  CHECK(partial.status == 1);
  CHECK(partial.err.find("of 8 runs") != std::string::npos);
  const std::string words = "what is left with: subquad ";
  const std::size_t start = partial.err.find(words);
  REQUIRE(start != std::string::npos);
  const std::size_t first = start + words.size();
  const Finished rest = in(dir, partial.err.substr(first, partial.err.find('\n', first) - first));
  INFO(rest.err);
  CHECK(rest.status == 0);
  const Finished merged = in(dir, "merge results/shards --out merged");
  INFO(merged.err);
  CHECK(merged.status == 0);
  CHECK(merged.err.find("8 of 8 runs") != std::string::npos);
  CHECK(line_count(contents(dir / "merged/results.csv")) == 9);
}

TEST_CASE("the local pool runs shards on cores of their own, and the rows say so",
          "[cli][shards]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const std::string submit = "submit c.yaml --engine local --shards 2 --out pool --set seeds=1";
  // Two runners need two cores; where there is one only, that is refused before anything runs.
  const Finished two = in(dir, submit + " --jobs 2");
  INFO(two.err);
  const bool refused = two.status == 2;
  if (refused) {
    CHECK(two.err.find("cores of their own") != std::string::npos);
    REQUIRE(in(dir, submit).status == 0);
  } else {
    REQUIRE(two.status == 0);
  }
  const std::string rows = contents(dir / "pool/merged/results.csv");
  CHECK(line_count(rows) == 7);
  CHECK(rows.find(refused ? ";runners=1;" : ";runners=2;") != std::string::npos);
  CHECK(contents(dir / "pool/log/shard-0-of-2.log").find("runs asked for") != std::string::npos);
  // Again: there is nothing to do, and the result stays.
  CHECK(in(dir, submit).status == 0);
  CHECK(contents(dir / "pool/merged/results.csv") == rows);
  // As many shards as runners though the sweep is short, or it is said that there are fewer.
  const Finished small =
      in(dir, "submit c.yaml --engine local --jobs 2 --set seeds=1 --out small --dry-run");
  if (!refused) {
    CHECK(small.status == 0);
    CHECK(small.out.find("--shard 1/2") != std::string::npos);
    CHECK(small.out.find("--runners 2") != std::string::npos);
  }
  const Finished fewer = in(dir, "submit c.yaml --engine local --jobs 3 --shards 1 --dry-run");
  CHECK(fewer.err.find("1 runners at once instead of 3") != std::string::npos);
  // Another config does not replace what the shards of the first one read.
  const std::string config = contents(dir / "pool/submit/config.yaml");
  const Finished other = in(dir, "submit c.yaml --engine local --shards 2 --out pool");
  CHECK(other.status == 2);
  CHECK(other.err.find("another submission") != std::string::npos);
  CHECK(contents(dir / "pool/submit/config.yaml") == config);
  // More at once than there are cores is refused.
  const Finished many =
      in(dir, "submit c.yaml --engine local --shards 4 --jobs 4 --set threads=1024");
  CHECK(many.status == 2);
  CHECK(many.err.find("cores of their own") != std::string::npos);
}

TEST_CASE("a plan names cells, shards and estimates; a batch file can be read before it is sent",
          "[cli][shards]") {
  const TemporaryDirectory dir;
  write_config(dir);
  const Finished plan = in(dir, "plan c.yaml --shards 3 --json");
  REQUIRE(plan.status == 0);
  const auto json = nlohmann::json::parse(plan.out);
  REQUIRE(json["cells"].size() == 12);
  std::set<std::string> ids;
  std::set<int> shards;
  for (const auto& cell : json["cells"]) {
    ids.insert(cell["cell"].get<std::string>());
    shards.insert(cell["shard"].get<int>());
    CHECK(cell["seconds"].get<double>() > 0);
    CHECK(cell["bytes"].get<double>() > 1e6);
  }
  CHECK(ids.size() == 12);
  CHECK(shards == std::set<int>{0, 1, 2});
  const Finished words = in(dir, "plan c.yaml --shards 3");
  CHECK(words.out.find("12 cells x 1 rounds = 12 runs") != std::string::npos);
  CHECK(words.out.find("2/3") != std::string::npos);

  const Finished dry = in(dir, "submit c.yaml --engine slurm --shards 9 --at-once 2 --dry-run");
  INFO(dry.out << dry.err);
  CHECK(dry.status == 0);
  CHECK(dry.out.find("#SBATCH --array=0-3%2\n") != std::string::npos);  // four groups of cells
  CHECK(dry.out.find("#SBATCH --exclusive\n") != std::string::npos);
  CHECK(in(dir, "submit c.yaml --engine slurm --time 1 --dry-run").status == 2);
  CHECK(in(dir, "submit c.yaml --engine pbs --dry-run").status == 2);
  CHECK_FALSE(fs::exists(dir / "results"));
}
