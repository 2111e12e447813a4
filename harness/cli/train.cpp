// subquad train CONFIG: one training run, with its progress, checkpoints and curve.
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/options.h"
#include "harness/core/error.h"
#include "harness/core/registry.h"
#include "harness/measure/train_cell.h"
#include "harness/sweep/config.h"
#include "harness/sweep/progress.h"

namespace subquad {
namespace {

struct Options {
  std::string config, out, layers;
  std::vector<std::string> plugins, assignments, filters;
  bool fresh = false;
  int threads = 0;
};

// The one cell of the config that trains.
Cell only_training(const Config& config, const Options& options) {
  std::vector<Cell> cells;
  for (const Cell& cell : config.cells)
    if (cell.pass == Pass::train) cells.push_back(cell);
  for (const std::string& filter : options.filters) cells = filter_cells(cells, filter);
  if (cells.size() == 1) return cells.front();
  std::string list;
  for (const Cell& cell : cells)
    list += fmt::format("{}cell={} ({})", list.empty() ? "" : ", ", cell.id(), cell.brief());
  if (list.size() > 1000) list.resize(1000);
  throw UserError(
      fmt::format("{}: has {} cells of the train pass{}, expected one; {}", options.config,
                  cells.size(), options.filters.empty() ? "" : " that the filters keep",
                  cells.empty() ? "add passes: train" : "choose with --filter among " + list));
}

// --layers "dense, linear": another method for some layers, at its default parameters.
void set_layers(const std::string& text, TrainSetup* setup) {
  if (text.empty()) return;
  std::vector<LayerMethod> methods;
  std::size_t start = 0;
  while (start <= text.size()) {
    const std::size_t end = std::min(text.find(',', start), text.size());
    const std::string name = text.substr(start, end - start);
    const MethodEntry& entry = Registry::instance().method(name);
    const bool same = !setup->methods.empty() && setup->methods.front().name == name;
    methods.push_back(same ? setup->methods.front()
                           : LayerMethod{name, resolve(name, entry.params, {})});
    start = end + 1;
  }
  if (static_cast<Index>(methods.size()) != setup->options.layers)
    throw UserError(fmt::format("--layers: got {} methods, expected {} (train.layers)",
                                methods.size(), setup->options.layers));
  setup->methods = methods;
  setup->identity += " " + text;
}

class Reporter {
 public:
  void operator()(const TrainProgress& p) {
    if (p.point) {
      clear();
      fmt::print(stderr,
                 "step {}: train loss {:.4f}, validation loss {:.4f}, accuracy {:.4f}, {} left\n",
                 p.step, p.point->train_loss, p.point->validation.loss,
                 p.point->validation.accuracy, human_seconds(p.seconds_left));
      return;
    }
    if (!terminal_ || p.step % 10 != 0) return;
    clear();
    fmt::print(stderr, "step {} of {}: loss {:.4f}, {} left", p.step, p.steps, p.loss,
               human_seconds(p.seconds_left));
    std::fflush(stderr);
    drawn_ = true;
  }

 private:
  void clear() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
    drawn_ = false;
  }
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  bool drawn_ = false;
};

void run(const Options& options) {
  load_plugins(options.plugins);
  const Config config = load_config(options.config, options.assignments, options.plugins);
  const Cell cell = only_training(config, options);
  omp_set_num_threads(options.threads > 0 ? options.threads : cell.threads);
  const std::unique_ptr<Task> task = make_task(cell.task, cell.task_settings);
  const std::string reason = task->unsupported(cell.problem);
  if (!reason.empty()) throw Unsupported(reason);
  TrainSetup setup = train_setup(cell, *task);
  set_layers(options.layers, &setup);

  const std::string directory =
      options.out.empty() ? fmt::format("results/{}/{}", config.name, cell.id()) : options.out;
  std::filesystem::create_directories(directory);
  {
    std::ofstream file(directory + "/config.resolved.yaml");
    file << config.resolved_yaml << std::flush;
    if (!file) throw StorageError(directory + "/config.resolved.yaml: cannot be written");
  }
  fmt::print(stderr, "{}\n", cell.str());
  Reporter reporter;
  const TrainReport report =
      train(setup, {directory, !options.fresh}, [&](const TrainProgress& p) { reporter(p); });
  const std::vector<Floor> floors = task->floors(cell.problem.n, cell.seed);
  for (const Floor& floor : floors)
    fmt::print(stderr, "floor, {}: {} {:.4f}\n", floor.name, floor.metric, floor.value);
  fmt::print(stderr, "test: loss {:.4f}, accuracy {:.4f} after {} steps ({})\nwrote {}/\n",
             report.test.loss, report.test.accuracy, report.steps, report.stopped, directory);
  const nlohmann::json result = train_columns(report, setup.options, floors);
  fmt::print("{}\n", result.dump());
}

}  // namespace

void add_train(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("train", "train one model; goes on from its checkpoint when there is one");
  command
      ->add_option("config", options->config, "YAML file with a train pass; see configs/README.md")
      ->required();
  command->add_option("--out", options->out,
                      "directory of checkpoint and curve (default: results/<name>/<cell>)");
  command->add_flag("--fresh", options->fresh, "start over, whatever the directory holds");
  command->add_option("--filter", options->filters, "which cell, for example method=linear,n=64")
      ->take_all();
  command->add_option("--layers", options->layers, "methods by layer, such as dense,linear");
  command->add_option("--threads", options->threads, "threads (default: the config's)")
      ->check(CLI::Range(1, 1024));
  add_set_option(command, &options->assignments);
  add_plugin_option(command, &options->plugins);
  command->callback([options] { run(*options); });
}

}  // namespace subquad
