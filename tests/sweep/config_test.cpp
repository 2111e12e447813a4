// Good configs: what they expand to, labels, identities, and the resolved config.
#include "harness/sweep/config.h"

#include <fmt/core.h>
#include <stdlib.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <set>

#include "harness/sweep/config_sweep.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

Config loaded(const std::string& text, const std::vector<std::string>& overrides = {}) {
  std::string path = (fs::temp_directory_path() / "subquad_config_XXXXXX").string();
  const int descriptor = mkstemp(path.data());
  REQUIRE(descriptor >= 0);
  close(descriptor);
  std::ofstream(path) << text;
  struct Remover {
    std::string path;
    ~Remover() { fs::remove(path); }
  } const remover{path};
  return load_config(path, overrides);
}

std::vector<std::string> ids(const Config& config) {
  std::vector<std::string> list;
  for (const Cell& cell : config.cells) list.push_back(cell.id());
  return list;
}

std::set<std::string> labels(const Config& config) {
  std::set<std::string> list;
  for (const Cell& cell : config.cells) list.insert(cell.label);
  return list;
}

// A minimal config with these lines added; a line replaces the one with the same key.
std::string minimal(const std::string& methods = "[fixture_plain]",
                    const std::string& tasks = "[fixture_data]",
                    const std::string& problem = "{n: 256}", const std::string& rest = "") {
  return "name: test\nthreads: 1\nproblem: " + problem + "\nmethods: " + methods +
         "\ntasks: " + tasks + "\n" + rest;
}

const char* const kEverything = R"(
name: everything
description: "every key, with \"quotes\", a backslash \\ and\ntwo lines"
seed: 7
seeds: [1, 9223372036854775807]
rounds: 2
threads: [1, 3]
passes: [forward, backward]
problem:
  batch: [1, 2]
  heads: 4
  n: [256, 512]
  n_kv: [same, 1024]
  head_dim: [32, 64]
  causal: [true, false]
  scale: [auto, 0.3]
methods:
  - fixture_plain
  - {name: fixture_window, window: [64, 256], ratio: [0.1, 1], exact: [true, false],
     mode: [fast, careful], note: ["null", "a: b"], label: "w {window} {ratio} {exact} {mode} {note}",
     max_n: 300, passes: forward, threads: 2}
tasks:
  - {name: fixture_data, needles: [1, 4], temperature: 0.7}
  - {name: fixture_fixed, length: 99}
measure: {min_time_s: 0.001, repetitions: 3, warmup_s: 0, input_sets: 2, decode_tokens: 8,
          max_spread: 0.2, timeout_s: 10.5, memory_limit_mb: 100, pin: true}
error: {max_gflop: 1, rows: 16, matrix_rows: 0, top_k: 4}
plots: false
)";

}  // namespace

TEST_CASE("a small config has the documented defaults", "[config]") {
  const Config config =
      loaded("name: small\nproblem: {n: 256}\nmethods: [fixture_window]\ntasks: [fixture_data]\n");
  CHECK(config.name == "small");
  CHECK(config.seed == 1);
  CHECK(config.rounds == 3);
  CHECK(config.plots);
  CHECK(config.plugins.empty());
  REQUIRE(config.cells.size() == 1);
  const Cell& cell = config.cells[0];
  CHECK(cell.method == "fixture_window");
  CHECK(to_string(cell.method_settings) ==
        "exact=false;mode=fast;note=none;ratio=0.5;sinks=0;window=64");
  CHECK(cell.label == "fixture_window");
  CHECK(to_string(cell.task_settings) == "needles=1;temperature=1");
  CHECK(cell.problem == Problem{.batch = 1, .heads = 1, .n = 256, .n_kv = 256});
  CHECK(cell.pass == Pass::forward);
  CHECK(cell.threads == available_threads());
  CHECK(cell.seed == 1);
  CHECK(cell.measure.min_time_s == 0.1);
  CHECK(cell.measure.repetitions == 5);
  CHECK(cell.measure.timeout_s == 120);
  CHECK_FALSE(cell.measure.pin);
  CHECK(cell.error.max_gflop == 20);
  CHECK(cell.error.matrix_rows == 64);
}

