// The only place that multiplies: a Sweep into its cells.
#include <fmt/core.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <set>
#include <unordered_map>

#include "harness/core/capture.h"
#include "harness/core/method_weights.h"
#include "harness/sweep/config_sweep.h"

namespace subquad {
namespace {

constexpr std::uint64_t kMaxCells = 1000000;
constexpr std::size_t kMaxProblemErrors = 50;

// A product that stays at the largest number when it overflows.
class Count {
 public:
  Count& operator*=(std::size_t factor) {
    if (__builtin_mul_overflow(value_, static_cast<std::uint64_t>(factor), &value_)) value_ = kMost;
    approximate_ *= static_cast<double>(factor);
    return *this;
  }
  Count& operator+=(const Count& other) {
    if (__builtin_add_overflow(value_, other.value_, &value_)) value_ = kMost;
    approximate_ += other.approximate_;
    return *this;
  }
  static Count zero() {
    Count count;
    count *= 0;
    return count;
  }
  bool above(std::uint64_t limit) const { return value_ > limit; }
  std::string str() const {
    return value_ == kMost ? fmt::format("{:.3g}", approximate_) : fmt::format("{}", value_);
  }

 private:
  static constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t value_ = 1;
  double approximate_ = 1;
};

Count combinations(const std::vector<ParamAxis>& params) {
  Count count;
  for (const ParamAxis& axis : params) count *= axis.values.size();
  return count;
}

// The product of the parameter lists; the last parameter varies fastest.
std::vector<Settings> settings_of(const std::vector<ParamAxis>& params) {
  if (!combinations(params).above(0)) return {};  // before the other lists multiply
  std::vector<Settings> all{{}};
  for (const ParamAxis& axis : params) {
    std::vector<Settings> next;
    for (const Settings& settings : all)
      for (const Choice<ParamValue>& choice : axis.values) {
        next.push_back(settings);
        next.back()[axis.name] = choice.value;
      }
    all = std::move(next);
  }
  return all;
}

// An entry's own list replaces that of the config.
const Axis<Pass>& passes_of(const Sweep& sweep, const MethodSweep& method) {
  return method.passes.empty() ? sweep.passes : method.passes;
}

const Axis<int>& threads_of(const Sweep& sweep, const MethodSweep& method) {
  return method.threads.empty() ? sweep.threads : method.threads;
}

// Where a value of a problem was written.
struct Origin {
  YamlPlace place;
  std::string path;
};

struct Requested {
  Problem problem;
  bool possible = true;
};

Count problem_count(const ProblemSweep& p) {
  Count count;
  for (const std::size_t size : {p.batch.size(), p.heads.size(), p.n.size(), p.n_kv.size(),
                                 p.d_k.size(), p.causal.size(), p.scale.size()})
    count *= size;
  if (!p.paired) count *= p.d_v.size();
  return count;
}

class Expansion {
 public:
  Expansion(const Sweep& sweep, ConfigErrors* errors) : sweep_(sweep), errors_(*errors) {}

  std::vector<Cell> run() {
    const Count total = count();
    if (total.above(kMaxCells)) {
      errors_.add({}, "",
                  fmt::format("the product of the lists has {} cells, at most {} are allowed; "
                              "shorten the lists or split the config",
                              total.str(), kMaxCells));
      return {};
    }
    if (!problem_count(sweep_.problem).above(kMaxCells)) list_problems();
    if (!total.above(0)) return {};  // a list that could not be read, or no method or task
    for (std::size_t t = 0; t < sweep_.tasks.size(); ++t) adapt_problems(sweep_.tasks[t]);
    if (!combinations(sweep_.train).above(kMaxCells)) trainings_ = settings_of(sweep_.train);
    if (!combinations(sweep_.fit).above(kMaxCells)) fits_ = settings_of(sweep_.fit);
    for (std::size_t m = 0; m < sweep_.methods.size(); ++m) add_method(m);
    if (cells_.empty() && errors_.empty())
      errors_.add({}, "",
                  "the sweep has no cells: every problem is longer than the max_n of its method");
    return std::move(cells_);
  }

 private:
  struct Choices {
    std::size_t method, task, task_settings, problem;
    bool operator==(const Choices&) const = default;
  };

