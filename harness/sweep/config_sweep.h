// What a config says, between reading and expansion: a list of values per axis, as written, each
// with the place it was written at. Internal to config reading.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "harness/core/registry.h"
#include "harness/sweep/config.h"
#include "harness/sweep/yaml_reader.h"

namespace subquad {

template <class T>
struct Choice {
  T value{};
  YamlPlace place;
  std::string path;  // "problem.n[1]"
};

template <class T>
using Axis = std::vector<Choice<T>>;

struct ParamAxis {
  std::string name;
  Axis<ParamValue> values;  // at least one
};

struct MethodSweep {
  const MethodEntry* entry = nullptr;
  YamlPlace place;
  std::string path;               // "methods[2]"
  std::vector<ParamAxis> params;  // every parameter, in the order of the schema
  std::string label;              // template; "" = default
  YamlPlace label_place;
  std::string weights;  // file of learned parameters; "" = none
  Index max_n = 0;      // 0 = no limit
  Axis<Pass> passes;    // empty = those of the config
  Axis<int> threads;    // empty = those of the config
};

struct TaskSweep {
  const TaskEntry* entry = nullptr;
  YamlPlace place;
  std::string path;
  std::vector<ParamAxis> params;
};

struct ProblemSweep {
  YamlPlace place;
  Axis<Index> batch, heads;
  Axis<Index> n;     // one 0 when the config leaves it to the task
  Axis<Index> n_kv;  // 0 = same as n
  Axis<Index> d_k, d_v;
  bool paired = false;  // head_dim: d_k[i] goes with d_v[i]
  Axis<bool> causal;
  Axis<double> scale;  // 0 = auto
};

struct Sweep {
  std::string name, description;
  Seed seed = 1;
  Axis<Seed> seeds;
  int rounds = 3;
  bool plots = true;
  Axis<int> threads;
  Axis<Pass> passes;
  ProblemSweep problem;
  std::vector<MethodSweep> methods;
  std::vector<TaskSweep> tasks;
  std::vector<ParamAxis> train;  // every option of training, in the order of the schema
  std::vector<ParamAxis> fit;    // every option of fitting
  MeasureOptions measure;
  ErrorOptions error;
  std::vector<std::string> plugins;  // absolute paths
};

// Collects the errors of one config and throws them together.
class ConfigErrors {
 public:
  // `sources[0]` is the config file, sources[i] the i-th override or plugin option as it is to be
  // named in messages.
  explicit ConfigErrors(std::string file) : file_(std::move(file)) {}

  void name_source(int source, std::string text);
  // `path` is the key path ("methods[2].top_k") or "".
  void add(const YamlPlace& place, const std::string& path, const std::string& message);
  void add(const YamlProblem& problem) { add(problem.place, "", problem.message); }
  bool empty() const { return lines_.empty(); }
  // Another place in the same config, for the inside of a message: "line 7:5".
  std::string at(const YamlPlace& place) const;
  // ConfigError with one line per error, in the order of the file, when there is any.
  void throw_if_any() const;

 private:
  std::string file_;
  std::vector<std::pair<int, std::string>> sources_;
  struct Line {
    YamlPlace place;
    std::string text;
  };
  std::vector<Line> lines_;
};

// Schemas of the sections `measure` and `error`.
const std::vector<Field<MeasureOptions>>& measure_fields();
const std::vector<Field<ErrorOptions>>& error_fields();

// The keys of the config, checked; what cannot be read is left at its default and recorded.
// `plugins` were loaded before; the config's own are loaded on the way.
Sweep read_sweep(const YamlNode& root, const std::string& config_path,
                 const std::vector<std::string>& plugins, ConfigErrors* errors);

// The product, in the order of the file: methods, their parameters, tasks, their parameters, sizes,
// passes, threads, seeds. Duplicate cells and impossible problems go to `errors`.
std::vector<Cell> expand(const Sweep& sweep, ConfigErrors* errors);

// The default label of a method's settings, as a template: its name, and every parameter that has
// more than one value in this sweep.
std::string default_label(const Sweep& sweep, const MethodEntry& entry);

// The sweep as YAML with every default written out.
std::string resolved_yaml(const Sweep& sweep);

// The text of a label template with {param} replaced.
std::string fill_label(const std::string& label, const Settings& settings);

// Logical processors that this process may use.
int available_threads();

}  // namespace subquad
