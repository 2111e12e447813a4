// Training as a pass of a sweep: config, cells, rows, curves.
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "harness/core/method_weights.h"
#include "harness/measure/train_cell.h"
#include "harness/model/options.h"
#include "harness/sweep/config.h"
#include "harness/sweep/results_store.h"
#include "harness/sweep/worker.h"

using namespace subquad;
namespace fs = std::filesystem;

namespace {

struct Folder {
  std::string path = (fs::temp_directory_path() / "subquad_train_XXXXXX").string();
  Folder() { REQUIRE(mkdtemp(path.data()) != nullptr); }
  ~Folder() { fs::remove_all(path); }
};

std::string slurp(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

const std::string kConfig = R"(
name: study
threads: 1
rounds: 1
passes: [forward, train]
seeds: [1, 2]
problem: {batch: 8, n: 16, head_dim: [8, 16], causal: true}
methods: [dense]
tasks: [{name: mqar, vocabulary: 64, pairs: 2}]
train: {layers: 1, conv: 3, mlp: 0, positions: none, learning_rate: [0.01, 0.001], steps: 6, warmup: 2, eval_every: 3, eval_examples: 16}
)";

Config loaded(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const Folder folder;
  std::ofstream(folder.path + "/c.yaml") << text;
  return load_config(folder.path + "/c.yaml", overrides);
}

Cell training(const std::string& filter = "learning_rate=0.01") {
  const auto cells = filter_cells(loaded(kConfig, {"seeds=1", "problem.head_dim=8"}).cells,
                                  "pass=train," + filter);
  REQUIRE(cells.size() == 1);
  return cells.front();
}

JobResult run(const Cell& cell) {
  Job job;
  job.cell = cell;
  return run_job(job);
}

}  // namespace

TEST_CASE("options of training multiply the train pass and no other", "[sweep][train]") {
  const Config config = loaded(kConfig);
  CHECK(filter_cells(config.cells, "pass=forward").size() == 4);
  CHECK(filter_cells(config.cells, "pass=train").size() == 8);
  CHECK(filter_cells(config.cells, "learning_rate=0.001").size() == 4);
  for (const Cell& cell : config.cells) {
    CHECK(cell.train.empty() == (cell.pass != Pass::train));
    const Cell back = nlohmann::json::parse(nlohmann::json(cell).dump()).get<Cell>();
    CHECK(back.id() == cell.id());
    CHECK(back.train == cell.train);
  }
  const Config again = loaded(config.resolved_yaml);
  REQUIRE(again.cells.size() == config.cells.size());
  for (std::size_t i = 0; i < again.cells.size(); ++i)
    CHECK(again.cells[i].id() == config.cells[i].id());
  // An identity without training does not know of it.
  const Config other = loaded(kConfig, {"train.steps=7"});
  for (std::size_t i = 0; i < config.cells.size(); ++i)
    CHECK((other.cells[i].id() == config.cells[i].id()) == (config.cells[i].pass != Pass::train));
}

TEST_CASE("every option of training has a key and a row in the documentation", "[sweep][train]") {
  const std::string text = loaded(kConfig).resolved_yaml;
  const std::string page = slurp(SUBQUAD_SOURCE_DIR "/configs/README.md");
  for (const auto& field : train_fields()) {
    INFO(field.spec.name);
    CHECK(text.find("\n  " + field.spec.name + ": ") != std::string::npos);
    CHECK(page.find("| `" + field.spec.name + "` |") != std::string::npos);
  }
}

TEST_CASE("mistakes in the train section are errors with a place", "[sweep][train]") {
  CHECK_THROWS_WITH(loaded(kConfig, {"train.lerning_rate=1"}),
                    Catch::Contains("did you mean \"learning_rate\""));
  CHECK_THROWS_WITH(loaded(kConfig, {"train.layers=-1"}), Catch::Contains("train.layers"));
  CHECK_THROWS_WITH(loaded(kConfig, {"train.schedule=cosin"}), Catch::Contains("cosine"));
  CHECK_THROWS_WITH(loaded(kConfig, {"train=[1]"}), Catch::Contains("train"));
}

