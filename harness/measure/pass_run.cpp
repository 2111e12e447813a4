#include "harness/measure/pass_run.h"

#include <algorithm>

#include "harness/measure/checksum.h"
#include "harness/measure/memory.h"

namespace subquad {
namespace {

std::uint64_t chained(std::uint64_t chain, const ConstTensorView& t) {
  return checksum64(t.data(), static_cast<std::size_t>(t.size()) * sizeof(float), chain);
}

class AttentionPass final : public PassRun {
 public:
  AttentionPass(Method& method, const Task& task, const PassConfig& config)
      : PassRun(method, task, config),
        gradients_(config.pass != Pass::forward),
        saved_(static_cast<std::size_t>(config.input_sets)) {
    const Problem& p = config.problem;
    for (Index set = 0; set < config.input_sets; ++set) {
      out_.emplace_back(p.batch, p.heads, p.n, p.d_v);
      if (!gradients_) continue;
      dout_.push_back(make_dout(p, config.seed, set));
      dq_.emplace_back(p.batch, p.heads, p.n, p.d_k);
      dk_.emplace_back(p.batch, p.heads, p.n_kv, p.d_k);
      dv_.emplace_back(p.batch, p.heads, p.n_kv, p.d_v);
      dx_.push_back(qkv(set).x.empty() ? Tensor() : Tensor(qkv(set).x.shape()));
    }
  }

  void ready(Index set) override {
    if (config_.pass == Pass::backward) forward(set);
  }

  void call(Index set) override {
    if (config_.pass != Pass::backward) forward(set);
    if (gradients_) backward(set);
  }

  std::vector<PassOutput> outputs(Index set) override {
    const auto s = static_cast<std::size_t>(set);
    std::vector<PassOutput> list;
    if (config_.pass != Pass::backward) list.push_back({"out", out_[s], !gradients_});
    if (gradients_) {
      list.push_back({"dq", dq_[s]});
      list.push_back({"dk", dk_[s]});
      list.push_back({"dv", dv_[s]});
    }
    return list;
  }

  std::vector<TensorView> linear_inputs(Index set) override {
    if (gradients_) return {dout_[static_cast<std::size_t>(set)]};
    return {mutable_qkv(set).v};
  }
  std::vector<TensorView> logit_inputs(Index set) override {
    return {mutable_qkv(set).q, mutable_qkv(set).k};
  }

  std::uint64_t input_checksum(Index set) const override {
    const auto s = static_cast<std::size_t>(set);
    std::uint64_t sum = PassRun::input_checksum(set);
    if (gradients_) sum = chained(sum, dout_[s]);
    if (config_.pass == Pass::backward) sum = chained(sum, out_[s]);
    return sum;
  }

 private:
  void forward(Index set) {
    const auto s = static_cast<std::size_t>(set);
    if (gradients_ && !saved_[s]) saved_[s] = method_.make_saved();
    method_.forward(inputs(set), out_[s], saved_[s].get());
  }
  void backward(Index set) {
    const auto s = static_cast<std::size_t>(set);
    Gradients grads{dq_[s], dk_[s], dv_[s], {}};
    if (!dx_[s].empty()) grads.dx = dx_[s];
    method_.backward(inputs(set), std::as_const(out_[s]), std::as_const(dout_[s]), *saved_[s],
                     grads);
  }

  bool gradients_;
  std::vector<Tensor> dout_, out_, dq_, dk_, dv_, dx_;  // by set
  std::vector<std::unique_ptr<Saved>> saved_;
};

// The last `steps` tokens of a history of n, token by token. A call is all of them; the history
// before them is fed untimed.
class DecodePass final : public PassRun {
 public:
  DecodePass(Method& method, const Task& task, const PassConfig& config)
      : PassRun(method, task, config), steps_(std::min(config.decode_tokens, config.problem.n)) {
    const Problem& p = config.problem;
    for (Index set = 0; set < config.input_sets; ++set) {
      const QKV& from = qkv(set);
      Set s;
      split(from.q, &s.history_q, &s.q);
      split(from.k, &s.history_k, &s.k);
      split(from.v, &s.history_v, &s.v);
      if (!from.x.empty()) split(from.x, &s.history_x, &s.x);
      s.out = Tensor(1, 1, steps_ * p.batch * p.heads, p.d_v);
      sets_.push_back(std::move(s));
    }
  }

  void prepare_state() override {
    const Problem& p = config_.problem;
    const Tensor& x = qkv(0).x;
    decoder_ = method_.make_decoder({.batch = p.batch,
                                     .heads = p.heads,
                                     .capacity = p.n,
                                     .d_k = p.d_k,
                                     .d_v = p.d_v,
                                     .d_e = x.empty() ? 0 : x.d(),
                                     .scale = p.logit_scale(),
                                     .seed = config_.method_seed.value_or(config_.seed)});
    SUBQUAD_CHECK(decoder_ != nullptr, "make_decoder returned nothing");
  }
  bool prepare_counts() const override { return false; }
  bool ready_before_every_call() const override { return true; }

  void ready(Index set) override {
    const Set& s = at(set);
    decoder_->reset();
    if (s.history_k.empty()) return;
    decoder_->prefill(s.history_q, s.history_k, s.history_v,
                      s.history_x.empty() ? ConstTensorView() : s.history_x.view());
  }