  Count count() const {
    Count total = Count::zero();
    for (const MethodSweep& method : sweep_.methods)
      for (const TaskSweep& task : sweep_.tasks) {
        Count cells = problem_count(sweep_.problem);
        for (const std::vector<ParamAxis>* params : {&method.params, &task.params})
          for (const ParamAxis& axis : *params) cells *= axis.values.size();
        cells *= passes_and_trainings(method);
        cells *= threads_of(sweep_, method).size();
        cells *= sweep_.seeds.size();
        total += cells;
      }
    return total;
  }

  // Passes, each training and each fit counted for itself.
  std::size_t passes_and_trainings(const MethodSweep& method) const {
    std::size_t count = 0;
    for (const Choice<Pass>& pass : passes_of(sweep_, method)) {
      std::size_t learnings = 1;
      for (const ParamAxis& axis : options_of(pass.value)) learnings *= axis.values.size();
      count += learnings;
    }
    return count;
  }
  const std::vector<ParamAxis>& options_of(Pass pass) const {
    static const std::vector<ParamAxis> none;
    return pass == Pass::train ? sweep_.train : pass == Pass::fit ? sweep_.fit : none;
  }

  void list_problems() {
    const ProblemSweep& p = sweep_.problem;
    for (const auto& batch : p.batch)
      for (const auto& heads : p.heads)
        for (const auto& n : p.n)
          for (const auto& n_kv : p.n_kv)
            for (std::size_t k = 0; k < p.d_k.size(); ++k)
              for (std::size_t v = p.paired ? k : 0; v < (p.paired ? k + 1 : p.d_v.size()); ++v)
                for (const auto& causal : p.causal)
                  for (const auto& scale : p.scale) {
                    Requested requested;
                    requested.problem = {.batch = batch.value,
                                         .heads = heads.value,
                                         .n = n.value,
                                         .n_kv = n_kv.value == 0 ? n.value : n_kv.value,
                                         .d_k = p.d_k[k].value,
                                         .d_v = p.d_v[v].value,
                                         .causal = causal.value,
                                         .scale = scale.value};
                    requested.possible = possible(requested.problem, n, n_kv);
                    problems_.push_back(requested);
                  }
  }

  template <class T>
  static Origin origin(const Choice<T>& choice) {
    return {choice.place, choice.path};
  }

  bool possible(const Problem& p, const Choice<Index>& n, const Choice<Index>& n_kv) {
    if (p.n == 0) return true;  // the task may fill it in
    const std::string reason = invalid_reason(p);
    if (reason.empty()) return true;
    const Choice<Index>& guilty = p.causal && p.n_kv < p.n ? n_kv : n;
    if (++problem_errors_ <= kMaxProblemErrors) report(guilty.place, guilty.path, reason);
    return false;
  }

  // Where the values of problem `index` were written, by axis: list_problems() backwards.
  std::vector<Origin> origins(std::size_t index) const {
    const ProblemSweep& p = sweep_.problem;
    std::vector<Origin> list;
    const auto take = [&](const auto& axis) {
      list.push_back(origin(axis[index % axis.size()]));
      index /= axis.size();
    };
    take(p.scale);
    take(p.causal);
    if (!p.paired) take(p.d_v);
    take(p.d_k);
    take(p.n_kv);
    take(p.n);
    take(p.heads);
    take(p.batch);
    return list;
  }

  void report(const YamlPlace& place, const std::string& path, const std::string& message) {
    if (reported_.insert(path + ": " + message).second) errors_.add(place, path, message);
  }

  // What the task really supplies for every problem, once for all methods.
  void adapt_problems(const TaskSweep& sweep) {
    const bool small = !combinations(sweep.params).above(kMaxCells);
    std::vector<Settings> all = small ? settings_of(sweep.params) : std::vector<Settings>{};
    std::vector<std::vector<Problem>> adapted(all.size());
    for (std::size_t s = 0; s < all.size(); ++s) {
      adapted[s].resize(problems_.size());  // n = 0: none
      try {
        const std::unique_ptr<Task> task = sweep.entry->create(all[s]);
        for (std::size_t i = 0; i < problems_.size(); ++i)
          if (problems_[i].possible) adapted[s][i] = adapt(sweep, *task, problems_[i]);
      } catch (const std::exception& error) {
        report(sweep.place, sweep.path, error.what());
      }
    }
    for (Settings& settings : all) settings = identifying(*sweep.entry, settings);
    task_settings_.push_back(std::move(all));
    adapted_.push_back(std::move(adapted));
  }