TEST_CASE("a training run fills its columns and a curve", "[sweep][train]") {
  const JobResult result = run(training());
  INFO(result.reason);
  REQUIRE(result.status == Status::ok);
  for (const char* column :
       {"accuracy", "loss", "bits", "perplexity", "evaluation", "steps", "tokens_per_s", "time_s",
        "vm_hwm_bytes", "parameters", "floors", "validation_loss", "stopped"}) {
    INFO(column);
    CHECK(result.columns.contains(column));
  }
  CHECK(result.columns.at("steps") == "6");
  const double loss = std::stod(result.columns.at("loss"));
  CHECK(std::abs(std::stod(result.columns.at("bits")) - loss / std::log(2.0)) <= 1e-9);
  CHECK(loss < 1.2 * std::log(64));
  REQUIRE(result.curve.size() == 2);
  CHECK(result.curve[0].substr(0, 2) == "3,");
  const JobResult again = run(training());
  CHECK(again.columns.at("loss") == result.columns.at("loss"));
  CHECK(run(training("learning_rate=0.001")).columns.at("loss") != result.columns.at("loss"));
  const JobResult sent = nlohmann::json::parse(nlohmann::json(result).dump()).get<JobResult>();
  CHECK(sent.curve == result.curve);
}

TEST_CASE("what cannot be trained is unsupported", "[sweep][train]") {
  Cell cell = training();
  cell.task = "gaussian";
  cell.task_settings.clear();
  CHECK(run(cell).status == Status::unsupported);
  cell = training();
  cell.problem.n = cell.problem.n_kv = 17;  // mqar needs an even n
  CHECK(run(cell).status == Status::unsupported);
  cell = training();
  cell.problem.n_kv = 32;
  CHECK(run(cell).status == Status::unsupported);
}

TEST_CASE("curves are stored beside the rows", "[sweep][train]") {
  const Folder folder;
  const int descriptor = open(folder.path.c_str(), O_RDONLY | O_DIRECTORY);
  REQUIRE(descriptor >= 0);
  {
    ResultsStore store(descriptor, folder.path);
    const RowFields row{
        {"cell_id", "0123456789abcdef"}, {"round", "0"}, {"attempt", "1"}, {"status", "ok"}};
    store.append(row, {});
    CHECK_FALSE(fs::exists(folder.path + "/curves.csv"));
    store.append(row, {}, {"3,1.5,1.25,0.5,0.001,0.100", "6,1,1,0.75,0.001,0.200"});
    std::ofstream(folder.path + "/curves.csv", std::ios::app) << "torn";
    store.append(row, {}, {"9,1,1,1,0.001,0.300"});
    store.close();
  }
  close(descriptor);
  CHECK(slurp(folder.path + "/curves.csv") ==
        "cell_id,round,attempt,step,train_loss,validation_loss,validation_accuracy,learning_rate,"
        "seconds\n"
        "0123456789abcdef,0,1,3,1.5,1.25,0.5,0.001,0.100\n"
        "0123456789abcdef,0,1,6,1,1,0.75,0.001,0.200\n"
        "0123456789abcdef,0,1,9,1,1,1,0.001,0.300\n");
}

TEST_CASE("a sweep takes q, k and v from a trained model", "[sweep][train][capture]") {
  const Folder folder;
  const Cell cell = training();
  const auto task = make_task(cell.task, cell.task_settings);
  train(train_setup(cell, *task), {folder.path, false}, {});
  const std::string config =
      "name: captured\nthreads: 1\nrounds: 1\nseeds: 4\nproblem: {batch: 2, n: 99}\n"
      "methods: [dense, {name: sliding_window, window: 4, sinks: 0}]\n"
      "tasks: [{name: mqar, from: " +
      folder.path +
      ", layer: [0, 1]}]\n"
      "measure: {min_time_s: 1e-4, repetitions: 1, warmup_s: 0, input_sets: 2}\n";
  CHECK_THROWS_WITH(loaded(config), Catch::Contains("has 1 layers"));
  CHECK_THROWS_WITH(loaded(config, {"tasks[0].layer=0", "tasks[0].pairs=[2, 4]"}),
                    Catch::Contains("trained with pairs=2, got pairs=4"));
  const Config sweep = loaded(config, {"tasks[0].layer=0", "tasks[0].head=[-1, 0]"});
  REQUIRE(sweep.cells.size() == 4);
  CHECK(to_string(sweep.cells[0].task_settings) ==
        "cache=true;from=" + folder.path + ";head=-1;layer=0");
  CHECK(sweep.cells[0].problem.n == 16);
  CHECK(sweep.cells[0].problem.causal);
  for (const Cell& one : sweep.cells) {
    const JobResult result = run(one);
    INFO(one.str() << ": " << result.reason);
    REQUIRE((result.status == Status::ok || result.status == Status::unstable));
    const double error = std::stod(result.columns.at("rel_error"));
    if (one.method == "dense") {
      CHECK(error <= 1e-5);
    } else {
      CHECK(error > 1e-3);
    }
  }
  const Config again = loaded(sweep.resolved_yaml);
  REQUIRE(again.cells.size() == 4);
  CHECK(again.cells[3].id() == sweep.cells[3].id());
  Cell training_on_it = cell;
  training_on_it.task_settings = sweep.cells[0].task_settings;
  CHECK(run(training_on_it).status == Status::unsupported);
}