  void call(Index set) override {
    for (Index t = 0; t < steps_; ++t) step(set, t);
  }
  CacheBytes call_tracking_bytes(Index set) override {
    CacheBytes peak = decoder_->bytes();
    for (Index t = 0; t < steps_; ++t) {
      step(set, t);
      const CacheBytes now = decoder_->bytes();
      peak = {std::max(peak.kv, now.kv), std::max(peak.aux, now.aux), std::max(peak.cold, now.cold),
              std::max(peak.scratch, now.scratch)};
    }
    return peak;
  }
  Index steps() const override { return steps_; }
  bool each_step(Index set,
                 const std::function<void(Index, double, const Decoder&)>& after) override {
    ready(set);
    for (Index t = 0; t < steps_; ++t) {
      const double start = monotonic_seconds();
      step(set, t);
      after(t, monotonic_seconds() - start, *decoder_);
    }
    return true;
  }

  std::vector<PassOutput> outputs(Index set) override { return {{"out", at(set).out}}; }
  std::vector<TensorView> linear_inputs(Index set) override {
    return {at(set).history_v, at(set).v};
  }
  std::vector<TensorView> logit_inputs(Index set) override {
    Set& s = at(set);
    return {s.history_q, s.q, s.history_k, s.k};
  }
  std::uint64_t input_checksum(Index set) const override {
    const Set& s = sets_[static_cast<std::size_t>(set)];
    std::uint64_t sum = 0;
    for (const Tensor* t : {&s.history_q, &s.history_k, &s.history_v, &s.q, &s.k, &s.v})
      sum = chained(sum, t->view());
    return sum;
  }

  bool has_own_reference() const override { return true; }
  Reference own_reference() const override {
    const Problem& p = config_.problem;
    std::vector<Index> rows;
    for (Index t = 0; t < steps_; ++t) rows.push_back(p.n - steps_ + t);
    const TensorD exact = exact_rows(inputs(0), p, rows);
    Reference reference;
    reference.problem = p;
    reference.out = TensorD(1, 1, steps_ * p.batch * p.heads, p.d_v);
    for (Index bh = 0; bh < p.batch * p.heads; ++bh)
      for (Index t = 0; t < steps_; ++t)
        std::copy_n(exact.data() + (bh * steps_ + t) * p.d_v, p.d_v,
                    reference.out.data() + (t * p.batch * p.heads + bh) * p.d_v);
    return reference;
  }

 private:
  struct Set {
    Tensor history_q, history_k, history_v, history_x;  // [batch, heads, n - steps, d]
    Tensor q, k, v, x;                                  // [1, 1, steps * batch * heads, d]
    Tensor out;                                         // the same, d = d_v
  };

  Set& at(Index set) { return sets_[static_cast<std::size_t>(set)]; }

  // [batch, heads, n, d] -> the history, and the tokens after it in the order they are fed.
  void split(const Tensor& from, Tensor* history, Tensor* tokens) const {
    const Index heads = from.batch() * from.heads(), d = from.d(), before = from.n() - steps_;
    *history = Tensor(from.batch(), from.heads(), before, d);
    *tokens = Tensor(1, 1, steps_ * heads, d);
    for (Index bh = 0; bh < heads; ++bh) {
      const float* head = from.data() + bh * from.n() * d;
      std::copy_n(head, before * d, history->data() + bh * before * d);
      for (Index t = 0; t < steps_; ++t)
        std::copy_n(head + (before + t) * d, d, tokens->data() + (t * heads + bh) * d);
    }
  }

  void step(Index set, Index t) {
    Set& s = at(set);
    const Problem& p = config_.problem;
    const Index heads = p.batch * p.heads;
    DecodeStep in{s.q.data() + t * heads * p.d_k, s.k.data() + t * heads * p.d_k,
                  s.v.data() + t * heads * p.d_v, nullptr};
    if (!s.x.empty()) in.x = s.x.data() + t * p.batch * s.x.d();
    decoder_->step(in, s.out.data() + t * heads * p.d_v);
  }

  Index steps_;
  std::vector<Set> sets_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace

PassRun::PassRun(Method& method, const Task& task, const PassConfig& config)
    : method_(method), config_(config) {
  SUBQUAD_CHECK(config.input_sets > 0, "input_sets = {}", config.input_sets);
  for (Index set = 0; set < config.input_sets; ++set) {
    inputs_.emplace_back(config.problem);
    task.fill(config.problem, config.seed, set, &inputs_.back());
  }
}

Env PassRun::env() const {
  return {.seed = config_.method_seed.value_or(config_.seed),
          .gradients = config_.gradients || config_.pass == Pass::backward ||
                       config_.pass == Pass::forward_backward,
          .d_model = inputs_[0].x.empty() ? 0 : inputs_[0].x.d()};
}

void PassRun::prepare() { method_.prepare(config_.problem, env()); }

std::uint64_t PassRun::input_checksum(Index set) const {
  const QKV& in = qkv(set);
  std::uint64_t sum = 0;
  for (const Tensor* t : {&in.q, &in.k, &in.v, &in.x})
    if (!t->empty()) sum = chained(sum, t->view());
  return checksum64(in.key_mask.data(), in.key_mask.size(), sum);
}

std::unique_ptr<PassRun> make_pass_run(Method& method, const MethodInfo& info, const Task& task,
                                       const PassConfig& config) {
  if (config.pass == Pass::train || config.pass == Pass::fit)
    throw Unsupported(fmt::format("the {} pass is not a timed call", name(config.pass)));
  std::unique_ptr<PassRun> run;
  if (config.pass == Pass::decode) {
    run = std::make_unique<DecodePass>(method, task, config);
  } else {
    run = std::make_unique<AttentionPass>(method, task, config);
  }
  if (info.uses_hidden && run->qkv(0).x.empty())
    throw Unsupported(
        fmt::format("{} needs the layer input x, which the task does not supply", info.name));
  if (!info.key_padding && !run->qkv(0).key_mask.empty())
    throw Unsupported(
        fmt::format("{} cannot leave out padded keys, which the task has", info.name));
  return run;
}

}  // namespace subquad
