#include "harness/model/trained_model.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "harness/core/settings_json.h"
#include "harness/model/checkpoint.h"

namespace subquad {
namespace {

using Json = nlohmann::json;

constexpr int kFormat = 1;  // of the metadata "model"; another is refused

TrainSetup setup_from(const Json& j) {
  TrainSetup setup;
  setup.task_name = j.at("task").get<std::string>();
  setup.task_settings = settings_from_json(j.at("task_settings"));
  for (const Json& method : j.at("methods"))
    setup.methods.push_back(
        {method.at("name").get<std::string>(), settings_from_json(method.at("settings"))});
  const Json& p = j.at("problem");
  setup.problem = {.batch = p.at("batch"),
                   .heads = p.at("heads"),
                   .n = p.at("n"),
                   .n_kv = p.at("n"),
                   .d_k = p.at("d_k"),
                   .d_v = p.at("d_v"),
                   .causal = p.at("causal"),
                   .scale = p.at("scale")};
  setup.seed = j.at("seed");
  setup.train = resolve("train", specs_of(train_fields()), settings_from_json(j.at("train")));
  setup.options = subquad::bind(train_fields(), setup.train);
  return setup;
}

// Passes on to the methods, and keeps a copy of what they get.
class Recording final : public LayerAttention<float> {
 public:
  Recording(MethodAttention& methods, const Problem& problem, std::vector<QKV>* layers,
            std::vector<Tensor>* outputs)
      : methods_(methods), problem_(problem), layers_(*layers), outputs_(outputs) {}

  autodiff::Var<float> attend(Index layer, autodiff::Var<float> q, autodiff::Var<float> k,
                              autodiff::Var<float> v, autodiff::Var<float> x,
                              std::span<const std::uint8_t> key_mask) override {
    QKV& seen = layers_.emplace_back(problem_);
    std::copy_n(q.data(), seen.q.size(), seen.q.data());
    std::copy_n(k.data(), seen.k.size(), seen.k.data());
    std::copy_n(v.data(), seen.v.size(), seen.v.data());
    seen.x = Tensor(problem_.batch, 1, problem_.n, x.dims().back());
    std::copy_n(x.data(), seen.x.size(), seen.x.data());
    seen.key_mask.assign(key_mask.begin(), key_mask.end());
    const autodiff::Var<float> out = methods_.attend(layer, q, k, v, x, key_mask);
    if (outputs_ != nullptr) {
      outputs_->emplace_back(problem_.batch, problem_.heads, problem_.n, problem_.d_v);
      std::copy_n(out.data(), out.size(), outputs_->back().data());
    }
    return out;
  }