  Problem adapt(const TaskSweep& sweep, const Task& task, const Requested& requested) {
    Problem problem = task.adapt(requested.problem);
    if (problem.n == 0) {
      report(
          sweep_.problem.place, "problem",
          fmt::format("key \"n\" is missing; expected a length or a list of lengths ({} does not "
                      "fix it)",
                      sweep.entry->info.name));
      return {};
    }
    if (problem.n_kv == 0) problem.n_kv = problem.n;
    const std::string reason = invalid_reason(problem);
    if (reason.empty()) return problem;
    if (++problem_errors_ <= kMaxProblemErrors)
      report(sweep.place, sweep.path,
             fmt::format("the problem that {} supplies is impossible: {}", sweep.entry->info.name,
                         reason));
    return {};
  }

  void add_method(std::size_t m) {
    const MethodSweep& method = sweep_.methods[m];
    const std::string label =
        method.label.empty() ? default_label(sweep_, *method.entry) : method.label;
    if (combinations(method.params).above(kMaxCells)) return;
    for (const Settings& settings : settings_of(method.params)) {
      Cell cell;
      cell.method = method.entry->info.name;
      cell.method_settings = settings;
      cell.label = fill_label(label, settings);
      cell.weights = method.weights;
      if (!cell.weights.empty() && method.label.empty()) cell.label += " (fitted)";
      cell.measure = sweep_.measure;
      cell.error = sweep_.error;
      cell.plugins = sweep_.plugins;
      check_label(method, cell);
      for (std::size_t t = 0; t < sweep_.tasks.size(); ++t) add_task(m, t, &cell);
    }
  }

  // One label, one method with its settings: else a figure would draw two as one.
  void check_label(const MethodSweep& method, const Cell& cell) {
    const std::string meaning = fmt::format(
        "{}{}{}{}", cell.method, cell.method_settings.empty() ? "" : ":",
        to_string(cell.method_settings), cell.weights.empty() ? "" : " weights=" + cell.weights);
    const auto [known, added] = labels_.emplace(cell.label, meaning);
    if (added || known->second == meaning) return;
    report(method.label.empty() ? method.place : method.label_place, method.path + ".label",
           fmt::format("label {} stands for two settings ({} and {}); put the {{parameter}} that "
                       "differs into it",
                       quoted_for_message(cell.label), known->second, meaning));
  }

  // One file, one cell: else the last one to end would replace what the others learned.
  void check_saved(const Cell& cell) {
    const bool fit = cell.pass == Pass::fit;
    const Settings& options = fit ? cell.fit : cell.train;
    const auto save = options.find("save");
    if (save == options.end()) return;
    const auto& pattern = std::get<std::string>(save->second);
    // A folder gets a file for each cell.
    if (pattern.empty() || !pattern.ends_with(".safetensors")) return;
    const std::string path = fill_path(pattern, cell.method, cell.label, cell.seed, cell.problem.n);
    if (saved_.insert(path).second) return;
    for (const ParamAxis& axis : options_of(cell.pass))
      if (axis.name == "save")
        report(axis.values.front().place, fit ? "fit.save" : "train.save",
               fmt::format("several cells would keep their weights in {}; put what differs into "
                           "the path ({{method}}, {{label}}, {{seed}} or {{n}}), or leave one "
                           "value of what it cannot name",
                           quoted_for_message(path)));
  }

  void add_task(std::size_t m, std::size_t t, Cell* cell) {
    const MethodSweep& method = sweep_.methods[m];
    const TaskSweep& task = sweep_.tasks[t];
    cell->task = task.entry->info.name;
    for (std::size_t s = 0; s < task_settings_[t].size(); ++s) {
      cell->task_settings = task_settings_[t][s];
      for (std::size_t p = 0; p < problems_.size(); ++p) {
        cell->problem = adapted_[t][s][p];
        if (cell->problem.n == 0) continue;
        if (method.max_n > 0 && std::max(cell->problem.n, cell->problem.n_kv) > method.max_n)
          continue;
        for (const Choice<Pass>& pass : passes_of(sweep_, method))
          for (const Choice<int>& threads : threads_of(sweep_, method))
            for (const Choice<Seed>& seed : sweep_.seeds) {
              cell->pass = pass.value;
              cell->threads = threads.value;
              cell->seed = seed.value;
              static const std::vector<Settings> kNone{{}};
              cell->train.clear();
              cell->fit.clear();
              for (const Settings& options : pass.value == Pass::train ? trainings_
                                             : pass.value == Pass::fit ? fits_
                                                                       : kNone) {
                (pass.value == Pass::fit ? cell->fit : cell->train) = options;
                add({m, t, s, p}, *cell);
              }
            }
      }
    }
  }

