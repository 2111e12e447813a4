// A labelled task whose q, k, v are those of a trained model on examples that it never saw:
// `{name: mqar, from: CHECKPOINT, layer: 0, head: -1}`. With `layer: -1` the heads of all layers
// stand side by side and x are the tokens' embeddings: what a method that chooses one set of tokens
// for the whole model has to go by.
#include "harness/core/capture.h"
#include "harness/core/parallel.h"
#include "harness/model/token_rows.h"
#include "harness/model/trained_model.h"

namespace subquad {
namespace {

class CapturedTask final : public Task {
 public:
  CapturedTask(const CaptureParams& params, const TaskEntry& entry, const Settings& settings)
      : params_(params) {
    const TrainedModel model(params.from);
    const TrainSetup& setup = model.setup();
    const auto wrong = [&](const std::string& what) {
      throw UserError(fmt::format("from: {}: {}", model.path(), what));
    };
    if (setup.task_name != entry.info.name)
      wrong(fmt::format("trained on the task {}, expected {}", setup.task_name, entry.info.name));
    // The model's settings of the task hold; the config may repeat them.
    for (const ParamSpec& spec : entry.params) {
      const auto own = settings.find(spec.name), trained = setup.task_settings.find(spec.name);
      if (own == settings.end() || trained == setup.task_settings.end()) continue;
      if (own->second != spec.default_value && own->second != trained->second)
        wrong(fmt::format("trained with {}={}, got {}={}; leave it out", spec.name,
                          to_string(trained->second), spec.name, to_string(own->second)));
    }
    problem_ = model.problem();
    const auto layers = static_cast<Index>(setup.methods.size());
    if (params.layer >= layers)
      wrong(fmt::format("has {} layers, got layer={}, expected 0 to {}, or -1 for all", layers,
                        params.layer, layers - 1));
    if (params.head >= problem_.heads)
      wrong(fmt::format("has {} heads, got head={}, expected 0 to {}, or -1 for all",
                        problem_.heads, params.head, problem_.heads - 1));
    task_ = make_task(setup.task_name, setup.task_settings);
    sequences_ = problem_.batch;
    width_ = model.d_model();
    if (params.head >= 0) problem_.heads = 1;
    if (params.layer >= 0) return;
    problem_.heads *= layers;
    width_ = rows_of(model).embedding_width();
  }

  Problem adapt(const Problem& requested) const override {
    Problem p = problem_;
    p.batch = requested.batch;
    // A whole model may also be asked for less than it was made for.
    if (params_.layer < 0 && requested.n > 0 && requested.n < p.n) p.n = p.n_kv = requested.n;
    return p;
  }
  std::string unsupported(const Problem& p) const override {
    return adapt(p) == p ? ""
                         : fmt::format("the model attends to {}, got {}", adapt(p).str(), p.str());
  }

  // Sequence s is that of example s / sequences_. Judged sets are examples of the test split; where
  // they start depends on the seed. Sets for fitting are examples of the training split.
  void fill(const Problem& p, Seed seed, Index set, QKV* out) const override {
    const TrainedModel model(params_.from);
    if (!(model.problem().n == problem_.n && model.problem().d_k == problem_.d_k &&
          model.problem().d_v == problem_.d_v && model.problem().batch == sequences_))
      throw UserError(fmt::format("{}: now holds {}, when the run began it was {}", model.path(),
                                  model.problem().str(), problem_.str()));
    const bool fitting = set >= kFirstFitSet;
    const Split split = fitting ? Split::train : Split::test;
    const auto start = first_example(seed) * sequences_;
    const Index first = (fitting ? set - kFirstFitSet : set) * p.batch + start;
    out->x = Tensor(p.batch, 1, p.n, width_);
    if (params_.layer < 0) return fill_all(model, p, split, first, out);
    bool padded = false;
    std::vector<QKV> layers;
    Index captured = -1;
    for (Index b = 0; b < p.batch; ++b) {
      const Index example = (first + b) / sequences_, part = (first + b) % sequences_;
      if (example != captured) layers = model.capture(split, example);
      captured = example;
      const QKV& from = layers[static_cast<std::size_t>(params_.layer)];
      const auto copy = [&](const Tensor& source, Index source_head, Tensor* to, Index head) {
        std::copy_n(source.view().head_data(part, source_head), to->n() * to->d(),
                    to->view().head_data(b, head));
      };
      for (Index h = 0; h < p.heads; ++h) {
        const Index source = params_.head >= 0 ? params_.head : h;
        copy(from.q, source, &out->q, h);
        copy(from.k, source, &out->k, h);
        copy(from.v, source, &out->v, h);
      }
      copy(from.x, 0, &out->x, 0);
      if (from.key_mask.empty()) continue;
      if (!padded) out->key_mask.assign(static_cast<std::size_t>(p.batch * p.n), 1);
      padded = true;
      std::copy_n(from.key_mask.begin() + part * p.n, p.n, out->key_mask.begin() + b * p.n);
    }
  }

  LabelSpec labels(Index n) const override { return task_->labels(n); }
  TokenBatch tokens(Split split, Index first, Index batch, Index n, Seed seed) const override {
    return task_->tokens(split, first, batch, n, seed);
  }
  std::vector<Floor> floors(Index n, Seed seed) const override { return task_->floors(n, seed); }

 private:
  static TokenRows rows_of(const TrainedModel& model) {
    return {model.setup().options, model.sizes(), model.layout(), model.weights()};
  }

  // Head h of layer l is head l * heads + h.
  void fill_all(const TrainedModel& model, const Problem& p, Split split, Index first,
                QKV* out) const {
    const TokenRows rows = rows_of(model);
    const Index own = params_.head >= 0 ? 1 : model.problem().heads;
    for (Index b = 0; b < p.batch; ++b) {
      const ModelTrace trace =
          model.trace(task_->tokens(split, first + b, 1, problem_.n, model.setup().seed).tokens);
      for (Index h = 0; h < p.heads; ++h) {
        const QKV& from = trace.layers[static_cast<std::size_t>(h / own)];
        const Index source = params_.head >= 0 ? params_.head : h % own;
        const auto copy = [&](const Tensor& all, Tensor* to) {
          std::copy_n(all.view().head_data(0, source), to->n() * to->d(),
                      to->view().head_data(b, h));
        };
        copy(from.q, &out->q);
        copy(from.k, &out->k);
        copy(from.v, &out->v);
      }
      for (Index t = 0; t < p.n; ++t)
        std::copy_n(rows.embedding(trace.tokens[static_cast<std::size_t>(t)]), width_,
                    out->x.view().head_data(b, 0) + t * width_);
    }
  }

  CaptureParams params_;
  std::unique_ptr<Task> task_;
  Problem problem_;      // batch: one example
  Index sequences_ = 1;  // of an example
  Index width_ = 0;      // of x
};

[[maybe_unused]] const bool kRegistered = [] {
  set_make_captured([](const CaptureParams& params, const TaskEntry& entry,
                       const Settings& settings) -> std::unique_ptr<Task> {
    return std::make_unique<CapturedTask>(params, entry, settings);
  });
  return true;
}();

}  // namespace
}  // namespace subquad