 private:
  MethodAttention& methods_;
  const Problem& problem_;
  std::vector<QKV>& layers_;
  std::vector<Tensor>* outputs_;
};

}  // namespace

std::string describe_model(const TrainSetup& setup) {
  const Problem& p = setup.problem;
  Json methods = Json::array();
  for (const LayerMethod& method : setup.methods)
    methods.push_back({{"name", method.name}, {"settings", settings_to_json(method.settings)}});
  return Json{{"format", kFormat},
              {"task", setup.task_name},
              {"task_settings", settings_to_json(setup.task_settings)},
              {"methods", methods},
              {"problem",
               {{"batch", p.batch},
                {"heads", p.heads},
                {"n", p.n},
                {"d_k", p.d_k},
                {"d_v", p.d_v},
                {"causal", p.causal},
                {"scale", p.scale}}},
              {"train", settings_to_json(setup.train)},
              {"seed", setup.seed}}
      .dump();
}

TrainedModel::TrainedModel(const std::string& path) : path_(path) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (fs::is_directory(path, error)) path_ = (fs::path(path) / "checkpoint.safetensors").string();
  if (!fs::exists(path_, error))
    throw UserError(
        fmt::format("{}: no such file; expected the checkpoint of `subquad train`, or "
                    "its directory",
                    path_));
  const TensorFile file = read_safetensors(path_);
  const auto described = file.metadata.find("model");
  if (described == file.metadata.end())
    throw UserError(fmt::format(
        "{}: does not say what its model is; expected a checkpoint that this version of `subquad "
        "train` wrote",
        path_));
  try {
    const Json j = Json::parse(described->second);
    const int format = j.at("format");
    if (format != kFormat)
      throw UserError(fmt::format("{}: written by another version (model format {}), expected {}",
                                  path_, format, kFormat));
    setup_ = setup_from(j);
    if (const auto loop = file.metadata.find("loop"); loop != file.metadata.end())
      steps_ = Json::parse(loop->second).at("step");
  } catch (const Json::exception& problem) {
    throw UserError(
        fmt::format("{}: its description of the model cannot be read: {}", path_, problem.what()));
  } catch (const UserError& problem) {
    const std::string text = problem.what();
    throw UserError(text.starts_with(path_) ? text : fmt::format("{}: {}", path_, text));
  }
  try {
    task_ = make_task(setup_.task_name, setup_.task_settings);
    setup_.task = task_.get();
    model_ = std::make_unique<Transformer<float>>(setup_.options, model_sizes(setup_));
    const ModelSizes& sizes = model_->sizes();
    attention_ = setup_.problem;
    attention_.batch = sizes.labels.inputs;
    attention_.n = attention_.n_kv = sizes.attention_n(setup_.options);
    const bool padded =
        !task_->tokens(Split::train, 0, 1, setup_.problem.n, setup_.seed).lengths.empty();
    methods_ = std::make_unique<MethodAttention>(setup_.methods, attention_, sizes.d_model,
                                                 setup_.seed, padded);
  } catch (const std::exception& problem) {
    throw UserError(fmt::format("{}: its model cannot be made: {}", path_, problem.what()));
  }
  methods_->add_parameters(&model_->layout());
  weights_ = AlignedArray<float>(model_->layout().size());
  read_weights(file, path_, model_->layout(), weights_.data());
  methods_->load(weights_.data());
}

Index TrainedModel::sequences() const { return attention_.batch; }

std::vector<QKV> TrainedModel::capture(Split split, Index example,
                                       std::vector<Tensor>* outputs) const {
  const TokenBatch batch = task_->tokens(split, example, 1, setup_.problem.n, setup_.seed);
  std::vector<QKV> layers;
  autodiff::Tape<float> tape;
  ModelWork work;
  forward({1, batch.tokens, batch.labels, batch.lengths, false, 0}, &layers, outputs, &tape, &work);
  return layers;
}

ModelTrace TrainedModel::trace(std::span<const std::int32_t> tokens) const {
  const ModelSizes& sizes = model_->sizes();
  SUBQUAD_CHECK(sizes.labels.kind == LabelKind::per_token && sizes.labels.inputs == 1 &&
                    static_cast<Index>(tokens.size()) == sizes.n,
                "{} tokens for a model of {}", tokens.size(), sizes.n);
  ModelTrace trace;
  trace.tokens.assign(tokens.begin(), tokens.end());
  const std::vector<std::int32_t> all_rows(tokens.size(), 0);  // every position has its logits
  autodiff::Tape<float> tape;
  ModelWork work;
  const autodiff::Var<float> logits =
      forward({1, tokens, all_rows, {}, false, 0}, &trace.layers, nullptr, &tape, &work);
  trace.logits = ConstMatrixMap(logits.data(), sizes.n, sizes.labels.classes);
  return trace;
}

autodiff::Var<float> TrainedModel::forward(const ModelInput& input, std::vector<QKV>* layers,
                                           std::vector<Tensor>* outputs,
                                           autodiff::Tape<float>* tape, ModelWork* work) const {
  layers->reserve(setup_.methods.size());
  Recording recording(*methods_, attention_, layers, outputs);
  tape->record_gradients(false);
  methods_->begin(false, 0);
  return model_->forward(*tape, weights_.data(), nullptr, input, 1, recording, work).logits;
}

Index first_example(Seed seed) {
  return static_cast<Index>(derive(seed, "captured examples") >> 34);
}

}  // namespace subquad
