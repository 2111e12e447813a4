// The configs that ship: each loads, expands, reads back, and asks for nothing that is unsupported.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>

#include "harness/core/registry.h"
#include "harness/sweep/config.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

// Configs whose files the user supplies, and what they say without them.
const std::map<std::string, std::string> kNeedFiles{
    {"npy_capture", "npy: capture: not a directory"},
    {"captured", "results/recall: no such file"},
    {"a1_model", "results/adore_a1/model: no such file"},
    {"a5_mqar", "results/adore_a5/mqar: no such file"},
    {"a5_mqar_fit", "results/adore_a5/mqar: no such file"},
    {"a5_char_lm", "results/adore_a5/char_lm: no such file"},
    {"a5_char_lm_fit", "results/adore_a5/char_lm: no such file"},
    {"cifar", "results/linear_transformers_cifar/model: no such file"},
    {"mnist", "results/linear_transformers_mnist/model: no such file"},
    {"r6", "r6_recall: no such file"},
    {"r3_trained", "capture: not a directory"},
    {"plugin", "No such file or directory"},
    {"peers", "unknown method"}};

std::vector<fs::path> shipped() {
  std::vector<fs::path> paths;
  for (const auto& entry :
       fs::recursive_directory_iterator(fs::path(SUBQUAD_SOURCE_DIR) / "configs"))
    // Beside a config lies what the paper says of it: NAME.expect.yaml, see
    // configs/papers/README.md.
    if (entry.path().extension() == ".yaml" && entry.path().stem().extension() != ".expect")
      paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

TEST_CASE("every config that ships loads and asks for nothing unsupported", "[config]") {
  // In a build without the standard methods there is nothing to check them against.
  REQUIRE(Registry::instance().find_method("dense") != nullptr);
  REQUIRE(shipped().size() >= 10);
  for (const fs::path& path : shipped()) {
    INFO(path.string());
    const std::string stem = path.stem().string();
    if (const auto needs = kNeedFiles.find(stem); needs != kNeedFiles.end()) {
      CHECK_THROWS_WITH(load_config(path.string()), Catch::Contains(needs->second));
      continue;
    }
    const Config config = load_config(path.string());
    // Results of papers' configs do not meet in one directory: their names begin with the paper.
    const fs::path folder = path.parent_path();
    const bool paper = folder.parent_path().filename() == "papers";
    CHECK(config.name == (paper ? folder.filename().string() + "_" + stem : stem));
    CHECK_FALSE(config.cells.empty());
    CHECK(config.cells.size() <= 1000);
    std::map<std::string, std::unique_ptr<Method>> methods;
    for (const Cell& cell : config.cells) {
      std::unique_ptr<Method>& method = methods[cell.method + to_string(cell.method_settings)];
      if (!method) method = make_method(cell.method, cell.method_settings);
      INFO(cell.str());
      CHECK(unsupported_reason(Registry::instance().method(cell.method), *method, cell.problem,
                               cell.pass) == "");
      CHECK(make_task(cell.task, cell.task_settings)->unsupported(cell.problem) == "");
    }
    std::string copy = (fs::temp_directory_path() / "subquad_resolved_XXXXXX").string();
    const int descriptor = mkstemp(copy.data());
    REQUIRE(descriptor >= 0);
    close(descriptor);
    std::ofstream(copy) << config.resolved_yaml;
    const Config again = load_config(copy);
    fs::remove(copy);
    REQUIRE(again.cells.size() == config.cells.size());
    for (std::size_t i = 0; i < config.cells.size(); ++i)
      CHECK(again.cells[i].id() == config.cells[i].id());
  }
}

TEST_CASE("the quickstart has the methods, tasks, lengths and passes that its text promises",
          "[config]") {
  REQUIRE(Registry::instance().find_method("dense") != nullptr);
  const Config config =
      load_config((fs::path(SUBQUAD_SOURCE_DIR) / "configs/quickstart.yaml").string());
  const auto count = [&](const std::string& filter) {
    return filter_cells(config.cells, filter).size();
  };
  for (const char* method : {"dense", "linear", "sliding_window"})
    for (const char* task : {"mqar", "needle", "gaussian"})
      for (const char* n : {"256", "512", "1024", "2048", "4096", "8192"})
        CHECK(count(std::string("pass=forward,method=") + method + ",task=" + task + ",n=" + n) >=
              1);
  for (const char* method : {"dense_naive", "topk_exact"})
    CHECK(count(std::string("pass=forward,method=") + method) == 3 * 5);
  for (const char* method : {"dense", "dense_naive", "sliding_window", "topk_exact"})
    CHECK(count(std::string("pass=backward,method=") + method) >= 3 * 4);
  CHECK(count("pass=backward,method=linear") == 0);
}
