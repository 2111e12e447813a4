// A third party's method, in one file of under 60 lines, beside the built-in ones: as a shared
// object out of the tree, and compiled in.
#include <catch2/catch.hpp>

#include "harness/sweep/results_csv.h"
#include "tests/cli/shell.h"

using namespace subquad::test;

namespace {

const std::string kPlugins = std::string(SUBQUAD_BINARY_DIR) + "/plugins/";

void check_sweep(const std::string& executable, const std::string& plugins) {
  const TemporaryDirectory dir;
  std::ofstream(dir / "sweep.yaml")
      << "name: third_party\n"
      << plugins << "rounds: 1\nthreads: 1\nplots: false\n"
      << "problem: {n: [32, 64], d_k: 8, d_v: 8, causal: [false, true]}\n"
      << "methods: [dense_naive, {name: distance_decay, half_life: [4, 16]}]\n"
      << "tasks: [gaussian]\n"
      << "measure: {min_time_s: 0.005, repetitions: 3, warmup_s: 0}\n";
  const Finished result =
      shell(fmt::format("'{}' run '{}' --out '{}'", executable, dir / "sweep.yaml", dir / "out"));
  CAPTURE(result.err);
  REQUIRE(result.status == 0);
  int third_party = 0, built_in = 0;
  for (const subquad::RowFields& row : subquad::read_results_csv(dir / "out/results.csv")) {
    CHECK((row.at("status") == "ok" || row.at("status") == "unstable"));
    CHECK(std::stod(row.at("time_s")) > 0);
    third_party += row.at("method") == "distance_decay";
    built_in += row.at("method") == "dense_naive";
  }
  CHECK(third_party == 8);
  CHECK(built_in == 4);
}

}  // namespace

TEST_CASE("a third party's method as a shared object runs in a sweep beside the built-in ones",
          "[cli][plugin]") {
  check_sweep(SUBQUAD_BINARY, fmt::format("plugins: ['{}distance_decay.so']\n", kPlugins));
}

TEST_CASE("the same file compiled in runs in a sweep beside the built-in ones", "[cli][plugin]") {
  check_sweep(kPlugins + "subquad_with_third_party", "");
}

TEST_CASE("a third party's method passes the checks that follow from its declarations",
          "[cli][plugin]") {
  const Finished result = subquad::test::subquad(
      fmt::format("test distance_decay --plugin '{}distance_decay.so'", kPlugins));
  CAPTURE(result.out, result.err);
  CHECK(result.status == 0);
}

TEST_CASE("the third party's method is one file of under 60 lines", "[cli][plugin]") {
  const std::string text =
      contents(std::string(SUBQUAD_SOURCE_DIR) + "/examples/plugin/distance_decay.cpp");
  CHECK(line_count(text) > 20);
  CHECK(line_count(text) < 60);
}
