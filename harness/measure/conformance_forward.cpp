// Generated checks of the forward pass.
#include <functional>

#include "harness/measure/bound_check.h"
#include "harness/measure/conformance_checks.h"

namespace subquad::conformance {

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

namespace {

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

}  // namespace

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
  // What is drawn may need a long sequence to show: random blocks of 64 do not at 129 tokens.
  Problem p = largest(problems(run));
  for (const Index n : {p.n, Index{1040}}) {
    if (n != p.n) p.n = p.n_kv = n;
    const QKV in = make_inputs(run.entry.info, p, run.seed);
    const Tensor first = run.forward(p, in);
    require_same(run.forward(p, in), first, p.n, p.str() + ": the same seed again");
    for (Seed other = 1; other <= 5; ++other)
      if (relative_error(Runner{run.entry, run.seed + other}.forward(p, in), first) != 0) return;
  }
  fail("{}: declared random, but seeds {} to {} give the same output", p.str(), run.seed,
       run.seed + 5);
}

}  // namespace subquad::conformance
