#include "harness/model/distill.h"

#include <algorithm>
#include <cstring>

#include "harness/autodiff/op_tools.h"
#include "harness/model/checkpoint.h"

namespace subquad {
namespace {

using autodiff::Var;

// Passes on to the methods and keeps what went in and out.
class Watched final : public LayerAttention<float> {
 public:
  Watched(MethodAttention& methods, std::vector<TeacherLane::Layer>* layers)
      : methods_(methods), layers_(*layers) {}
  Var<float> attend(Index layer, Var<float> q, Var<float> k, Var<float> v, Var<float> x,
                    std::span<const std::uint8_t> key_mask) override {
    const Var<float> out = methods_.attend(layer, q, k, v, x, key_mask);
    layers_.push_back({q, k, v, x, out});
    return out;
  }

 private:
  MethodAttention& methods_;
  std::vector<TeacherLane::Layer>& layers_;
};

ConstTensorView view(Var<float> x) {
  const autodiff::Dims& d = x.dims();
  return {x.data(), {d[0], d[1], d[2], d[3]}};
}

// A scalar: weight times the method's own loss. Its gradient is made at once, since the method's
// parameters take theirs outside the tape; so nothing may scale this loss.
Var<float> matrix_loss(LearnsMatrix& method, Var<float> q, Var<float> k, Var<float> v,
                       const TeacherLane::Layer& teacher, double weight) {
  autodiff::Tape<float>& tape = q.tape();
  const Var<float> loss = tape.make({}, true);
  float* const dq = tape.save(loss, 0, q.size() + k.size() + v.size());
  float *const dk = dq + q.size(), *const dv = dk + k.size();
  Inputs in;
  in.q = view(q);
  in.k = view(k);
  in.v = view(v);
  *loss.data() = static_cast<float>(
      weight *
      method.matrix_loss(in, view(teacher.q), view(teacher.k), weight,
                         {{dq, in.q.shape()}, {dk, in.k.shape()}, {dv, in.v.shape()}, {}}));
  tape.note(loss, [=] {
    autodiff::Tape<float>& t = loss.tape();
    SUBQUAD_CHECK(*t.out_grad(loss) == 1.0f, "a matrix loss was scaled by {}", *t.out_grad(loss));
    const float* from = t.saved(loss, 0);
    for (const Var<float>& var : {q, k, v}) {
      if (const autodiff::Target<float> to = t.target(var))
        for (Index i = 0; i < var.size(); ++i) to.data[i] = to.add ? to.data[i] + from[i] : from[i];
      from += var.size();
    }
  });
  return loss;
}

// What a layer's method is fitted on: fresh examples of the training split.
class TeacherData final : public FitData {
 public:
  TeacherData(const TrainedModel& teacher, std::size_t layer) : teacher_(teacher), layer_(layer) {}
  void next(Inputs* inputs, ConstTensorView* dense_out) override {
    outputs_.clear();
    layers_ = teacher_.capture(Split::train, example_++, &outputs_);
    *inputs = layers_[layer_].inputs();
    *dense_out = outputs_[layer_];
  }

