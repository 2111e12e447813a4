// subquad sample TASK: examples of a task, one JSON object a line.
#include <fmt/core.h>

#include <charconv>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/options.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

struct Options {
  std::string task, split = "train";
  std::vector<std::string> plugins, assignments;
  Index count = 1, n = 0, d = 4, heads = 1;
  Seed seed = 1;
  bool causal = false, qkv = false;
};

using nlohmann::ordered_json;

// The double with the fewest digits that reads back as the same float.
double shortest(float value) {
  char digits[32];
  double number = 0;
  std::from_chars(digits, std::to_chars(digits, digits + sizeof digits, value).ptr, number);
  return number;
}

// The values as nested arrays of the shape; axes of size 1 in front are kept.
ordered_json nested(const ConstTensorView& tensor) {
  ordered_json batches = ordered_json::array();
  for (Index b = 0; b < tensor.batch(); ++b) {
    ordered_json heads = ordered_json::array();
    for (Index h = 0; h < tensor.heads(); ++h) {
      ordered_json rows = ordered_json::array();
      for (Index i = 0; i < tensor.n(); ++i) {
        const float* row = tensor.head_data(b, h) + i * tensor.d();
        ordered_json values = ordered_json::array();
        for (Index j = 0; j < tensor.d(); ++j) values.push_back(shortest(row[j]));
        rows.push_back(std::move(values));
      }
      heads.push_back(std::move(rows));
    }
    batches.push_back(std::move(heads));
  }
  return batches;
}

ordered_json labelled_example(const Task& task, const Options& options, Split split, Index number) {
  const Index n = options.n > 0 ? options.n : 64;
  const TokenBatch batch = task.tokens(split, number, 1, n, options.seed);
  ordered_json json = {{"split", options.split}, {"example", number}};
  if (batch.inputs == 1) {
    json["tokens"] = batch.tokens;
  } else {
    json["tokens"] = ordered_json::array();
    const Index row = batch.n * batch.tokens_per_position;
    for (Index i = 0; i < batch.inputs; ++i)
      json["tokens"].push_back(std::vector<std::int32_t>(batch.tokens.begin() + i * row,
                                                         batch.tokens.begin() + (i + 1) * row));
  }
  json["labels"] = batch.labels;
  if (!batch.lengths.empty()) json["lengths"] = batch.lengths;
  return json;
}

ordered_json tensor_example(const Task& task, const Options& options, Index number) {
  Problem wanted;
  wanted.heads = options.heads;
  wanted.n = wanted.n_kv = options.n > 0 ? options.n : 8;
  wanted.d_k = wanted.d_v = options.d;
  wanted.causal = options.causal;
  const Problem problem = task.adapt(wanted);
  if (const std::string reason = invalid_reason(problem); !reason.empty())
    throw UserError(fmt::format("{}: {}", options.task, reason));
  if (const std::string reason = task.unsupported(problem); !reason.empty())
    throw Unsupported(fmt::format("{}: {}", options.task, reason));
  QKV data(problem);
  task.fill(problem, options.seed, number, &data);
  ordered_json json = {{"set", number},
                       {"problem", problem.str()},
                       {"q", nested(data.q)},
                       {"k", nested(data.k)},
                       {"v", nested(data.v)}};
  if (!data.x.empty()) json["x"] = nested(data.x);
  if (!data.key_mask.empty()) json["key_mask"] = data.key_mask;
  return json;
}

void run(const Options& options) {
  load_plugins(options.plugins);
  const TaskEntry& entry = Registry::instance().task(options.task);
  const auto task = entry.create(settings_from(options.task, entry.params, options.assignments));
  Split split = Split::train;
  for (const Split candidate : {Split::train, Split::validation, Split::test})
    if (name(candidate) == options.split) split = candidate;
  for (Index i = 0; i < options.count; ++i) {
    const ordered_json json = entry.info.labelled && !options.qkv
                                  ? labelled_example(*task, options, split, i)
                                  : tensor_example(*task, options, i);
    const std::string line = json.dump() + "\n";
    if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size())
      throw StorageError("standard output cannot be written");
  }
  if (std::fflush(stdout) != 0) throw StorageError("standard output cannot be written");
}

}  // namespace

void add_sample(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("sample", "Print examples of a task, one JSON object a line");
  command->add_option("task", options->task, "Registered name")->required();
  command->add_option("--count", options->count, "Examples")->check(CLI::Range(1, 1000000));
  command->add_option("--n", options->n, "Length; default 64 for tokens, 8 for q, k, v")
      ->check(CLI::Range(Index{1}, Index{1} << 24));
  command->add_option("--d", options->d, "Width of q, k and v")->check(CLI::Range(1, 4096));
  command->add_option("--heads", options->heads, "Heads")->check(CLI::Range(1, 4096));
  command->add_flag("--causal", options->causal, "Ask for a causal problem");
  command->add_flag("--qkv", options->qkv, "q, k, v also of a task that has tokens and labels");
  command->add_option("--split", options->split, "train, validation or test")
      ->check(CLI::IsMember({"train", "validation", "test"}));
  command->add_option("--seed", options->seed, "Seed of the data");
  add_set_option(command, &options->assignments);
  add_plugin_option(command, &options->plugins);
  command->callback([options] { run(*options); });
}

}  // namespace subquad
