#include "harness/measure/conformance.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "harness/core/parallel.h"
#include "harness/core/random.h"
#include "harness/core/registry.h"
#include "harness/core/task.h"
#include "harness/measure/bound_check.h"

namespace subquad {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr Index kHiddenWidth = 16;  // width of Inputs::x for methods that use it

// Thrown by a check that does not apply.
struct Skip {
  std::string reason;
};

// Thrown by a check that found something wrong.
struct Violation {
  std::string detail;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Violation{fmt::format(text, std::forward<Args>(args)...)};
}

class ThreadCount {  // restores the number of threads
 public:
  ThreadCount() : before_(omp_get_max_threads()) {}
  ~ThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};

// ---- inputs and runs ----

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

QKV make_inputs(const MethodInfo& info, const Problem& p, Seed seed) {
  QKV in(p);
  fill_normal(derive(seed, "conformance.q"), in.q.data(), in.q.size());
  fill_normal(derive(seed, "conformance.k"), in.k.data(), in.k.size());
  fill_normal(derive(seed, "conformance.v"), in.v.data(), in.v.size());
  if (info.uses_hidden) {
    in.x = Tensor(p.batch, 1, p.n, kHiddenWidth);
    fill_normal(derive(seed, "conformance.x"), in.x.data(), in.x.size());
  }
  return in;
}

// A third of the keys are padding; the last batch item sees nothing at all.
std::vector<std::uint8_t> make_mask(const Problem& p, Seed seed) {
  Random random(seed, "conformance.mask");
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(p.batch * p.n_kv));
  for (std::size_t e = 0; e < mask.size(); ++e) {
    const bool last_item = e >= mask.size() - static_cast<std::size_t>(p.n_kv);
    mask[e] = !last_item && random.uniform() > 1.0 / 3 ? 1 : 0;
  }
  return mask;
}

Env make_env(const MethodInfo& info, Seed seed, bool gradients) {
  Env env;
  env.seed = seed;
  env.gradients = gradients;
  env.d_model = info.uses_hidden ? kHiddenWidth : 0;
  return env;
}

struct Runner {
  const MethodEntry& entry;
  Seed seed;

  std::unique_ptr<Method> create(const Settings& given = {}) const {
    return entry.create(resolve(entry.info.name, entry.params, given));
  }
  // A prepared method, or Skip when it does not support the problem.
  std::unique_ptr<Method> prepared(const Problem& p, const Settings& given = {},
                                   bool gradients = false) const {
    auto method = create(given);
    const Pass pass = gradients ? Pass::backward : Pass::forward;
    const std::string reason = unsupported_reason(entry, *method, p, pass);
    if (!reason.empty()) throw Skip{reason};
    method->prepare(p, make_env(entry.info, seed, gradients));
    return method;
  }
  bool supports(const Problem& p, Pass pass, const Settings& given = {}) const {
    const auto method = create(given);
    return unsupported_reason(entry, *method, p, pass).empty();
  }
  Tensor forward(const Problem& p, const QKV& in, const Settings& given = {},
                 float filling = kNaN) const {
    Tensor out(p.batch, p.heads, p.n, p.d_v);
    out.fill(filling);
    prepared(p, given)->forward(in.inputs(), out, nullptr);
    return out;
  }
};

// Where in `x` element e lies.
std::string position(const Tensor& x, Index e) {
  const Index row = e / x.d(), head = row / x.n();
  return fmt::format("batch={} head={} row={} column={}", head / x.heads(), head % x.heads(),
                     row % x.n(), e % x.d());
}

void require_finite(const Tensor& x, const std::string& what) {
  for (Index e = 0; e < x.size(); ++e)
    if (!std::isfinite(x.data()[e])) fail("{}: {} at {}", what, x.data()[e], position(x, e));
}

// Rows [0, rows) of every head must have the same bits.
void require_same(const Tensor& got, const Tensor& want, Index rows, const std::string& what) {
  for (Index e = 0; e < got.size(); ++e)
    if (e / got.d() % got.n() < rows && !same_bits(got.data()[e], want.data()[e]))
      fail("{}: {:.9g} became {:.9g} at {}", what, want.data()[e], got.data()[e], position(got, e));
}