TEST_CASE("lists expand to their product in the order of the file", "[config]") {
  const Config config = loaded(kEverything);
  // Sizes: 2 batch x 2 n x 2 n_kv x 2 head_dim x 2 causal x 2 scale = 64.
  // plain: (64 data sizes x 2 needles + fixed: batch x causal x scale = 8) x 2 passes x 2 threads.
  // window: 32 settings x (data with n_kv <= 300: 16 sizes x 2 needles + fixed 8), one pass.
  const std::size_t plain = (64 * 2 + 8) * 2 * 2, window = 32 * (16 * 2 + 8);
  CHECK(config.cells.size() == 2 * (plain + window));  // 2 seeds
  CHECK(config.cells.front().method == "fixture_plain");
  CHECK(config.cells.back().method == "fixture_window");
  const std::vector<std::string> all = ids(config);
  CHECK(std::set<std::string>(all.begin(), all.end()).size() == all.size());
  for (const Cell& cell : config.cells) {
    CHECK(cell.problem.d_k == cell.problem.d_v);
    if (cell.method == "fixture_window") {
      CHECK(cell.problem.n_kv <= 300);
      CHECK(cell.pass == Pass::forward);
      CHECK(cell.threads == 2);
    }
    if (cell.task == "fixture_fixed") {
      CHECK(cell.problem.n == 99);
      CHECK(cell.problem.d_k == 32);
    }
  }
}

TEST_CASE("the resolved config reads back to the same cells and to itself", "[config]") {
  for (const std::string& text : {std::string(kEverything), minimal(),
                                  minimal("[fixture_window, {name: fixture_window, window: 8}]")}) {
    const Config config = loaded(text);
    const Config again = loaded(config.resolved_yaml);
    CHECK(again.resolved_yaml == config.resolved_yaml);
    CHECK(ids(again) == ids(config));
    CHECK(again.name == config.name);
    CHECK(again.seed == config.seed);
    CHECK(again.rounds == config.rounds);
    CHECK(again.plots == config.plots);
    REQUIRE(again.cells.size() == config.cells.size());
    for (std::size_t i = 0; i < config.cells.size(); ++i) {
      const Cell &a = config.cells[i], &b = again.cells[i];
      if (a.label != b.label || a.measure.timeout_s != b.measure.timeout_s ||
          a.measure.max_spread != b.measure.max_spread ||
          a.measure.memory_limit_mb != b.measure.memory_limit_mb)
        FAIL("cell " << i << ": " << a.str());
    }
  }
}

TEST_CASE("words that YAML reads as something else survive as names and texts", "[config]") {
  for (const char* word : {"null", "true", "12", "no"}) {
    const Config config =
        loaded(minimal("[{name: fixture_window, note: \"" + std::string(word) + "\"}]"),
               {"name=\"" + std::string(word) + "\""});
    CHECK(config.name == word);
    CHECK(loaded(config.resolved_yaml).name == word);
    CHECK(ids(loaded(config.resolved_yaml)) == ids(config));
  }
}

TEST_CASE("the identity of cells does not change by accident", "[config]") {
  // A change of these ids makes every stored result unfindable: it needs a good reason.
  const Config config = loaded(
      minimal("[fixture_plain, {name: fixture_window, window: 32, ratio: 0.25}]",
              "[{name: fixture_data, needles: [1, 2]}]", "{n: 512, heads: 2, causal: true}"));
  CHECK(ids(config) == std::vector<std::string>{"1ca94a9606426bbc", "044deb9aae3aa82a",
                                                "776231442d055eaf", "061ce190fe9c1fac"});
}

TEST_CASE("default labels name the parameters that differ", "[config]") {
  using Labels = std::set<std::string>;
  CHECK(labels(loaded(minimal("[fixture_window]"))) == Labels{"fixture_window"});
  CHECK(labels(loaded(minimal("[{name: fixture_window, window: 8}]"))) == Labels{"fixture_window"});
  CHECK(labels(loaded(minimal("[{name: fixture_window, window: [8, 16]}]"))) ==
        Labels{"fixture_window window=8", "fixture_window window=16"});
  // Also when the values stand in entries of their own.
  CHECK(
      labels(loaded(minimal("[{name: fixture_window, window: 8, mode: slow}, fixture_window]"))) ==
      Labels{"fixture_window window=8 mode=slow", "fixture_window window=64 mode=fast"});
  CHECK(labels(loaded(minimal("[{name: fixture_window, window: [8, 16], ratio: 0.25, label: "
                              "\"window of {window}, {ratio}\"}]"))) ==
        Labels{"window of 8, 0.25", "window of 16, 0.25"});
  // The same settings may stand twice under one label, for different passes.
  CHECK(labels(loaded(minimal("[{name: fixture_plain, passes: forward}, {name: fixture_plain, "
                              "passes: backward}]"))) == Labels{"fixture_plain"});
}