  void add(const Choices& choices, const Cell& cell) {
    const auto [known, added] = index_.emplace(cell.id(), choices);
    if (added) {
      check_saved(cell);
      cells_.push_back(cell);
      return;
    }
    // Twice the same cell: fine where a task fixes what the sweep varies, else a mistake.
    const Choices& first = known->second;
    Choices same = choices;
    same.problem = first.problem;
    if (same == first) {
      const Requested &a = problems_[first.problem], &b = problems_[choices.problem];
      // Requests that only spell the same sizes differently (scale auto and 0.125) are a mistake.
      const bool task_fixed = a.problem != cell.problem || b.problem != cell.problem;
      if (task_fixed && !equivalent(a.problem, b.problem)) return;
      const std::vector<Origin> mine = origins(choices.problem), other = origins(first.problem);
      for (std::size_t i = 0; i < mine.size(); ++i)
        if (mine[i].path != other[i].path) return report_twice(mine[i], other[i], cell);
      return;
    }
    const auto whole = [&](const Choices& c) {
      return first.method != choices.method
                 ? Origin{sweep_.methods[c.method].place, sweep_.methods[c.method].path}
                 : Origin{sweep_.tasks[c.task].place, sweep_.tasks[c.task].path};
    };
    report_twice(whole(choices), whole(first), cell);
  }

  static bool equivalent(const Problem& a, Problem b) {
    if (a.logit_scale() == b.logit_scale()) b.scale = a.scale;
    return a == b;
  }

  void report_twice(const Origin& place, const Origin& first, const Cell& cell) {
    if (twice_.insert(place.path + " " + first.path).second)
      errors_.add(place.place, place.path,
                  fmt::format("gives the same cell as {} at {} ({}); remove one of them",
                              first.path, errors_.at(first.place), cell.str()));
  }

  const Sweep& sweep_;
  ConfigErrors& errors_;
  std::vector<Requested> problems_;
  std::vector<Settings> trainings_, fits_;
  std::vector<std::vector<Settings>> task_settings_;        // [task][settings]
  std::vector<std::vector<std::vector<Problem>>> adapted_;  // [task][settings][problem]
  std::unordered_map<std::string, Choices> index_;          // by cell id
  std::unordered_map<std::string, std::string> labels_;     // what each stands for
  std::set<std::string> reported_, twice_, saved_;
  std::size_t problem_errors_ = 0;
  std::vector<Cell> cells_;
};

}  // namespace

std::string default_label(const Sweep& sweep, const MethodEntry& entry) {
  std::string label = entry.info.name;
  for (const ParamSpec& spec : entry.params) {
    std::set<std::string> values;
    for (const MethodSweep& method : sweep.methods)
      if (method.entry == &entry)
        for (const ParamAxis& axis : method.params)
          if (axis.name == spec.name)
            for (const Choice<ParamValue>& choice : axis.values)
              values.insert(to_string(choice.value));
    if (values.size() > 1) label += fmt::format(" {0}={{{0}}}", spec.name);
  }
  return label;
}

std::string fill_label(const std::string& label, const Settings& settings) {
  std::string text;
  for (std::size_t i = 0; i < label.size(); ++i) {
    if (label[i] != '{') {
      text += label[i];
      continue;
    }
    const std::size_t end = label.find('}', i);
    SUBQUAD_CHECK(end != std::string::npos, "label \"{}\"", label);
    text += to_string(settings.at(label.substr(i + 1, end - i - 1)));
    i = end;
  }
  return text;
}

std::vector<Cell> expand(const Sweep& sweep, ConfigErrors* errors) {
  return Expansion(sweep, errors).run();
}

}  // namespace subquad
