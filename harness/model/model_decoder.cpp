#include "harness/model/model_decoder.h"

#include "harness/core/method_weights.h"
#include "harness/core/registry.h"
#include "harness/core/token_plan.h"
#include "harness/model/uncached_steps.h"
#include "methods/engines/cache_slots.h"

namespace subquad {

// Slots of all layers for one sequence, with the plan that says what is in them.
struct ModelDecoder::Planned {
  std::unique_ptr<TokenPlan> plan;
  std::vector<CacheSlots> layers;
  std::span<const std::int32_t> seen;  // of the last step, in `places`
  AlignedArray<std::int32_t> places;   // [slots]
  AlignedArray<std::int32_t> earlier;  // [slots]
};

namespace {

Problem problem_of(const TrainedModel& model, Index batch) {
  Problem p = model.problem();
  p.batch = batch;
  return p;
}

// The method that the model was trained with.
bool is_own(const TrainedModel& model, const DecodingSetup& setup, std::size_t layer) {
  const LayerMethod& own = model.setup().methods[layer];
  return own.name == setup.method && own.settings == setup.settings;
}

// Of a layer's method: random features belong to what was learned with them, so a file's and a
// trained layer's come with their seed.
Seed seed_of(const TrainedModel& model, const DecodingSetup& setup, std::size_t layer) {
  if (!setup.weights.empty())
    if (const std::optional<Seed> own = weights_seed(setup.weights)) return *own;
  return derive(is_own(model, setup, layer) ? model.setup().seed : setup.seed, "method", {layer});
}

}  // namespace

ModelDecoder::ModelDecoder(const TrainedModel& model, const DecodingSetup& setup)
    : model_(model),
      batch_(setup.batch),
      capacity_(model.sizes().n),
      rows_(model.setup().options, model.sizes(), model.layout(), model.weights()) {
  prepare_methods(setup);
  if (setup.prepared) setup.prepared();
  setup.cache ? make_caches(setup) : make_uncached(setup);
  Index rows = batch_;
  for (const auto& p : planned_) rows = std::max(rows, p->plan->slots());
  const ModelSizes& s = model.sizes();
  tokens_ = AlignedArray<std::int32_t>(batch_ * capacity_);
  x_ = AlignedArray<float>(rows * s.d_model);
  u_ = AlignedArray<float>(rows * s.d_model);
  embedded_ = AlignedArray<float>(batch_ * rows_.embedding_width());
  q_ = AlignedArray<float>(rows * s.heads * s.d_k);
  k_ = AlignedArray<float>(rows * s.heads * s.d_k);
  v_ = AlignedArray<float>(rows * s.heads * s.d_v);
  attended_ = AlignedArray<float>(rows * s.heads * s.d_v);
  reset();
}

ModelDecoder::~ModelDecoder() = default;

void ModelDecoder::prepare_methods(const DecodingSetup& setup) {
  const MethodEntry& entry = Registry::instance().method(setup.method);
  const Problem problem = problem_of(model_, batch_);
  uses_hidden_ = entry.info.uses_hidden;
  for (std::size_t i = 0; i < model_.setup().methods.size(); ++i) {
    std::unique_ptr<Method> method = make_method(setup.method, setup.settings);
    method->prepare(problem,
                    {.seed = seed_of(model_, setup, i),
                     .gradients = false,
                     .d_model = uses_hidden_ ? model_.d_model() : rows_.embedding_width()});
    if (!method->parameters().empty()) {
      const bool own = setup.weights.empty() && is_own(model_, setup, i);
      if (setup.weights.empty() && !own)
        learned_from_ = "initial";
      else if (learned_from_ != "initial")  // one untrained layer makes the whole untrained
        learned_from_ = own ? "train" : setup.weights;
      if (own || !setup.weights.empty())
        load_method_weights(
            setup.weights.empty() ? fmt::format("{}:{}", model_.path(), i) : setup.weights,
            setup.method, *method);
    }
    methods_.push_back(std::move(method));
  }
}

void ModelDecoder::make_caches(const DecodingSetup& setup) {
  const Problem problem = problem_of(model_, batch_);
  DecodeConfig config{.batch = batch_,
                      .heads = problem.heads,
                      .capacity = capacity_,
                      .d_k = problem.d_k,
                      .d_v = problem.d_v,
                      .d_e = uses_hidden_ ? model_.d_model() : rows_.embedding_width(),
                      .scale = problem.logit_scale(),
                      .seed = 0};
  for (std::size_t i = 0; i < methods_.size(); ++i) {
    config.seed = seed_of(model_, setup, i);
    const auto* const plans = dynamic_cast<const PlansTokens*>(methods_[i].get());
    if (plans != nullptr && plans->make_token_plan(config) != nullptr) break;
    const std::string reason = unsupported_reason(Registry::instance().method(setup.method),
                                                  *methods_[i], problem, Pass::decode);
    if (!reason.empty()) throw Unsupported(reason);
    decoders_.push_back(methods_[i]->make_decoder(config));
  }
  if (!decoders_.empty() || methods_.empty()) return;
  config.batch = 1;
  const Seed seed = seed_of(model_, setup, 0);
  for (Index b = 0; b < batch_; ++b) {
    // The first sequence draws what a decoder of the same method would.
    config.seed = b == 0 ? seed : derive(seed, "sequence", {static_cast<std::uint64_t>(b)});
    auto planned = std::make_unique<Planned>();
    planned->plan = dynamic_cast<const PlansTokens&>(*methods_.front()).make_token_plan(config);
    const Index slots = planned->plan->slots();
    planned->earlier = AlignedArray<std::int32_t>(slots);
    planned->places = AlignedArray<std::int32_t>(slots);
    for (std::size_t i = 0; i < methods_.size(); ++i)
      planned->layers.emplace_back(problem.heads, slots, problem.d_k, problem.d_v);
    planned_.push_back(std::move(planned));
  }
}

void ModelDecoder::make_uncached(const DecodingSetup& setup) {
  std::vector<LayerMethod> methods;
  bool own = true;
  for (std::size_t i = 0; i < methods_.size(); ++i) {
    methods.push_back({setup.method, setup.settings});
    own = own && is_own(model_, setup, i);
    if (!methods_[i]->parameters().empty() && (!own || !setup.weights.empty()))
      throw Unsupported(fmt::format(
          "without a cache the parameters of {} are those that the model was trained with, and "
          "this one was trained with {}",
          setup.method, model_.setup().methods[i].name));
  }
  uncached_ = std::make_unique<UncachedSteps>(model_, std::move(methods),
                                              own ? model_.setup().seed : setup.seed, batch_);
}

void ModelDecoder::reset() {
  length_ = 0;
  for (const auto& decoder : decoders_) decoder->reset();
  for (const auto& planned : planned_) {
    planned->plan->reset();
    planned->seen = {};
  }
}

void ModelDecoder::prefill(std::span<const ModelTrace> sequences, Index length) {
  SUBQUAD_CHECK(
      length_ == 0 && static_cast<Index>(sequences.size()) == batch_ && length <= capacity_,
      "a prompt of {} tokens for {} sequences after {}", length, sequences.size(), length_);
  if (length == 0) return;
  const ModelSizes& s = model_.sizes();
  const Index width = rows_.embedding_width();
  Tensor embedded(batch_, 1, length, width);
  for (Index b = 0; b < batch_; ++b) {
    const auto& tokens = sequences[static_cast<std::size_t>(b)].tokens;
    std::copy_n(tokens.begin(), length, tokens_.data() + b * capacity_);
    for (Index t = 0; t < length; ++t)
      std::copy_n(rows_.embedding(tokens[static_cast<std::size_t>(t)]), width,
                  embedded.view().head_data(b, 0) + t * width);
  }
  // The first `length` rows of every head.
  const auto rows_of = [&](std::size_t layer, Tensor QKV::*part) {
    const Tensor& first = sequences[0].layers[layer].*part;
    Tensor rows(batch_, first.heads(), length, first.d());
    for (Index b = 0; b < batch_; ++b)
      for (Index h = 0; h < first.heads(); ++h)
        std::copy_n(
            (sequences[static_cast<std::size_t>(b)].layers[layer].*part).view().head_data(0, h),
            length * first.d(), rows.view().head_data(b, h));
    return rows;
  };
  for (std::size_t i = 0; i < decoders_.size(); ++i) {
    const Tensor q = rows_of(i, &QKV::q), k = rows_of(i, &QKV::k), v = rows_of(i, &QKV::v);
    const Tensor x = uses_hidden_ ? rows_of(i, &QKV::x) : embedded;
    decoders_[i]->prefill(q, k, v, x);
  }
  for (std::size_t b = 0; b < planned_.size(); ++b) {
    Planned& planned = *planned_[b];
    const auto kept =
        planned.plan->prefill(embedded.view().head_data(static_cast<Index>(b), 0), length);
    for (std::size_t i = 0; i < planned.layers.size(); ++i)
      for (std::size_t slot = 0; slot < kept.size(); ++slot)
        for (Index h = 0; h < s.heads; ++h) {
          const QKV& seen = sequences[b].layers[i];
          planned.layers[i].write(h, static_cast<Index>(slot),
                                  seen.k.view().head_data(0, h) + kept[slot] * s.d_k,
                                  seen.v.view().head_data(0, h) + kept[slot] * s.d_v);
        }
  }
  length_ = length;
}

void ModelDecoder::step(std::span<const std::int32_t> tokens, float* logits) {
  SUBQUAD_CHECK(static_cast<Index>(tokens.size()) == batch_ && length_ < capacity_,
                "{} tokens for {} sequences after {} of {}", tokens.size(), batch_, length_,
                capacity_);
  const Index d = model_.d_model();
  for (Index b = 0; b < batch_; ++b)
    tokens_[b * capacity_ + length_] = tokens[static_cast<std::size_t>(b)];
  ++length_;
  if (uncached_ != nullptr) return uncached_->step(tokens_.data(), capacity_, length_, logits);
  if (planned_.empty()) {
    step_decoders();
    for (Index b = 0; b < batch_; ++b) rows_.logits(x_.data() + b * d, logits + b * classes());
    return;
  }
  for (Index b = 0; b < batch_; ++b) {
    step_planned(b);
    rows_.logits(x_.data(), logits + b * classes());  // row 0: the new token
  }
}

void ModelDecoder::step_decoders() {
  const ModelSizes& s = model_.sizes();
  const Index d = s.d_model, qk = s.heads * s.d_k, values = s.heads * s.d_v,
              width = rows_.embedding_width();
  for (Index b = 0; b < batch_; ++b) {
    rows_.front(history(b, length_), x_.data() + b * d);
    std::copy_n(rows_.embedding(tokens_[b * capacity_ + length_ - 1]), width,
                embedded_.data() + b * width);
  }
  for (Index i = 0; i < s.layers; ++i) {
    for (Index b = 0; b < batch_; ++b)
      rows_.project(i, x_.data() + b * d, length_ - 1, u_.data() + b * d, q_.data() + b * qk,
                    k_.data() + b * qk, v_.data() + b * values);
    decoders_[static_cast<std::size_t>(i)]->step(
        {q_.data(), k_.data(), v_.data(), uses_hidden_ ? u_.data() : embedded_.data()},
        attended_.data());
    for (Index b = 0; b < batch_; ++b)
      rows_.finish(i, attended_.data() + b * values, x_.data() + b * d);
  }
}

// Row 0 is the new token, rows 1, 2, ... those that are rebuilt.
void ModelDecoder::step_planned(Index b) {
  Planned& planned = *planned_[static_cast<std::size_t>(b)];
  const ModelSizes& s = model_.sizes();
  const Index d = s.d_model, qk = s.heads * s.d_k, values = s.heads * s.d_v;
  const double scale = model_.problem().logit_scale();
  const Index cached = planned.plan->count();
  const auto positions = planned.plan->begin(rows_.embedding(tokens_[b * capacity_ + length_ - 1]));
  std::copy(positions.begin(), positions.end(), planned.places.data());
  planned.seen = {planned.places.data(), positions.size()};
  const Index total = static_cast<Index>(planned.seen.size()), rows = total - cached;
  const auto slot_of = [&](Index row) { return row == 0 ? total - 1 : cached + row - 1; };
  const auto position_of = [&](Index row) {
    return static_cast<Index>(planned.seen[static_cast<std::size_t>(slot_of(row))]);
  };
  for (Index r = 0; r < rows; ++r) rows_.front(history(b, position_of(r) + 1), x_.data() + r * d);
  for (Index i = 0; i < s.layers; ++i) {
    CacheSlots& cache = planned.layers[static_cast<std::size_t>(i)];
    for (Index r = 0; r < rows; ++r) {
      rows_.project(i, x_.data() + r * d, position_of(r), u_.data() + r * d, q_.data() + r * qk,
                    k_.data() + r * qk, v_.data() + r * values);
      for (Index h = 0; h < s.heads; ++h)
        cache.write(h, slot_of(r), k_.data() + r * qk + h * s.d_k,
                    v_.data() + r * values + h * s.d_v);
    }
    for (Index r = 0; r < rows; ++r) {
      Index count = 0;
      if (r > 0)  // a rebuilt token sees what lies before it, and itself
        for (Index slot = 0; slot < total; ++slot)
          if (planned.seen[static_cast<std::size_t>(slot)] <= position_of(r))
            planned.earlier[count++] = static_cast<std::int32_t>(slot);
      for (Index h = 0; h < s.heads; ++h) {
        const float* const q = q_.data() + r * qk + h * s.d_k;
        float* const out = attended_.data() + r * values + h * s.d_v;
        if (r == 0) {
          cache.attend(h, q, scale, total, out);
        } else {
          cache.attend(h, q, scale, {planned.earlier.data(), static_cast<std::size_t>(count)}, out);
        }
      }
    }
    for (Index r = 0; r < rows; ++r)
      rows_.finish(i, attended_.data() + r * values, x_.data() + r * d);
  }
  for (const TokenPlan::Move& move : planned.plan->end())
    for (CacheSlots& cache : planned.layers)
      for (Index h = 0; h < s.heads; ++h) cache.move(h, move.from, move.to);
}

CacheBytes ModelDecoder::bytes() const {
  CacheBytes all;
  for (const auto& decoder : decoders_) all += decoder->bytes();
  if (uncached_ != nullptr) all.aux += 4.0 * static_cast<double>(length_);  // the tokens
  const ModelSizes& s = model_.sizes();
  for (const auto& planned : planned_) {
    const Index kept = planned->plan->count(), slots = planned->plan->slots();
    all.kv += CacheSlots::kv_bytes(s.layers * s.heads, kept, s.d_k, s.d_v);
    // The plan's own, and the tokens that may have to be rebuilt.
    all.aux += planned->plan->aux_bytes() + 4.0 * static_cast<double>(length_);
    all.scratch +=
        CacheSlots::kv_bytes(s.layers * s.heads, slots - kept, s.d_k, s.d_v) +
        static_cast<double>(s.layers) * CacheSlots::work_bytes(s.heads, slots, s.d_k, s.d_v);
  }
  return all;
}

double ModelDecoder::keys_per_query(Index n) const {
  Problem p = problem_of(model_, batch_);
  p.n = p.n_kv = n;
  return methods_.empty() ? 0 : methods_.front()->budget(p).keys_per_query;
}

std::span<const std::int32_t> ModelDecoder::seen(Index b) const {
  return planned_.empty() ? std::span<const std::int32_t>()
                          : planned_[static_cast<std::size_t>(b)]->seen;
}

}  // namespace subquad