TEST_CASE("a method entry's passes and threads replace those of the config", "[config]") {
  const Config config = loaded(
      minimal("[fixture_plain, {name: fixture_window, passes: [forward, decode], threads: [2, 4]}]",
              "[fixture_data]", "{n: 256}", "passes: [forward, backward]\n"));
  std::multiset<std::string> found;
  for (const Cell& cell : config.cells)
    found.insert(cell.method + " " + std::string(name(cell.pass)) + " " +
                 std::to_string(cell.threads));
  CHECK(found == std::multiset<std::string>{"fixture_plain forward 1", "fixture_plain backward 1",
                                            "fixture_window forward 2", "fixture_window forward 4",
                                            "fixture_window decode 2", "fixture_window decode 4"});
}

TEST_CASE("combinations that a method does not support stay cells", "[config]") {
  // The fixture has neither a causal form nor cross-attention nor a backward pass.
  const Config config = loaded(minimal("[fixture_plain]", "[fixture_data]",
                                       "{n: 256, n_kv: 512, causal: true}", "passes: backward\n"));
  CHECK(config.cells.size() == 1);
}

TEST_CASE("a task that fixes the length makes one cell of a sweep over n", "[config]") {
  const Config config = loaded(minimal(
      "[fixture_plain]", "[{name: fixture_fixed, length: [50, 60]}]", "{n: [256, 512, 1024]}"));
  REQUIRE(config.cells.size() == 2);
  CHECK(config.cells[0].problem.n == 50);
  CHECK(config.cells[1].problem.n == 60);
  // It needs no n at all; another task in the same config does.
  CHECK(loaded(minimal("[fixture_plain]", "[fixture_fixed]", "{heads: 2}")).cells.size() == 1);
  CHECK(loaded("name: a\nmethods: [fixture_plain]\ntasks: [fixture_fixed]\n").cells.size() == 1);
  CHECK_THROWS_WITH(
      loaded(minimal("[fixture_plain]", "[fixture_fixed, fixture_data]", "{heads: 2}")),
      Catch::Contains("key \"n\" is missing"));
}

TEST_CASE("max_n leaves longer problems out", "[config]") {
  const auto lengths = [](const Config& config) {
    std::multiset<Index> list;
    for (const Cell& cell : config.cells) list.insert(cell.problem.n);
    return list;
  };
  CHECK(lengths(loaded(minimal("[{name: fixture_plain, max_n: 512}, fixture_window]",
                               "[fixture_data]", "{n: [256, 512, 1024]}"))) ==
        std::multiset<Index>{256, 512, 256, 512, 1024});
  // Keys count as well.
  CHECK(lengths(loaded(minimal("[{name: fixture_plain, max_n: 512}]", "[fixture_data]",
                               "{n: [256, 512], n_kv: [same, 2048]}"))) ==
        std::multiset<Index>{256, 512});
}

TEST_CASE("seeds default to the seed", "[config]") {
  const auto seeds = [](const Config& config) {
    std::set<Seed> list;
    for (const Cell& cell : config.cells) list.insert(cell.seed);
    return list;
  };
  CHECK(seeds(loaded(minimal())) == std::set<Seed>{1});
  CHECK(seeds(loaded(minimal(), {"seed=42"})) == std::set<Seed>{42});
  const Config config = loaded(minimal() + "seed: 42\nseeds: [3, 4]\n");
  CHECK(config.seed == 42);
  CHECK(seeds(config) == std::set<Seed>{3, 4});
}

TEST_CASE("threads: all is the number of processors, once", "[config]") {
  const std::string twice = fmt::format("threads=[{}, all]", available_threads());
  CHECK(loaded(minimal(), {"threads=all"}).cells.at(0).threads == available_threads());
  CHECK(loaded(minimal(), {twice}).cells.size() == 1);
  CHECK_THROWS_AS(loaded(minimal(), {"threads=[all, all]"}), ConfigError);
}

