#include "harness/measure/conformance_support.h"

#include <cstring>

namespace subquad::conformance {
namespace {

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

}  // namespace

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

std::unique_ptr<Method> Runner::create(const Settings& given) const {
  return entry.create(resolve(entry.info.name, entry.params, given));
}

std::unique_ptr<Method> Runner::prepared(const Problem& p, const Settings& given,
                                         bool gradients) const {
  auto method = create(given);
  const Pass pass = gradients ? Pass::backward : Pass::forward;
  const std::string reason = unsupported_reason(entry, *method, p, pass);
  if (!reason.empty()) throw Skip{reason};
  method->prepare(p, make_env(entry.info, seed, gradients));
  return method;
}

bool Runner::supports(const Problem& p, Pass pass, const Settings& given) const {
  const auto method = create(given);
  return unsupported_reason(entry, *method, p, pass).empty();
}

Tensor Runner::forward(const Problem& p, const QKV& in, const Settings& given,
                       float filling) const {
  Tensor out(p.batch, p.heads, p.n, p.d_v);
  out.fill(filling);
  prepared(p, given)->forward(in.inputs(), out, nullptr);
  return out;
}

std::string position(const Tensor& x, Index e) {
  const Index row = e / x.d(), head = row / x.n();
  return fmt::format("batch={} head={} row={} column={}", head / x.heads(), head % x.heads(),
                     row % x.n(), e % x.d());
}

void require_finite(const Tensor& x, const std::string& what) {
  for (Index e = 0; e < x.size(); ++e)
    if (!std::isfinite(x.data()[e])) fail("{}: {} at {}", what, x.data()[e], position(x, e));
}

void require_same(const Tensor& got, const Tensor& want, Index rows, const std::string& what) {
  for (Index e = 0; e < got.size(); ++e)
    if (e / got.d() % got.n() < rows && !same_bits(got.data()[e], want.data()[e]))
      fail("{}: {:.9g} became {:.9g} at {}", what, want.data()[e], got.data()[e], position(got, e));
}

void require_untouched(const QKV& in, const QKV& copy, const std::string& what) {
  require_same(in.q, copy.q, in.q.n(), what + ": q");
  require_same(in.k, copy.k, in.k.n(), what + ": k");
  require_same(in.v, copy.v, in.v.n(), what + ": v");
  if (!in.x.empty()) require_same(in.x, copy.x, in.x.n(), what + ": x");
}

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

Problem make_problem(Index n, Index n_kv, bool causal, Index d_k, Index d_v) {
  return {.batch = 2, .heads = 2, .n = n, .n_kv = n_kv, .d_k = d_k, .d_v = d_v, .causal = causal};
}

std::vector<Problem> problems(const Runner& run, const Settings& given, Pass pass) {
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

}  // namespace subquad::conformance
