// subquad compare A B: two results, or two git revisions that are built and measured in turn.
#include "harness/sweep/compare.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "harness/cli/cli.h"
#include "harness/cli/options.h"
#include "harness/cli/programs.h"
#include "harness/core/error.h"
#include "harness/sweep/lock.h"
#include "harness/sweep/results_csv.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

struct CompareArguments {
  std::string a, b, config, source = ".", work = "results/compare";
  std::vector<std::string> filters, settings;
  int rounds = 5, jobs = 0;
  bool values = false, all = false, json = false;
  CompareOptions options;
};

constexpr std::size_t kListed = 50;

// ---- two revisions ----

void must_run(const std::vector<std::string>& command) {
  const int status = run_program(command);
  if (status != 0)
    throw UserError(fmt::format("{}: ended with status {}", fmt::join(command, " "), status));
}

// Called from a hook of git or with an exported GIT_DIR, git would work on another repository than
// that of -C.
void forget_other_repositories() {
  for (const char* name :
       {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_PREFIX"})
    unsetenv(name);
}

// What a revision of the source repository is now; in a work tree HEAD would be another one.
std::string commit_of(const CompareArguments& arguments, const std::string& revision) {
  const ProgramOutput found =
      output_of_program({"git", "-C", arguments.source, "rev-parse", "--verify", "--end-of-options",
                         revision + "^{commit}"});
  const std::string hash = found.text.substr(0, found.text.find('\n'));
  if (found.status != 0 || hash.empty() ||
      hash.find_first_not_of("0123456789abcdef") != std::string::npos)
    throw UserError(fmt::format("{}: is no revision of the git repository {}", revision,
                                fs::absolute(arguments.source).string()));
  return hash;
}

// A build of the commit, in a work tree of its own that is kept for the next time.
std::string built(const CompareArguments& arguments, const std::string& commit) {
  const fs::path tree = fs::absolute(fs::path(arguments.work) / ("tree-" + commit));
  if (!fs::exists(tree / ".git"))
    // --force: also where a tree of that name was removed by hand.
    must_run({"git", "-C", arguments.source, "worktree", "add", "--force", "--detach",
              tree.string(), commit});
  else
    must_run({"git", "-C", tree.string(), "checkout", "--quiet", "--detach", commit});
  const std::string build = (tree / "build").string();
  must_run({"cmake", "-S", tree.string(), "-B", build, "-DCMAKE_BUILD_TYPE=Release",
            "-DSUBQUAD_TESTS=OFF"});
  std::vector<std::string> make = {"cmake", "--build", build, "--target", "subquad", "--parallel"};
  if (arguments.jobs > 0) make.push_back(std::to_string(arguments.jobs));
  must_run(make);
  return build + "/subquad";
}

// The folder of builds and results, held: two comparisons in it would mix their rows.
class WorkFolder {
 public:
  explicit WorkFolder(const std::string& path) {
    std::error_code error;
    fs::create_directories(path, error);
    fd_ = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0)
      throw StorageError(fmt::format("{}: cannot be opened: {}", path, std::strerror(errno)));
    try {
      lock_ = std::make_unique<DirectoryLock>(fd_, path);
    } catch (...) {
      close(fd_);
      throw;
    }
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  ~WorkFolder() {
    lock_.reset();
    close(fd_);
  }

 private:
  int fd_ = -1;
  std::unique_ptr<DirectoryLock> lock_;
};

// Measures both in turn, round by round, the first one of a round alternating: drift of the machine
// falls on both alike. Returns the two run directories.
std::pair<std::string, std::string> measured_in_turn(const CompareArguments& arguments) {
  if (arguments.config.empty())
    throw UserError(fmt::format(
        "{} and {}: no directories with results; to compare git revisions name what to measure "
        "with --config",
        arguments.a, arguments.b));
  forget_other_repositories();
  const std::string commits[] = {commit_of(arguments, arguments.a),
                                 commit_of(arguments, arguments.b)};
  const std::string programs[] = {built(arguments, commits[0]), built(arguments, commits[1])};
  const std::string directories[] = {(fs::path(arguments.work) / "a").string(),
                                     (fs::path(arguments.work) / "b").string()};
  for (int round = 1; round <= arguments.rounds; ++round)
    for (const int turn : {0, 1}) {
      const int side = (round + turn + 1) % 2;
      std::vector<std::string> command = {
          programs[side],    "run",        arguments.config, "--out",
          directories[side], "--no-plots", "--yes",          round == 1 ? "--fresh" : "--resume"};
      for (const std::string& filter : arguments.filters)
        command.insert(command.end(), {"--filter", filter});
      for (const std::string& setting : arguments.settings)
        command.insert(command.end(), {"--set", setting});
      command.insert(command.end(), {"--set", fmt::format("rounds={}", round)});
      if (const int status = run_program(command); status > 1)  // 1: rows that failed, compared too
        throw UserError(fmt::format("{}: ended with status {}", fmt::join(command, " "), status));
    }
  return {directories[0], directories[1]};
}

// ---- what is said ----

std::string_view word(const CellChange& c) {
  const bool time = c.quantity == "time_s";
  switch (c.verdict) {
    case CellChange::Verdict::regression:
      return time ? "SLOWER" : "WORSE";
    case CellChange::Verdict::improvement:
      return time ? "faster" : "better";
    default:
      return "same";
  }
}

void print_json(const Comparison& comparison) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const CellChange& c : comparison.changes)
    list.push_back({{"cell", c.cell_id},
                    {"what", c.cell},
                    {"quantity", c.quantity},
                    {"a", c.a},
                    {"b", c.b},
                    {"rounds", c.rounds},
                    {"ratio", c.ratio},
                    {"low", c.low},
                    {"high", c.high},
                    {"verdict", word(c)}});
  const nlohmann::ordered_json json = {{"cells", comparison.cells},
                                       {"only_a", comparison.only_a},
                                       {"only_b", comparison.only_b},
                                       {"gone", comparison.gone},
                                       {"left_out", comparison.left_out},
                                       {"noise", comparison.noise},
                                       {"clock", comparison.clock},
                                       {"regressions", comparison.regressions()},
                                       {"improvements", comparison.improvements()},
                                       {"changes", list}};
  fmt::print("{}\n", json.dump(1));
}