TEST_CASE("overrides replace, add and reach into lists", "[config]") {
  const Config config =
      loaded(minimal("[fixture_plain, {name: fixture_window, window: 8}]"),
             {"problem.n=[128, 64]", "methods[1].window=[16, 32]", "measure.repetitions=2",
              "error.top_k=5", "rounds=1", "name=other", "measure.min_time_s=0.5"});
  CHECK(config.name == "other");
  CHECK(config.rounds == 1);
  REQUIRE(config.cells.size() == 2 * 3);
  CHECK(config.cells[0].problem.n == 128);
  CHECK(config.cells[0].measure.repetitions == 2);
  CHECK(config.cells[0].measure.min_time_s == 0.5);
  CHECK(config.cells[0].error.top_k == 5);
  CHECK(labels(config).contains("fixture_window window=32"));
  // A wrong value of the file does not matter once it is replaced; the last override wins.
  CHECK(loaded(minimal() + "rounds: x\n", {"rounds=2", "rounds=4"}).rounds == 4);
  CHECK(loaded(minimal(), {"problem={n: 32, heads: 2}"}).cells.at(0).problem.heads == 2);
  CHECK(loaded(minimal(), {"methods=[{name: fixture_window, note: \"a=b\"}]"})
            .cells.at(0)
            .method_settings.at("note") == ParamValue(std::string("a=b")));
}

TEST_CASE("aliases inside the budget are values like others", "[config]") {
  const Config config = loaded(
      "name: a\nthreads: 1\nproblem: {n: &sizes [256, 512], n_kv: 1024}\nseeds: *sizes\n"
      "methods: [fixture_plain]\ntasks: [fixture_data]\n");
  CHECK(config.cells.size() == 4);
}

TEST_CASE("a real may be written as an integer, and numbers keep every digit", "[config]") {
  const auto ratio = [](const std::string& text) {
    return std::get<double>(loaded(minimal("[{name: fixture_window, ratio: " + text + "}]"))
                                .cells.at(0)
                                .method_settings.at("ratio"));
  };
  CHECK(ratio("1") == 1.0);
  CHECK(ratio("0.1") == 0.1);
  CHECK(ratio("1e-3") == 0.001);
  CHECK(ratio(".25") == 0.25);
  CHECK(ratio("0.30000000000000004") == 0.1 + 0.2);
}

TEST_CASE("a million cells are the limit", "[config]") {
  std::string sizes = "1";
  for (int i = 2; i <= 1000; ++i) sizes += fmt::format(",{}", i);
  CHECK_THROWS_WITH(loaded(minimal("[fixture_plain]", "[fixture_data]",
                                   "{n: [" + sizes + "], heads: [" + sizes +
                                       "], causal: [true, "
                                       "false]}")),
                    Catch::Contains("has 2000000 cells, at most 1000000 are allowed"));
  const Config config = loaded(
      minimal("[fixture_plain]", "[fixture_data]", "{n: [" + sizes + "], causal: [true, false]}"));
  CHECK(config.cells.size() == 2000);
}

TEST_CASE("a list that cannot be read does not let the others multiply", "[config]") {
  std::string window = "1", ratio = "0";
  for (int i = 2; i <= 4096; ++i) window += fmt::format(",{}", i);
  for (int i = 1; i <= 4096; ++i) ratio += fmt::format(",{}", i / 8192.0);
  CHECK_THROWS_WITH(loaded(minimal(fmt::format("[fixture_plain, {{name: fixture_window, window: "
                                               "[{}], ratio: [{}], mode: quick}}]",
                                               window, ratio))),
                    Catch::Contains("got \"quick\", expected one of: fast, slow, careful"));
}

TEST_CASE("every field of the measure and error options has a key", "[config]") {
  // A field more or less in the structs does not compile here: then its key, its line in
  // resolved_yaml() and its row in configs/README.md are wanted as well.
  [[maybe_unused]] const auto& [m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12] =
      MeasureOptions{};
  [[maybe_unused]] const auto& [e1, e2, e3, e4] = ErrorOptions{};
  CHECK(measure_fields().size() == 12);
  CHECK(error_fields().size() == 4);
  const std::string text = loaded(minimal()).resolved_yaml;
  for (const auto& field : measure_fields())
    CHECK(text.find("\n  " + field.spec.name + ": ") != std::string::npos);
  for (const auto& field : error_fields())
    CHECK(text.find("\n  " + field.spec.name + ": ") != std::string::npos);
}
