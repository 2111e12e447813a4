// One step: shards forward and backward, the sum of their gradients, the optimizer.

#include <algorithm>
#include <cmath>
#include <mutex>

#include "harness/core/parallel.h"
#include "harness/model/distill.h"
#include "harness/model/trainer.h"

namespace subquad {
namespace {

constexpr Index kBlock = 1 << 14;  // elements per item of the reduction

// All shards have one shape: the largest divisor of `batch` that is at most `wanted`. Our choice
// where nothing is wanted: shards of about 1024 tokens, whose activations stay in the second-level
// cache, but 4 to 8 of them.
Index shard_count(Index batch, Index n, Index wanted) {
  if (wanted == 0) wanted = std::clamp<Index>(batch * n / 1024, 4, 8);
  Index count = std::min(batch, wanted);
  while (batch % count != 0) --count;
  return count;
}

Index scored(const TokenBatch& batch) {
  return static_cast<Index>(batch.labels.size()) -
         std::count(batch.labels.begin(), batch.labels.end(), kIgnore);
}

template <class T>
std::span<const T> part(const std::vector<T>& all, Index index, Index parts) {
  const std::size_t size = all.size() / static_cast<std::size_t>(parts);
  return {all.data() + static_cast<std::size_t>(index) * size, size};
}

}  // namespace

ModelSizes model_sizes(const TrainSetup& setup) {
  const Problem& p = setup.problem;
  ModelSizes sizes;
  sizes.layers = setup.options.layers;
  sizes.heads = p.heads;
  sizes.d_k = p.d_k;
  sizes.d_v = p.d_v;
  sizes.d_model = setup.options.d_model > 0 ? setup.options.d_model : p.heads * p.d_v;
  sizes.hidden =
      static_cast<Index>(std::llround(setup.options.mlp * static_cast<double>(sizes.d_model)));
  sizes.n = p.n;
  sizes.causal = p.causal;
  sizes.scale = p.scale;
  sizes.labels = setup.task->labels(p.n);
  return sizes;
}

// What one thread works with.
struct TrainState::Lane {
  explicit Lane(MethodAttention a) : attention(std::move(a)) {}
  MethodAttention attention;
  std::unique_ptr<TeacherLane> teacher;
  autodiff::Tape<float> tape;
  ModelWork work;
};

TrainState::TrainState(const TrainSetup& setup) : setup_(setup) {
  const Problem& p = setup.problem;
  if (p.n != p.n_kv)
    throw Unsupported(
        fmt::format("a model attends to itself: n_kv={} needs to be n={}", p.n_kv, p.n));
  SUBQUAD_CHECK(static_cast<Index>(setup.methods.size()) == setup.options.layers,
                "{} methods for {} layers", setup.methods.size(), setup.options.layers);
  const ModelSizes sizes = model_sizes(setup);
  model_ = std::make_unique<Transformer<float>>(setup.options, sizes);
  shards_ = shard_count(p.batch, p.n, setup.options.shards);
  shard_batch_ = p.batch / shards_;
  shard_problem_ = p;
  shard_problem_.batch = shard_batch_ * sizes.labels.inputs;
  shard_problem_.n = shard_problem_.n_kv = sizes.attention_n(setup.options);
  key_padding_ = !setup.task->tokens(Split::train, 0, 1, p.n, setup.seed).lengths.empty();
  parts_.resize(static_cast<std::size_t>(shards_));
  lanes_.resize(static_cast<std::size_t>(thread_count()));
  if (!setup.options.teacher.empty()) {
    teacher_ = std::make_unique<TrainedModel>(setup.options.teacher);
    require_same_sizes(*teacher_, sizes, true);
  }
  Lane& first = lane(0);
  for (std::size_t i = 0; i < model_->layout().entries().size(); ++i)
    if (model_->layout()[i].name.find(".method.") == std::string::npos)
      model_->layout().set_rate(i, setup.options.host_rate);
  weights_ = AlignedArray<float>(model_->layout().size());
  grads_ = AlignedArray<float>(model_->layout().size() * shards_);
  initialise(model_->layout(), setup.seed, weights_.data());
  first.attention.initial_values(weights_.data());
  optimizer_ = std::make_unique<Optimizer>(setup.options, model_->layout());
}

TrainState::~TrainState() = default;

const ParameterLayout& TrainState::layout() const { return model_->layout(); }

TrainState::Lane& TrainState::lane(int thread) {
  auto& slot = lanes_[static_cast<std::size_t>(thread)];
  if (slot) return *slot;
  static std::mutex preparing;  // plans of libraries (FFTW) are not made by two threads at once
  const std::lock_guard lock(preparing);
  slot = std::make_unique<Lane>(MethodAttention(
      setup_.methods, shard_problem_, model_->sizes().d_model, setup_.seed, key_padding_));
  if (teacher_)
    slot->teacher = std::make_unique<TeacherLane>(*teacher_, shard_problem_, key_padding_);
  if (thread == 0) {
    slot->attention.add_parameters(&model_->layout());
  } else {
    slot->attention.take_places(lanes_[0]->attention);
  }
  return *slot;
}

double TrainState::run(Index step, const TokenBatch& batch, bool gradients, bool training,
                       Scores* scores) {
  SUBQUAD_CHECK(batch.batch == setup_.problem.batch && batch.n == setup_.problem.n,
                "a batch of {} x {} for a model of {} x {}", batch.batch, batch.n,
                setup_.problem.batch, setup_.problem.n);
  const double denominator = std::max<double>(1, static_cast<double>(scored(batch)));
  const Index size = model_->layout().size();
  if (static_cast<int>(lanes_.size()) < thread_count())
    lanes_.resize(static_cast<std::size_t>(thread_count()));
  parallel_for(shards_, [&](Index s, int thread) {
    Lane& l = lane(thread);
    l.tape.clear();
    l.tape.record_gradients(gradients);
    l.attention.begin(training, static_cast<std::uint64_t>(step));
    l.attention.load(weights_.data());
    float* const grads = gradients ? grads_.data() + s * size : nullptr;
    if (gradients) std::fill_n(grads, size, 0.0f);
    const ModelInput input{
        shard_batch_,
        part(batch.tokens, s, shards_),
        part(batch.labels, s, shards_),
        part(batch.lengths, s, shards_),
        training,
        derive(setup_.seed, "step",
               {static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(s)})};
    ModelOutput<float> out;
    if (teacher_ && gradients) {
      l.teacher->run(input);
      DistilledAttention attention(l.attention, *l.teacher, setup_.options,
                                   1 / static_cast<double>(shards_));
      out = model_->forward(l.tape, weights_.data(), grads, input, denominator, attention, &l.work);
      out.loss = attention.loss(out, denominator);
    } else {
      out =
          model_->forward(l.tape, weights_.data(), grads, input, denominator, l.attention, &l.work);
    }
    Scores& part_scores = parts_[static_cast<std::size_t>(s)];
    part_scores = {static_cast<double>(*out.loss.data()), 0, 0};
    if (scores != nullptr) {
      const Index classes = out.logits.dims().back();
      for (std::size_t r = 0; r < out.labels.size(); ++r) {
        if (out.labels[r] == kIgnore) continue;
        const float* const row = out.logits.data() + static_cast<Index>(r) * classes;
        part_scores.labels += 1;
        part_scores.accuracy += std::max_element(row, row + classes) - row == out.labels[r] ? 1 : 0;
      }
    }
    if (!gradients) return;
    l.tape.backward(out.loss);
    l.attention.add_gradients(grads);
  });
  double loss = 0;
  for (const Scores& s : parts_) {
    loss += s.loss;
    if (scores == nullptr) continue;
    scores->labels += s.labels;
    scores->accuracy += s.accuracy;
  }
  if (scores != nullptr) {
    scores->loss = loss;
    scores->accuracy /= std::max<double>(1, static_cast<double>(scores->labels));
  }
  return loss;
}

// The gradients of all shards into those of the first, in order.
void TrainState::reduce() {
  const Index size = model_->layout().size(), blocks = (size + kBlock - 1) / kBlock;
  parallel_for(blocks, [&](Index block, int) {
    const Index first = block * kBlock, last = std::min(size, first + kBlock);
    for (Index s = 1; s < shards_; ++s) {
      const float* const from = grads_.data() + s * size;
      float* const to = grads_.data();
      for (Index i = first; i < last; ++i) to[i] += from[i];
    }
  });
}

double TrainState::gradients(Index step, const TokenBatch& batch, bool training) {
  const double loss = run(step, batch, true, training, nullptr);
  reduce();
  return loss;
}

double TrainState::step(Index step, const TokenBatch& batch) {
  const double loss = gradients(step, batch, true);
  norm_ = optimizer_->step(step, weights_.data(), grads_.data());
  return loss;
}

Scores TrainState::evaluate(const TokenBatch& batch) {
  Scores scores;
  run(0, batch, false, false, &scores);
  return scores;
}

double TrainState::activation_bytes() const {
  double bytes = 0;
  for (const auto& lane : lanes_)
    if (lane) bytes += lane->tape.bytes() + (lane->teacher ? lane->teacher->bytes() : 0);
  return bytes;
}

}  // namespace subquad
