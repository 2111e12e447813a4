// subquad capture CHECKPOINT: what the attention layers of a trained model see, as .npy files.
#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/options.h"
#include "harness/cli/programs.h"
#include "harness/core/npy.h"
#include "harness/model/trained_model.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string checkpoint, out, split = "test";
  std::vector<std::string> plugins;
  Index count = 8, first = 0, layer = -1;
};

// One layer of all examples: [sequences, heads, n, d].
struct Stack {
  Tensor q, k, v, x;
  void resize(const Problem& p, Index batch, Index d_model) {
    q = Tensor(batch, p.heads, p.n, p.d_k);
    k = Tensor(batch, p.heads, p.n, p.d_k);
    v = Tensor(batch, p.heads, p.n, p.d_v);
    x = Tensor(batch, 1, p.n, d_model);
  }
  // `from` holds the sequences of example `example`.
  void put(const QKV& from, Index example) {
    std::copy_n(from.q.data(), from.q.size(), q.data() + example * from.q.size());
    std::copy_n(from.k.data(), from.k.size(), k.data() + example * from.k.size());
    std::copy_n(from.v.data(), from.v.size(), v.data() + example * from.v.size());
    std::copy_n(from.x.data(), from.x.size(), x.data() + example * from.x.size());
  }
};

void run(const Options& options) {
  load_plugins(options.plugins);
  const TrainedModel model(options.checkpoint);
  const TrainSetup& setup = model.setup();
  const auto layers = static_cast<Index>(setup.methods.size());
  if (options.layer >= layers)
    throw UserError(fmt::format("--layer {}: {} has {} layers, expected 0 to {}", options.layer,
                                model.path(), layers, layers - 1));
  Split split = Split::test;
  for (const Split candidate : {Split::train, Split::validation, Split::test})
    if (name(candidate) == options.split) split = candidate;

  const Problem& p = model.problem();
  const Index sequences = options.count * model.sequences();
  const Index first_layer = std::max<Index>(options.layer, 0);
  const Index last_layer = options.layer < 0 ? layers - 1 : options.layer;
  std::vector<Stack> stacks(static_cast<std::size_t>(layers));
  for (Index l = first_layer; l <= last_layer; ++l)
    stacks[static_cast<std::size_t>(l)].resize(p, sequences, model.d_model());
  Tensor mask(1, 1, sequences, p.n);  // 1 = a real token
  std::fill_n(mask.data(), mask.size(), 1.0f);
  bool padded = false;
  for (Index e = 0; e < options.count; ++e) {
    const std::vector<QKV> seen = model.capture(split, options.first + e);
    for (Index l = first_layer; l <= last_layer; ++l)
      stacks[static_cast<std::size_t>(l)].put(seen[static_cast<std::size_t>(l)], e);
    const auto& keys = seen.front().key_mask;
    padded = padded || !keys.empty();
    std::copy(keys.begin(), keys.end(), mask.data() + e * model.sequences() * p.n);
  }

  std::error_code error;
  fs::create_directories(options.out, error);
  if (error) throw StorageError(fmt::format("{}: {}", options.out, error.message()));
  for (Index l = first_layer; l <= last_layer; ++l) {
    const Stack& stack = stacks[static_cast<std::size_t>(l)];
    const std::string stem = (fs::path(options.out) / fmt::format("layer{}_", l)).string();
    write_npy(stem + "q.npy", stack.q);
    write_npy(stem + "k.npy", stack.k);
    write_npy(stem + "v.npy", stack.v);
    write_npy(stem + "x.npy", stack.x);
  }
  if (padded) write_npy((fs::path(options.out) / "key_mask.npy").string(), mask, 2);
  nlohmann::ordered_json about;
  about["checkpoint"] = model.path();
  about["steps"] = model.steps();
  about["split"] = options.split;
  about["first"] = options.first;
  about["examples"] = options.count;
  about["sequences"] = sequences;
  about["causal"] = p.causal;
  about["scale"] = p.logit_scale();
  about["model"] = nlohmann::ordered_json::parse(describe_model(setup));
  write_text(fs::path(options.out) / "capture.json", about.dump(2) + "\n");
  fmt::print(stderr, "wrote {} layers of {} sequences to {}/: {}\n", last_layer - first_layer + 1,
             sequences, options.out, p.str());
}

}  // namespace

void add_capture(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "capture", "Write what the attention layers of a trained model see, as .npy files");
  command
      ->add_option("checkpoint", options->checkpoint,
                   "checkpoint.safetensors of `subquad train`, or its directory")
      ->required();
  command
      ->add_option("--out", options->out,
                   "Directory for layer<i>_q.npy, _k, _v [sequences, heads, n, d], _x and "
                   "capture.json")
      ->required();
  command->add_option("--count", options->count, "Examples")
      ->check(CLI::Range(Index{1}, Index{1} << 20));
  command->add_option("--first", options->first, "Number of the first example")
      ->check(CLI::Range(Index{0}, Index{1} << 40));
  command->add_option("--split", options->split, "train, validation or test")
      ->check(CLI::IsMember({"train", "validation", "test"}));
  command->add_option("--layer", options->layer, "Only this layer")
      ->check(CLI::Range(Index{0}, Index{1} << 20));
  add_plugin_option(command, &options->plugins);
  command->callback([options] { run(*options); });
}

}  // namespace subquad
