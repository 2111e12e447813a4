// Generated check: what is timed allocates nothing.
#include "harness/core/parallel.h"
#include "harness/measure/alloc_counter.h"
#include "harness/measure/conformance_checks.h"

namespace subquad::conformance {
namespace {

// The first call may set up what later ones share (threads, tables on first use); the second one
// must do without the heap.
template <class Call>
void require_no_allocation(const Problem& p, int threads, const char* what, Call&& call) {
  call();
  const std::uint64_t before = alloc_calls();
  call();
  const std::uint64_t made = alloc_calls() - before;
  if (made != 0)
    fail("{}, {} threads: a call of {} made {} allocations", p.str(), threads, what, made);
}

void check_steps(const Runner& run, const Problem& p, int threads) {
  const auto decoder =
      run.create()->make_decoder({.batch = p.batch,
                                  .heads = p.heads,
                                  .capacity = p.n,
                                  .d_k = p.d_k,
                                  .d_v = p.d_v,
                                  .d_e = run.entry.info.uses_hidden ? kHiddenWidth : 0,
                                  .seed = run.seed});
  const Index heads = p.batch * p.heads;
  const QKV tokens = make_inputs(run.entry.info, make_problem(heads, heads, true, p.d_k, p.d_v),
                                 run.seed);  // any numbers: [heads, d] of them are a token
  std::vector<float> out(static_cast<std::size_t>(heads * p.d_v));
  require_no_allocation(p, threads, "decode", [&] {
    decoder->reset();
    for (Index t = 0; t < p.n; ++t)
      decoder->step({tokens.q.data(), tokens.k.data(), tokens.v.data(),
                     tokens.x.empty() ? nullptr : tokens.x.data()},
                    out.data());
  });
}

}  // namespace

void check_allocations(const Runner& run) {
  if (!hooks_active()) throw Skip{"allocations are not counted in this build"};
  const MethodInfo& info = run.entry.info;
  // Nobody times an oracle's decomposition, and other people's libraries allocate as they please;
  // their rows say so in timed_allocs.
  if (info.oracle) throw Skip{"an oracle is a bound, not a competitor in time"};
  if (info.family == "peers") throw Skip{"a peer's own library allocates"};
  const ThreadCount restore;
  for (const int threads : {1, 2}) {
    omp_set_num_threads(threads);
    parallel_for(threads, [](Index, int) {});
    // Beside the usual sizes: one item of a parallel loop, and widths beyond a cache block.
    std::vector<Problem> all = problems(run);
    for (const bool causal : {false, true}) {
      all.push_back({.batch = 1, .heads = 1, .n = 300, .n_kv = 300, .d_k = 64, .d_v = 64});
      all.back().causal = causal;
      all.push_back({.batch = 1, .heads = 2, .n = 513, .n_kv = 513, .d_k = 128, .d_v = 128});
      all.back().causal = causal;
    }
    for (const Problem& p : all) {
      if (!run.supports(p, Pass::forward)) continue;
      const QKV in = make_inputs(info, p, run.seed);
      const Inputs inputs = in.inputs();
      Tensor out(p.batch, p.heads, p.n, p.d_v);
      {
        const auto method = run.prepared(p);
        require_no_allocation(p, threads, "forward",
                              [&] { method->forward(inputs, out, nullptr); });
      }
      if (run.supports(p, Pass::backward)) {
        const auto method = run.prepared(p, {}, true);
        const auto saved = method->make_saved();
        require_no_allocation(p, threads, "forward for a backward",
                              [&] { method->forward(inputs, out, saved.get()); });
        Tensor dout(p.batch, p.heads, p.n, p.d_v);
        fill_normal(derive(run.seed, "conformance.dout"), dout.data(), dout.size());
        Tensor dq(in.q.shape()), dk(in.k.shape()), dv(in.v.shape()), dx(in.x.shape());
        const Gradients grads{dq, dk, dv, dx.empty() ? TensorView() : dx.view()};
        require_no_allocation(p, threads, "backward",
                              [&] { method->backward(inputs, out, dout, *saved, grads); });
      }
      if (p.causal && p.n == p.n_kv && run.supports(p, Pass::decode)) check_steps(run, p, threads);
    }
  }
}

}  // namespace subquad::conformance