 private:
  const TrainedModel& teacher_;
  std::size_t layer_;
  Index example_ = 0;
  std::vector<QKV> layers_;
  std::vector<Tensor> outputs_;
};

std::vector<Index> shape_of(const ParameterEntry& entry) {
  std::vector<Index> shape;
  for (int a = 0; a < entry.dims.rank(); ++a) shape.push_back(entry.dims[a]);
  return shape;
}

// "layers.3.method.w" -> 3; -1 for what is no method's.
Index method_layer(const std::string& name) {
  const std::size_t at = name.find(".method.");
  return at == std::string::npos || !name.starts_with("layers.") ? -1
                                                                 : std::stoll(name.substr(7, at));
}

}  // namespace

void require_same_sizes(const TrainedModel& teacher, const ModelSizes& student, bool same_n) {
  const ModelSizes sizes = model_sizes(teacher.setup());
  const auto require = [&](const char* what, Index have, Index want) {
    if (have != want)
      throw UserError(
          fmt::format("{}: a model of {}={}, expected {}", teacher.path(), what, have, want));
  };
  require("layers", sizes.layers, student.layers);
  require("heads", sizes.heads, student.heads);
  if (same_n) require("n", sizes.n, student.n);
  require("d_k", sizes.d_k, student.d_k);
  require("d_v", sizes.d_v, student.d_v);
  require("d_model", sizes.d_model, student.d_model);
  require("classes", sizes.labels.classes, student.labels.classes);
  require("vocabulary", sizes.labels.vocabulary, student.labels.vocabulary);
  require("causal", sizes.causal ? 1 : 0, student.causal ? 1 : 0);
}

TeacherLane::TeacherLane(const TrainedModel& teacher, const Problem& problem, bool key_padding)
    : teacher_(teacher),
      methods_(teacher.setup().methods, problem, teacher.d_model(), teacher.setup().seed,
               key_padding) {
  methods_.take_places(teacher.attention());
  tape_.record_gradients(false);
  layers_.reserve(teacher.setup().methods.size());
}

void TeacherLane::run(ModelInput input) {
  tape_.clear();
  layers_.clear();
  methods_.begin(false, 0);
  methods_.load(teacher_.weights());
  input.training = false;
  Watched watched(methods_, &layers_);
  logits_ = teacher_.network()
                .forward(tape_, teacher_.weights(), nullptr, input, 1, watched, &work_)
                .logits;
}

void DistilledAttention::add(Var<float> loss) {
  sum_ = sum_.empty() ? loss : autodiff::add(sum_, loss);
}

Var<float> DistilledAttention::attend(Index layer, Var<float> q, Var<float> k, Var<float> v,
                                      Var<float> x, std::span<const std::uint8_t> key_mask) {
  const Var<float> out = student_.attend(layer, q, k, v, x, key_mask);
  const TeacherLane::Layer& teacher = teacher_.layer(layer);
  autodiff::Tape<float>& tape = q.tape();
  const double each = share_ / static_cast<double>(student_.layers());
  const auto distance = [&](double weight, Var<float> mine, Var<float> other) {
    if (weight > 0)
      add(autodiff::scale(autodiff::mse(mine, tape.constant(other.data(), other.dims())),
                          weight * each));
  };
  distance(options_.hidden_weight, x, teacher.x);
  distance(options_.context_weight, out, teacher.out);
  auto* const learner = dynamic_cast<LearnsMatrix*>(&student_.method(layer));
  if (options_.matrix_weight > 0 && learner != nullptr && learner->learns_matrix())
    add(matrix_loss(*learner, q, k, v, teacher, options_.matrix_weight * each));
  return out;
}

Var<float> DistilledAttention::loss(const ModelOutput<float>& out, double denominator) const {
  Var<float> all = autodiff::scale(out.loss, options_.task_weight);
  if (options_.logits_weight > 0 && out.logits.dims().rows() > 0) {
    const Var<float> teacher = teacher_.logits();
    const Var<float> target =
        autodiff::softmax(out.logits.tape().constant(teacher.data(), teacher.dims()));
    const double rows = static_cast<double>(out.logits.dims().rows());
    all = autodiff::add(
        all, autodiff::scale(autodiff::kl_divergence(target, autodiff::log_softmax(out.logits)),
                             options_.logits_weight * rows / denominator));
  }
  return sum_.empty() ? all : autodiff::add(all, sum_);
}

bool take_initial_weights(const std::string& path, const TrainSetup& setup, TrainState* state) {
  const TrainedModel from(path);
  require_same_sizes(from, model_sizes(setup), false);  // a table of positions must fit below
  const TensorFile file = read_safetensors(from.path());
  bool all = true;
  for (const ParameterEntry& entry : state->layout().entries()) {
    if (const Index layer = method_layer(entry.name); layer >= 0) {
      const std::string& mine = setup.methods[static_cast<std::size_t>(layer)].name;
      if (from.setup().methods[static_cast<std::size_t>(layer)].name != mine) {
        all = false;
        continue;
      }
      if (Registry::instance().method(mine).info.random && from.setup().seed != setup.seed)
        throw UserError(
            fmt::format("{}: its random features are those of seed {}, expected seed {}",
                        from.path(), from.setup().seed, setup.seed));
    }
    const auto& tensor = file.get(from.path(), entry.name, "F32", shape_of(entry));
    std::memcpy(state->weights() + entry.offset, tensor.bytes.data(), tensor.bytes.size());
  }
  return all;
}

FitReport fit_to_teacher(const TrainedModel& teacher, const TrainSetup& setup, TrainState* state) {
  FitReport all;
  Index fitted = 0;
  for (std::size_t i = 0; i < setup.methods.size(); ++i) {
    const std::unique_ptr<Method> method =
        make_method(setup.methods[i].name, setup.methods[i].settings);
    method->prepare(teacher.problem(), {.seed = derive(setup.seed, "method", {i}),
                                        .gradients = true,
                                        .d_model = teacher.d_model()});
    const std::vector<Parameter*> parameters = method->parameters();
    if (parameters.empty()) continue;
    const auto place = [&](const Parameter& p) {
      const std::string name = fmt::format("layers.{}.method.{}", i, p.name);
      for (const ParameterEntry& entry : state->layout().entries())
        if (entry.name == name) return state->weights() + entry.offset;
      throw InternalError(fmt::format("no weights {}", name));
    };
    for (Parameter* p : parameters) std::copy_n(place(*p), p->value.size(), p->value.data());
    TeacherData data(teacher, i);
    FitOptions options;
    options.steps = setup.options.fit_steps;
    options.learning_rate = setup.options.fit_rate;
    options.seed = derive(setup.seed, "fit", {i});
    const FitReport report = method->fit(data, options);
    for (Parameter* p : parameters) std::copy_n(p->value.data(), p->value.size(), place(*p));
    all.steps += report.steps;
    all.first_loss += report.first_loss;
    all.last_loss += report.last_loss;
    ++fitted;
  }
  if (fitted == 0) return all;  // the methods have nothing to fit
  all.first_loss /= static_cast<double>(fitted);
  all.last_loss /= static_cast<double>(fitted);
  return all;
}

}  // namespace subquad