void print(const Comparison& comparison, bool all) {
  std::vector<std::vector<std::string>> table = {
      {"", "quantity", "A", "B", "B/A", "interval", "rounds", "cell"}};
  std::vector<double> ratios;
  for (const CellChange& c : comparison.changes) {
    if (c.quantity == "time_s") ratios.push_back(c.ratio);
    if (!all && c.verdict == CellChange::Verdict::same) continue;
    table.push_back({std::string(word(c)), c.quantity, c.a, c.b,
                     c.quantity == "status" ? "" : fmt::format("{:.3f}", c.ratio),
                     c.quantity == "time_s" ? fmt::format("[{:.3f}, {:.3f}]", c.low, c.high) : "",
                     std::to_string(c.rounds), c.cell_id + " " + c.cell});
  }
  if (table.size() > 1) fmt::print("{}\n", format_table(table));
  double log_sum = 0;
  for (const double ratio : ratios) log_sum += std::log(ratio);
  fmt::print("{} cells in both: {} regressions, {} improvements", comparison.cells,
             comparison.regressions(), comparison.improvements());
  if (!ratios.empty())
    fmt::print("; times B/A: {:.3f} in the geometric mean, a round varies by {:.1f} %",
               std::exp(log_sum / static_cast<double>(ratios.size())), 100 * comparison.noise);
  if (comparison.clock > 0) fmt::print(", calibration B/A {:.3f}", comparison.clock);
  fmt::print("\n");
  if (comparison.left_out > 0)
    fmt::print(
        "{} pairs of rows with a doubtful time were left out; --include-unstable takes "
        "them\n",
        comparison.left_out);
  if (comparison.gone > 0) fmt::print("{} rounds of A are not in B\n", comparison.gone);
  if (comparison.only_b > 0) fmt::print("{} cells of B are not in A\n", comparison.only_b);
}