TEST_CASE("rows say what their weights went through", "[sweep][train][fit]") {
  const Folder folder;
  const std::string config = R"(
name: origin
threads: 1
rounds: 1
passes: [train, forward, fit]
seeds: 5
problem: {batch: 2, heads: 2, n: 24, head_dim: 8, causal: false}
methods: [{name: sea, cells: 8, top_k: 6, stretch: 1}]
tasks: [{name: mqar_fused, n_keys: 20, n_values: 6}]
train: {layers: 1, mlp: 0, merge: sum, steps: 2, warmup: 1, eval_every: 2, eval_examples: 2}
fit: {steps: 3, sets: 1, save: )" +
                             folder.path + R"(/fit.safetensors}
measure: {min_time_s: 1e-4, repetitions: 1, warmup_s: 0, input_sets: 1}
)";
  const auto row = [&](const std::string& pass, std::vector<std::string> overrides) {
    overrides.push_back("passes=" + pass);
    const Config one = loaded(config, overrides);
    REQUIRE(one.cells.size() == 1);
    const JobResult result = run(one.cells[0]);
    INFO(result.reason);
    REQUIRE((result.status == Status::ok || result.status == Status::unstable));
    return result.columns;
  };
  const std::string teacher = folder.path + "/teacher-5.safetensors",
                    student = folder.path + "/student.safetensors";
  CHECK(row("forward", {}).at("learned_from") == "initial");
  auto columns = row("fit", {});
  CHECK(columns.at("learned_from") == "fit");
  CHECK(columns.at("fit_steps") == "3");
  CHECK(std::stod(columns.at("fit_s")) > 0);
  columns = row("forward", {"methods[0].weights=" + folder.path + "/fit.safetensors", "seeds=6"});
  CHECK(columns.at("learned_from") == folder.path + "/fit.safetensors");
  CHECK(weights_seed(folder.path + "/fit.safetensors") == Seed{5});

  columns = row("train", {"train.steps=0"});
  CHECK(columns.at("learned_from") == "initial");
  CHECK(columns.at("steps") == "0");
  CHECK_FALSE(columns.contains("fit_steps"));
  columns = row("train",
                {"methods=[dense]", "train.save=" + folder.path + "/teacher-{seed}.safetensors"});
  CHECK(columns.at("learned_from") == "train");
  // A student that nothing was done to is not taken for a trained one.
  columns = row("train", {"train.teacher=" + teacher, "train.steps=0"});
  CHECK(columns.at("learned_from") == teacher + " without methods");
  columns =
      row("train", {"train.teacher=" + teacher, "train.fit_steps=4", "train.save=" + student});
  CHECK(columns.at("learned_from") == teacher + " without methods;fit;train");
  CHECK(columns.at("fit_steps") == "4");
  CHECK(std::stod(columns.at("fit_s")) > 0);
  CHECK(columns.at("steps") == "2");
  CHECK(std::stod(columns.at("time_s")) > 0);  // of a step
  columns = row("train", {"train.init=" + student, "train.steps=0", "methods[0].top_k=12"});
  CHECK(columns.at("learned_from") == student);
  // The random features of a layer come with its weights.
  columns = row("forward", {"methods[0].weights=" + student + ":0", "seeds=6"});
  CHECK(columns.at("learned_from") == student + ":0");
  CHECK(weights_seed(student + ":0") == derive(Seed{5}, "method", {0}));
}

TEST_CASE("keys of capture are no part of a cell that has no checkpoint",
          "[sweep][train][capture]") {
  for (const Cell& cell : loaded(kConfig).cells) {
    CHECK_FALSE(cell.task_settings.contains("from"));
    CHECK(cell.task_settings.contains("pairs"));
  }
  CHECK_THROWS_WITH(loaded(kConfig, {"tasks[0].layer=[0, 1]"}), Catch::Contains("same cell"));
  CHECK_THROWS_WITH(loaded(kConfig, {"tasks[0].from=nowhere.safetensors"}),
                    Catch::Contains("nowhere.safetensors: no such file"));
}