// ||got - want||_F / ||want||_F in double; want zero: ||got||_F. NaN when anything is NaN.
template <class Want>
double relative_error(const Tensor& got, const Want& want) {
  double difference = 0, norm = 0;
  for (Index e = 0; e < got.size(); ++e) {
    const double w = static_cast<double>(want.data()[e]);
    const double d = static_cast<double>(got.data()[e]) - w;
    difference += d * d;
    norm += w * w;
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

template <class Want>
void require_close(const Tensor& got, const Want& want, double tolerance, const std::string& what) {
  const double error = relative_error(got, want);
  if (error <= tolerance) return;
  Index worst = 0;
  for (Index e = 0; e < got.size(); ++e) {
    const auto distance = [&](Index at) {
      return std::fabs(static_cast<double>(got.data()[at]) - static_cast<double>(want.data()[at]));
    };
    if (!(distance(e) <= distance(worst))) worst = e;
  }
  fail("{}: relative error {:.3g}, allowed {:.3g}; worst {:.9g} instead of {:.9g} at {}", what,
       error, tolerance, got.data()[worst], want.data()[worst], position(got, worst));
}

// Softmax attention in double, plain loops. Rows without a visible key are zero.
TensorD exact_attention(const Problem& p, const QKV& in) {
  TensorD out(p.batch, p.heads, p.n, p.d_v);
  std::vector<double> weight(static_cast<std::size_t>(p.n_kv));
  for (Index bh = 0; bh < p.batch * p.heads; ++bh) {
    const auto q = in.q.view().head(bh), k = in.k.view().head(bh), v = in.v.view().head(bh);
    for (Index i = 0; i < p.n; ++i) {
      double max = -std::numeric_limits<double>::infinity(), sum = 0;
      const auto seen = [&](Index j) {
        return in.key_mask.empty() ||
               in.key_mask[static_cast<std::size_t>(bh / p.heads * p.n_kv + j)] != 0;
      };
      for (Index j = 0; j < p.visible(i); ++j) {
        double dot = 0;
        for (Index c = 0; c < p.d_k; ++c)
          dot += static_cast<double>(q(i, c)) * static_cast<double>(k(j, c));
        weight[static_cast<std::size_t>(j)] = p.logit_scale() * dot;
        if (seen(j)) max = std::max(max, p.logit_scale() * dot);
      }
      for (Index j = 0; j < p.visible(i); ++j) {
        double& w = weight[static_cast<std::size_t>(j)];
        w = seen(j) ? std::exp(w - max) : 0;
        sum += w;
      }
      for (Index j = 0; j < p.visible(i) && sum > 0; ++j)
        for (Index c = 0; c < p.d_v; ++c)
          out.view().head(bh)(i, c) +=
              weight[static_cast<std::size_t>(j)] / sum * static_cast<double>(v(j, c));
    }
  }
  return out;
}

Problem make_problem(Index n, Index n_kv, bool causal, Index d_k = 12, Index d_v = 20) {
  return {.batch = 2, .heads = 2, .n = n, .n_kv = n_kv, .d_k = d_k, .d_v = d_v, .causal = causal};
}

// Ragged problems that the method at these settings supports; Skip when there are none.
std::vector<Problem> problems(const Runner& run, const Settings& given = {},
                              Pass pass = Pass::forward) {
  std::vector<Problem> all;
  for (const bool causal : {false, true}) {
    for (const Index n : {1, 2, 3, 17, 64, 129}) all.push_back(make_problem(n, n, causal));
    all.push_back(make_problem(5, 23, causal));
    all.push_back(make_problem(64, 64, causal, 16, 16));  // for methods that want powers of two
  }
  all.push_back(make_problem(23, 5, false));
  std::erase_if(all, [&](const Problem& p) { return !run.supports(p, pass, given); });
  if (all.empty()) {
    const auto method = run.create(given);
    throw Skip{unsupported_reason(run.entry, *method, make_problem(64, 64, false), pass)};
  }
  return all;
}

// A causal problem of moderate size, drawn at random among those that the method supports.
Problem causal_problem(const Runner& run, Random& random) {
  std::vector<Problem> causal = problems(run);
  std::erase_if(causal, [](const Problem& p) { return !p.causal || p.n < 2; });
  if (causal.empty()) throw Skip{"no causal problem is supported"};
  return causal[random.below(causal.size())];
}

Problem largest(const std::vector<Problem>& from) {
  return *std::max_element(from.begin(), from.end(), [](const Problem& a, const Problem& b) {
    return a.n * a.n_kv < b.n * b.n_kv;
  });
}

// ---- checks of the forward pass ----

void check_finite(const Runner& run) {
  for (const Problem& p : problems(run))
    require_finite(run.forward(p, make_inputs(run.entry.info, p, run.seed)), p.str());
}

void check_overwritten(const Runner& run) {
  for (const Problem& p : problems(run)) {
    const QKV in = make_inputs(run.entry.info, p, run.seed);
    require_same(run.forward(p, in, {}, 1e30f), run.forward(p, in, {}, 0.f), p.n,
                 p.str() + ": what the output held before shows in it");
  }
}

void require_untouched(const QKV& in, const QKV& copy, const std::string& what) {
  require_same(in.q, copy.q, in.q.n(), what + ": q");
  require_same(in.k, copy.k, in.k.n(), what + ": k");
  require_same(in.v, copy.v, in.v.n(), what + ": v");
  if (!in.x.empty()) require_same(in.x, copy.x, in.x.n(), what + ": x");
}

void check_inputs_untouched(const Runner& run) {
  for (const Problem& p : problems(run)) {
    const QKV in = make_inputs(run.entry.info, p, run.seed), copy = in;
    run.forward(p, in);
    require_untouched(in, copy, p.str());
  }
}

void check_repeatable(const Runner& run) {
  for (const Problem& p : problems(run)) {
    const QKV first = make_inputs(run.entry.info, p, run.seed);
    const QKV other = make_inputs(run.entry.info, p, run.seed + 1);
    const auto method = run.prepared(p);
    Tensor a(p.batch, p.heads, p.n, p.d_v), b = a;
    method->forward(first.inputs(), a, nullptr);
    method->forward(other.inputs(), b, nullptr);  // must leave no trace
    method->forward(first.inputs(), b, nullptr);
    require_same(b, a, p.n, p.str() + ": the same call again");
    require_same(run.forward(p, first), a, p.n, p.str() + ": another object");
  }
}

void check_threads(const Runner& run) {
  const ThreadCount restore;
  for (const Problem& p : problems(run)) {
    const QKV in = make_inputs(run.entry.info, p, run.seed);
    omp_set_num_threads(1);
    const Tensor one = run.forward(p, in);
    for (const int threads : {2, 3}) {
      omp_set_num_threads(threads);
      require_same(run.forward(p, in), one, p.n, fmt::format("{}: {} threads", p.str(), threads));
    }
  }
}

void check_causal(const Runner& run, int rounds, bool strict) {
  const MethodInfo& info = run.entry.info;
  Random random(run.seed, "conformance.causal");
  for (int round = 0; round < 4 * rounds; ++round) {
    const Problem p = causal_problem(run, random);
    const auto j = static_cast<Index>(1 + random.below(static_cast<std::uint64_t>(p.n - 1)));
    const QKV in = make_inputs(info, p, run.seed + static_cast<Seed>(round));
    const Tensor before = run.forward(p, in);
    for (const bool poison : {false, true}) {
      if (!strict && !poison) continue;
      QKV changed = in;
      Random noise(run.seed, "conformance.noise", {static_cast<std::uint64_t>(round)});
      const auto change = [&](Tensor& x, Index from) {
        for (Index e = 0; e < x.size(); ++e)
          if (e / x.d() % x.n() >= from)
            x.data()[e] = poison ? kNaN : static_cast<float>(3 * noise.normal());
      };
      change(changed.v, j + p.causal_offset());
      if (strict) {
        change(changed.q, j);
        change(changed.k, j + p.causal_offset());
        if (!changed.x.empty()) change(changed.x, j);
      }
      const std::string what =
          fmt::format("{} seed={}: {} of the tokens from {} on set to {}", p.str(),
                      run.seed + static_cast<Seed>(round), strict ? "q, k, v" : "v", j,
                      poison ? "NaN" : "other values");
      const Tensor after = run.forward(p, changed);
      if (strict || !info.structure_from_v) {
        require_same(after, before, j, what);
      } else {
        for (Index e = 0; e < after.size(); ++e)
          if (e / after.d() % after.n() < j && !std::isfinite(after.data()[e]))
            fail("{}: {} at {}", what, after.data()[e], position(after, e));
      }
    }
  }
}

void check_padding(const Runner& run) {
  if (!run.entry.info.key_padding) throw Skip{"no key padding declared"};
  for (const Problem& p : problems(run)) {
    QKV in = make_inputs(run.entry.info, p, run.seed);
    in.key_mask = make_mask(p, run.seed);
    const Tensor clean = run.forward(p, in);
    require_finite(clean, p.str());
    for (Index e = 0; e < clean.size(); ++e)
      if (e >= clean.size() / p.batch * (p.batch - 1) && clean.data()[e] != 0.f)
        fail("{}: {:.9g} instead of 0 at {}, which sees no key", p.str(), clean.data()[e],
             position(clean, e));
    Random random(run.seed, "conformance.garbage");
    for (Tensor* x : {&in.k, &in.v})
      for (Index e = 0; e < x->size(); ++e) {
        const Index row = e / x->d(), b = row / x->n() / x->heads();
        if (in.key_mask[static_cast<std::size_t>(b * p.n_kv + row % x->n())] == 0)
          x->data()[e] = random.below(2) == 0 ? kNaN : static_cast<float>(1e6 * random.normal());
      }
    require_same(run.forward(p, in), clean, p.n, p.str() + ": garbage in padded keys");
  }
}

void check_linear_in_v(const Runner& run) {
  if (!run.entry.info.linear_in_v) throw Skip{"not declared linear in v"};
  if (run.entry.info.structure_from_v) throw Skip{"the weights depend on v"};
  for (const Problem& p : problems(run)) {
    QKV a = make_inputs(run.entry.info, p, run.seed), b = a, sum = a, twice = a;
    fill_normal(derive(run.seed, "conformance.v2"), b.v.data(), b.v.size());
    for (Index e = 0; e < a.v.size(); ++e) {
      sum.v.data()[e] = a.v.data()[e] + b.v.data()[e];
      twice.v.data()[e] = 2 * a.v.data()[e];
    }
    const Tensor out_a = run.forward(p, a), out_b = run.forward(p, b);
    Tensor want_sum = out_a, want_twice = out_a;
    for (Index e = 0; e < out_a.size(); ++e) {
      want_sum.data()[e] += out_b.data()[e];
      want_twice.data()[e] *= 2;
    }
    require_close(run.forward(p, twice), want_twice, 1e-4, p.str() + ": out(2 v) and 2 out(v)");
    require_close(run.forward(p, sum), want_sum, 1e-4, p.str() + ": out(v + w), out(v) + out(w)");
  }
}

void check_exact(const Runner& run, const std::function<Settings(const Problem&)>& limit) {
  int compared = 0;
  const auto compare = [&](const Problem& p, const Settings& given) {
    if (!run.supports(p, Pass::forward, given)) return;
    ++compared;
    for (const bool padded : {false, true}) {
      if (padded && !run.entry.info.key_padding) continue;
      QKV in = make_inputs(run.entry.info, p, run.seed);
      if (padded) in.key_mask = make_mask(p, run.seed);
      require_close(
          run.forward(p, in, given), exact_attention(p, in), run.entry.info.tolerance,
          fmt::format("{} at {}{}", p.str(), given.empty() ? "the defaults" : to_string(given),
                      padded ? " with padding" : ""));
    }
  };
  for (const bool causal : {false, true}) {
    for (const Index n : {1, 2, 3, 17, 64, 129})
      for (const double scale : {0.0, 0.5}) {
        Problem p = make_problem(n, n, causal);
        p.scale = scale;
        compare(p, limit(p));
      }
    for (const Problem& p : {make_problem(5, 23, causal), make_problem(64, 64, causal, 16, 16)})
      compare(p, limit(p));
  }
  compare(make_problem(23, 5, false), limit(make_problem(23, 5, false)));
  if (compared == 0) throw Skip{"no problem of the test sizes is supported"};
}

void check_exact_limit(const Runner& run) {
  if (!run.entry.info.exact_limit) throw Skip{"no exact limit declared"};
  check_exact(run, run.entry.info.exact_limit);
}

void check_exact_always(const Runner& run) {
  if (!run.entry.info.exact) throw Skip{"not declared exact"};
  check_exact(run, [](const Problem&) { return Settings{}; });
}

void check_attention_rows(const Runner& run) {
  if (!run.entry.info.linear_in_v) throw Skip{"not declared linear in v"};
  for (const Problem& p : problems(run)) {
    const QKV in = make_inputs(run.entry.info, p, run.seed);
    const auto method = run.prepared(p);
    Tensor out(p.batch, p.heads, p.n, p.d_v), shown = out;
    method->forward(in.inputs(), out, nullptr);
    std::vector<Index> rows(static_cast<std::size_t>(p.n));
    for (Index i = 0; i < p.n; ++i) rows[static_cast<std::size_t>(i)] = i;
    for (Index b = 0; b < p.batch; ++b)
      for (Index h = 0; h < p.heads; ++h) {
        Matrix weights = Matrix::Constant(p.n, p.n_kv, kNaN);
        if (!method->attention_rows(in.inputs(), b, h, rows, weights))
          throw Skip{"the method shows no attention matrix"};
        shown.head(b, h) = weights.lazyProduct(in.v.head(b, h));
      }
    require_close(shown, out, 1e-4, p.str() + ": attention_rows times v, and the output");
  }
}

void check_oracles(const Runner& run) {
  if (run.entry.info.bounded_by.empty()) throw Skip{"names no oracle that bounds it"};
  const BoundCheck result = check_bounds(run.entry, run.seed);
  if (!result.violation.empty()) fail("{}", result.violation);
  if (result.compared == 0) throw Skip{"shows no attention matrix on the test problems"};
}

void check_seed(const Runner& run) {
  if (!run.entry.info.random) throw Skip{"not declared random"};
  const Problem p = largest(problems(run));
  const QKV in = make_inputs(run.entry.info, p, run.seed);
  const Tensor first = run.forward(p, in);
  require_same(run.forward(p, in), first, p.n, p.str() + ": the same seed again");
  for (Seed other = 1; other <= 5; ++other)
    if (relative_error(Runner{run.entry, run.seed + other}.forward(p, in), first) != 0) return;
  fail("{}: declared random, but seeds {} to {} give the same output", p.str(), run.seed,
       run.seed + 5);
}

// ---- the backward pass ----

struct GradientTensors {
  Tensor dq, dk, dv, dx;
  explicit GradientTensors(const QKV& in)
      : dq(in.q.shape()), dk(in.k.shape()), dv(in.v.shape()), dx(in.x.shape()) {
    for (Tensor* x : {&dq, &dk, &dv, &dx}) x->fill(kNaN);
  }
  Gradients views() { return {dq, dk, dv, dx.empty() ? TensorView() : dx.view()}; }
};

void check_backward_bits(const Runner& run) {
  if (!run.entry.info.supports(Pass::backward)) throw Skip{"no backward pass declared"};
  const ThreadCount restore;
  for (const Problem& p : problems(run, {}, Pass::backward)) {
    const QKV in = make_inputs(run.entry.info, p, run.seed), copy = in;
    Tensor dout(p.batch, p.heads, p.n, p.d_v);
    fill_normal(derive(run.seed, "conformance.dout"), dout.data(), dout.size());
    std::unique_ptr<GradientTensors> first;
    for (const int threads : {1, 2, 3}) {
      omp_set_num_threads(threads);
      const auto method = run.prepared(p, {}, true);
      const auto saved = method->make_saved();
      Tensor out(p.batch, p.heads, p.n, p.d_v);
      out.fill(kNaN);
      method->forward(in.inputs(), out, saved.get());
      require_same(run.forward(p, in), out, p.n, p.str() + ": forward with and without saving");
      auto grads = std::make_unique<GradientTensors>(in);
      method->backward(in.inputs(), out, dout, *saved, grads->views());
      for (const Tensor* x : {&grads->dq, &grads->dk, &grads->dv, &grads->dx})
        require_finite(*x, p.str() + ": gradient");
      require_untouched(in, copy, p.str());
      if (first) {
        const std::string what = fmt::format("{}: {} threads", p.str(), threads);
        require_same(grads->dq, first->dq, p.n, what + ", dq");
        require_same(grads->dk, first->dk, p.n_kv, what + ", dk");
        require_same(grads->dv, first->dv, p.n_kv, what + ", dv");
      } else {
        first = std::move(grads);
      }
    }
  }
}

// Directional derivatives by central differences of the method's own forward. That forward works
// in float32: with a step h its rounding (6e-8 of the output) is amplified by 1/h, while the
// truncation error grows with h^2, so about 1e-3 is what the best step can show; 1e-2 is allowed.
// It finds a wrong factor, sign, transposition or a forgotten term, not a lost digit. Where a
// method chooses keys, forward jumps between choices: most directions have to agree, not all.
void check_directions(const Runner& run, int rounds) {
  if (!run.entry.info.supports(Pass::backward)) throw Skip{"no backward pass declared"};
  constexpr double kTolerance = 1e-2;
  constexpr double kSteps[] = {3e-2, 1e-2, 3e-3, 1e-3};
  std::vector<Problem> small = problems(run, {}, Pass::backward);
  std::erase_if(small, [](const Problem& p) { return p.n == 64 || p.n == 2; });
  if (small.empty()) small = problems(run, {}, Pass::backward);
  for (const Problem& p : small) {
    QKV in = make_inputs(run.entry.info, p, run.seed);
    Tensor out(p.batch, p.heads, p.n, p.d_v), dout = out;
    fill_normal(derive(run.seed, "conformance.dout"), dout.data(), dout.size());
    const auto method = run.prepared(p, {}, true);
    const auto saved = method->make_saved();
    for (Parameter* parameter : method->parameters())
      std::fill_n(parameter->grad.data(), parameter->grad.size(), 0.f);
    method->forward(in.inputs(), out, saved.get());
    GradientTensors grads(in);
    method->backward(in.inputs(), out, dout, *saved, grads.views());
    double output_size = 0;  // || out * dout ||_F
    for (Index e = 0; e < out.size(); ++e)
      output_size += std::pow(static_cast<double>(out.data()[e] * dout.data()[e]), 2);
    output_size = std::sqrt(output_size);

    const auto check = [&](const std::string& what, float* values, const float* gradient,
                           Index size) {
      std::vector<float> kept(values, values + size), direction(kept);
      double norm = 0;
      for (Index e = 0; e < size; ++e) norm += std::pow(static_cast<double>(gradient[e]), 2);
      int failures = 0;
      for (int round = 0; round < rounds; ++round) {
        const Seed seed = derive(run.seed, what, {static_cast<std::uint64_t>(round)});
        fill_normal(seed, direction.data(), size);
        const auto loss = [&](double step) {
          for (std::size_t e = 0; e < kept.size(); ++e)
            values[e] = static_cast<float>(static_cast<double>(kept[e]) +
                                           step * static_cast<double>(direction[e]));
          Tensor moved(out.shape());
          method->forward(in.inputs(), moved, nullptr);
          double sum = 0;
          for (Index e = 0; e < out.size(); ++e)
            sum += static_cast<double>(moved.data()[e]) * static_cast<double>(dout.data()[e]);
          std::copy(kept.begin(), kept.end(), values);
          return sum;
        };
        double analytic = 0;
        for (std::size_t e = 0; e < kept.size(); ++e)
          analytic += static_cast<double>(gradient[e]) * static_cast<double>(direction[e]);
        double best = std::numeric_limits<double>::infinity(), best_numeric = kNaN;
        bool conclusive = false;
        const double here = loss(0);
        for (const double step : kSteps) {
          const double up = loss(step), down = loss(-step);
          const double numeric = (up - down) / (2 * step);
          // The derivative has the standard deviation `norm`; one that happens to be near zero
          // must not blow up the relative error. The last term is the forward's rounding.
          const double scale = std::max(
              {std::fabs(numeric), std::fabs(analytic), 0.1 * std::sqrt(norm), 1e-3 * output_size});
          const double error = std::fabs(numeric - analytic) / scale;
          if (!(error >= best)) best = error, best_numeric = numeric;
          // A jump (another choice of keys) shows as a difference between the two sides; what it
          // may explain proves nothing. The verdict is that of the last, smallest step.
          conclusive = !(std::fabs(up - 2 * here + down) / step > std::fabs(numeric - analytic));
        }
        if (best <= kTolerance || !conclusive) continue;
        if (++failures * 2 > rounds)
          fail(
              "{}: derivative along {} (seed {}) is {:.6g}, central differences give {:.6g}: "
              "relative error {:.3g}, allowed {:.3g}",
              p.str(), what, seed, analytic, best_numeric, best, kTolerance);
      }
    };
    check("q", in.q.data(), grads.dq.data(), in.q.size());
    check("k", in.k.data(), grads.dk.data(), in.k.size());
    check("v", in.v.data(), grads.dv.data(), in.v.size());
    if (!in.x.empty()) check("x", in.x.data(), grads.dx.data(), in.x.size());
    for (Parameter* parameter : method->parameters())
      check("parameter " + parameter->name, parameter->value.data(), parameter->grad.data(),
            parameter->value.size());
  }
}

// ---- decoding ----

struct Decoding {  // every token of a problem, fed to a decoder one by one after a prefill
  Tensor out;
  double peak_bytes = 0;
};

Decoding decode(Decoder& decoder, const Problem& p, const QKV& in, Index prefill) {
  const Index heads = p.batch * p.heads;
  Decoding result{Tensor(p.batch, p.heads, p.n, p.d_v)};
  result.out.fill(kNaN);
  const auto part = [](const Tensor& x, Index length) {
    Tensor y(x.batch(), x.heads(), length, x.d());
    for (Index b = 0; b < x.batch(); ++b)
      for (Index h = 0; h < x.heads(); ++h) y.head(b, h) = x.head(b, h).topRows(length);
    return y;
  };
  const auto row = [](const Tensor& x, Index t) {  // token t of every head, contiguous
    std::vector<float> y;
    for (Index bh = 0; bh < x.batch() * x.heads(); ++bh)
      y.insert(y.end(), x.view().data() + (bh * x.n() + t) * x.d(),
               x.view().data() + (bh * x.n() + t + 1) * x.d());
    return y;
  };
  if (prefill > 0) {
    const Tensor q = part(in.q, prefill), k = part(in.k, prefill), v = part(in.v, prefill);
    const Tensor x = in.x.empty() ? Tensor() : part(in.x, prefill);
    decoder.prefill(q, k, v, x.empty() ? ConstTensorView() : x.view());
  }
  std::vector<float> out(static_cast<std::size_t>(heads * p.d_v));
  for (Index t = prefill; t < p.n; ++t) {
    const auto q = row(in.q, t), k = row(in.k, t), v = row(in.v, t);
    const auto x = in.x.empty() ? std::vector<float>() : row(in.x, t);
    std::fill(out.begin(), out.end(), kNaN);
    decoder.step({q.data(), k.data(), v.data(), x.empty() ? nullptr : x.data()}, out.data());
    for (Index bh = 0; bh < heads; ++bh)
      std::copy_n(out.data() + bh * p.d_v, p.d_v, result.out.data() + (bh * p.n + t) * p.d_v);
    const CacheBytes bytes = decoder.bytes();
    for (const double part_bytes : {bytes.kv, bytes.aux, bytes.cold, bytes.scratch})
      if (!(part_bytes >= 0 && std::isfinite(part_bytes)))
        fail("{}: a decoder reports {} bytes after token {}", p.str(), part_bytes, t);
    result.peak_bytes =
        std::max(result.peak_bytes, bytes.kv + bytes.aux + bytes.cold + bytes.scratch);
    for (const VisibleKey& key : decoder.visible(p.batch - 1, p.heads - 1))
      if (!(key.position >= 0 && key.position <= t && std::isfinite(key.weight)))
        fail("{}: after token {} the decoder shows position {} with weight {}", p.str(), t,
             key.position, key.weight);
  }
  return result;
}

void check_decoder(const Runner& run) {
  const MethodInfo& info = run.entry.info;
  if (!info.supports(Pass::decode)) throw Skip{"no decode pass declared"};
  int decoded = 0;
  for (const Index n : {1, 17, 200}) {  // 200 exceeds the default windows
    const Problem p = make_problem(n, n, true);
    if (!run.supports(p, Pass::decode)) continue;
    ++decoded;
    const QKV in = make_inputs(info, p, run.seed);
    DecodeConfig config{.batch = p.batch,
                        .heads = p.heads,
                        .capacity = n,
                        .d_k = p.d_k,
                        .d_v = p.d_v,
                        .d_e = info.uses_hidden ? kHiddenWidth : 0,
                        .seed = run.seed};
    const auto decoder = run.create()->make_decoder(config);
    const Decoding first = decode(*decoder, p, in, 0);
    require_finite(first.out, p.str());
    require_close(first.out, run.forward(p, in), std::max(1e-5, info.tolerance),
                  p.str() + ": decoded token by token, and the causal forward");
    decoder->reset();
    require_same(decode(*decoder, p, in, 0).out, first.out, n, p.str() + ": after reset()");
    decoder->reset();
    Tensor filled = decode(*decoder, p, in, n / 2).out;
    for (Index e = 0; e < filled.size(); ++e)  // rows of the prefill have no output
      if (e / filled.d() % n < n / 2) filled.data()[e] = first.out.data()[e];
    require_close(filled, first.out, 1e-5, fmt::format("{}: {} tokens prefilled", p.str(), n / 2));
    const double cache = 4.0 * static_cast<double>(p.batch * p.heads * n * (p.d_k + p.d_v));
    const double plausible = 4 * cache + 2 * run.create()->budget(p).state_bytes + 1048576;
    if (!(first.peak_bytes <= plausible))
      fail("{}: the decoder reports {:.0f} bytes; a whole key-value cache has {:.0f}", p.str(),
           first.peak_bytes, cache);
  }
  if (decoded == 0) throw Skip{"no problem of the test sizes is supported"};
}

// ---- declarations ----

void check_figures(const Runner& run) {
  for (const Problem& p : problems(run)) {
    const auto method = run.prepared(p);
    const auto check = [&](const std::string& what, double value) {
      if (!(value >= 0 && std::isfinite(value))) fail("{}: {} is {}", p.str(), what, value);
    };
    check("budget().keys_per_query", method->budget(p).keys_per_query);
    check("budget().state_bytes", method->budget(p).state_bytes);
    for (const Pass pass : run.entry.info.passes) {
      check(fmt::format("extra_bytes of {}", name(pass)), method->extra_bytes(p, pass));
      check(fmt::format("flops of {}", name(pass)), method->flops(p, pass));
    }
    Tensor out(p.batch, p.heads, p.n, p.d_v);
    method->forward(make_inputs(run.entry.info, p, run.seed).inputs(), out, nullptr);
    for (const Metric& metric : method->metrics())
      if (!std::isfinite(metric.value)) fail("{}: {} is {}", p.str(), metric.name, metric.value);
  }
}

// Values of a parameter that are worth a call: its default, both ends of its range, every choice.
// Ends beyond what a small test can pay for are left out.
std::vector<ParamValue> trial_values(const ParamSpec& spec) {
  constexpr double kHuge = 65536;
  std::vector<ParamValue> values{spec.default_value};
  if (spec.type == ParamType::boolean) values.insert(values.end(), {true, false});
  for (const std::string& text : spec.choices) values.push_back(text);
  if (spec.type == ParamType::integer || spec.type == ParamType::real)
    for (const double end : {spec.min, spec.max}) {
      if (!(std::fabs(end) <= kHuge)) continue;
      values.push_back(spec.type == ParamType::integer ? ParamValue(static_cast<Index>(end))
                                                       : ParamValue(end));
    }
  return values;
}

void check_parameters(const Runner& run) {
  for (const ParamSpec& spec : run.entry.params)
    for (const ParamValue& value : trial_values(spec))
      for (const bool causal : {false, true}) {
        const Settings given{{spec.name, value}};
        const Problem p = make_problem(17, 17, causal);
        try {
          if (!run.supports(p, Pass::forward, given)) continue;
          require_finite(run.forward(p, make_inputs(run.entry.info, p, run.seed), given),
                         fmt::format("{} at {}", p.str(), to_string(given)));
        } catch (const UserError&) {  // a refusal with a reason is an answer, except at the default
          if (value == spec.default_value) throw;
        } catch (const Unsupported&) {
          if (value == spec.default_value) throw;
        }
      }
  if (run.entry.params.empty()) throw Skip{"no parameters"};
}

}  // namespace

std::vector<CheckResult> check_method(const MethodEntry& entry, const ConformanceOptions& options) {
  const Runner run{entry, options.seed};
  const int rounds = std::max(1, options.rounds);
  // Many tiny calls: waking threads would cost more than the calls. The thread checks ask for
  // theirs.
  const ThreadCount restore;
  omp_set_num_threads(1);
  std::vector<CheckResult> results;
  const auto check = [&](const char* name, const std::function<void()>& body) {
    CheckResult result{name, CheckOutcome::passed, ""};
    try {
      body();
    } catch (const Skip& skip) {
      result.outcome = CheckOutcome::skipped;
      result.detail = skip.reason;
    } catch (const Violation& violation) {
      result.outcome = CheckOutcome::failed;
      result.detail = violation.detail;
    } catch (const std::exception& error) {
      result.outcome = CheckOutcome::failed;
      result.detail = fmt::format("threw: {}", error.what());
    } catch (...) {
      result.outcome = CheckOutcome::failed;
      result.detail = "threw something that is no std::exception";
    }
    results.push_back(std::move(result));
  };

  check("parameters: the default and both ends of every range run or are refused",
        [&] { check_parameters(run); });
  check("forward: finite on ragged sizes, output written entirely", [&] { check_finite(run); });
  check("forward: the output does not depend on what it held", [&] { check_overwritten(run); });
  check("forward: inputs stay untouched", [&] { check_inputs_untouched(run); });
  check("forward: the same call gives the same bits", [&] { check_repeatable(run); });
  check("forward: the same bits for 1, 2 and 3 threads", [&] { check_threads(run); });
  check("causal: changed tokens leave earlier outputs untouched, bit for bit", [&] {
    if (entry.info.causality != Causality::strict) throw Skip{"not declared strictly causal"};
    check_causal(run, rounds, true);
  });
  check("causal: no value of a future token leaks", [&] {
    if (entry.info.causality == Causality::none) throw Skip{"no causal form declared"};
    check_causal(run, rounds, false);
  });
  check("padding: padded keys have no influence", [&] { check_padding(run); });
  check("linear in v: additive and homogeneous", [&] { check_linear_in_v(run); });
  check("exact limit: equals softmax attention", [&] { check_exact_limit(run); });
  check("exact: equals softmax attention at the defaults", [&] { check_exact_always(run); });
  check("attention matrix: its product with v is the output", [&] { check_attention_rows(run); });
  check("bounds: the oracles that it names are no farther from the exact attention matrix",
        [&] { check_oracles(run); });
  check("random: the seed decides", [&] { check_seed(run); });
  check("backward: finite, the same bits for 1, 2 and 3 threads, inputs untouched",
        [&] { check_backward_bits(run); });
  check("backward: equals central differences of forward", [&] { check_directions(run, rounds); });
  check("decode: token by token equals the causal forward; reset and prefill work",
        [&] { check_decoder(run); });
  check("figures: budget, extra_bytes, flops and metrics are finite", [&] { check_figures(run); });
  return results;
}

}  // namespace subquad