int compare_values(const std::vector<RowFields>& a, const std::vector<RowFields>& b) {
  const auto differences = different_values(a, b);
  for (std::size_t i = 0; i < std::min(kListed, differences.size()); ++i)
    fmt::print("{}\n", differences[i]);
  if (differences.size() > kListed) fmt::print("... {} more\n", differences.size() - kListed);
  fmt::print("{} and {} rows: {}\n", final_rows(a).size(), final_rows(b).size(),
             differences.empty() ? "the same in every column that is not measured"
                                 : fmt::format("{} differences in columns that are not measured",
                                               differences.size()));
  return differences.empty() ? kExitOk : kExitFailed;
}

int compare(const CompareArguments& arguments) {
  std::string a = arguments.a, b = arguments.b;
  const auto has_results = [](const std::string& directory) {
    return fs::exists(fs::path(directory) / "results.csv");
  };
  std::optional<WorkFolder> work;  // until all is read
  if (!has_results(a) && !has_results(b)) {
    if (!arguments.config.empty()) work.emplace(arguments.work);
    std::tie(a, b) = measured_in_turn(arguments);
  } else {
    for (const std::string& directory : {a, b})
      if (!has_results(directory))
        throw UserError(fmt::format("{}: has no results.csv", directory));
  }
  const auto rows_a = read_results_csv(a + "/results.csv"),
             rows_b = read_results_csv(b + "/results.csv");
  if (arguments.values) return compare_values(rows_a, rows_b);
  const Comparison comparison = compare_results(rows_a, rows_b, arguments.options);
  if (arguments.json)
    print_json(comparison);
  else
    print(comparison, arguments.all);
  for (const std::string& warning : comparison.warnings)
    fmt::print(stderr, "warning: {}\n", warning);
  return comparison.regressions() > 0 || comparison.only_a > 0 || comparison.gone > 0 ? kExitFailed
                                                                                      : kExitOk;
}

}  // namespace

void add_compare(CLI::App& app, int* status) {
  const auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command =
      app.add_subcommand("compare", "What changed between two results, or two git revisions");
  command->add_option("a", arguments->a, "Run directory, or a git revision (with --config)")
      ->required();
  command->add_option("b", arguments->b, "The same, to be judged against A")->required();
  command
      ->add_option("--threshold", arguments->options.threshold,
                   "Smallest change of time or memory that counts (default: 0.05)")
      ->check(CLI::Range(0.0, 10.0));
  command
      ->add_option("--confidence", arguments->options.confidence,
                   "That no unchanged cell at all is called changed (default: 0.95)")
      ->check(CLI::Range(0.5, 0.9999));
  command->add_flag("--all", arguments->all, "Also what did not change");
  command->add_flag("--json", arguments->json, "As JSON, everything that was compared");
  command->add_flag("--values", arguments->values,
                    "Only whether all columns that are not measured are the same, bit for bit");
  command->add_flag("--include-unstable", arguments->options.include_unstable,
                    "Also rows whose numbers are in doubt");
  command->add_flag("--mixed-hardware", arguments->options.mixed_hardware,
                    "Also between different CPU models");
  command->add_option("--config", arguments->config, "Revisions: the sweep that is measured");
  command->add_option("--rounds", arguments->rounds, "Revisions: rounds, A and B in turn")
      ->check(CLI::Range(1, 1000));
  command->add_option("--filter", arguments->filters, "Revisions: as in `run`")
      ->allow_extra_args(false);
  command->add_option("--set", arguments->settings, "Revisions: KEY=VALUE, as in `run`")
      ->allow_extra_args(false);
  command->add_option("--source", arguments->source, "Revisions: the git repository (default: .)");
  command->add_option("--work", arguments->work,
                      "Revisions: where builds and results are kept (default: results/compare)");
  command->add_option("--build-jobs", arguments->jobs, "Revisions: compilers at once")
      ->check(CLI::Range(1, 1024));
  command->callback([arguments, status] {
    try {
      *status = compare(*arguments);
    } catch (const LockedError& error) {
      fmt::print(stderr, "subquad: {}\n", error.what());
      *status = kExitFailed;
    }
  });
}

}  // namespace subquad
