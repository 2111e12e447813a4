// Where ZETA's time goes, and what gathering the chosen keys costs beside a bare loop over them.
//   zeta_bench N [D_K=64] [D_V=64] [TOP_K=32] [CHUNKS=16]    causal, one thread
#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>

#include "harness/core/task.h"
#include "methods/engines/row_attention.h"
#include "methods/engines/zeta_attention.h"
#include "methods/engines/zeta_layout.h"
#include "tests/bench/timing.h"

using namespace subquad;
using namespace subquad::engine;
using bench::time_of;

namespace {

// Inputs, and what a forward of ZETA chose for them.
struct Case {
  Problem p;
  ZetaOptions o;
  QKV in;
  Tensor out;
  ZetaSaved saved;
  AlignedArray<float> q, k;  // points [n, width]
  Index width;

  Case(const Problem& problem, const ZetaOptions& options)
      : p(problem),
        o(options),
        in(p),
        out(1, 1, p.n, p.d_v),
        saved(p.n, o.list_size(p.n)),
        q(p.n * ZetaPoints::width(o.points.d_key)),
        k(p.n * ZetaPoints::width(o.points.d_key)),
        width(ZetaPoints::width(o.points.d_key)) {
    fill_normal(1, in.q.data(), in.q.size());
    fill_normal(2, in.k.data(), in.k.size());
    fill_normal(3, in.v.data(), in.v.size());
  }
};

// What ZETA does with chosen keys: distances, weights, the sum of the values; the next query's
// values are asked for while this one's are summed.
void gather(const Case& c, const ZetaKernel& kernel, float* out) {
  const Index list = c.o.list_size(c.p.n), d_v = c.p.d_v;
  AlignedArray<float> x(list + kLanes), weight(list + kLanes);
  const bool ahead = c.p.n * d_v * 4 > kNearCache;
  const float* const v = c.in.v.data();
  for (Index row = 0; row < c.p.n; ++row) {
    if (ahead && row + 1 < c.p.n)
      for (Index e = 0; e < c.saved.count[row + 1]; ++e)
        for (Index i = 0; i < d_v; i += kAlignment / sizeof(float))
          __builtin_prefetch(v + static_cast<Index>(c.saved.keys[(row + 1) * list + e]) * d_v + i);
    const std::int32_t* const keys = c.saved.keys.data() + row * list;
    const Index count = c.saved.count[row], i = c.saved.query[row];
    float* const o = out + i * d_v;
    std::fill_n(o, d_v, 0.0f);
    if (count == 0) continue;
    zeta_detail::kernel_arguments(kernel, c.q.data() + i * c.width, c.width, c.k.data(), keys,
                                  count, x.data());
    kernel.weights(x.data(), count, weight.data());
    add_weighted_rows(weight.data(), GatheredRows<std::int32_t>{v, d_v, keys}, count, d_v, o);
  }
}

// The least over the same indices: a product with the key's point, a multiply-add of the value.
float bare_loop(const Case& c) {
  const Index list = c.o.list_size(c.p.n), d_v = c.p.d_v;
  Vec sink{};
  float products[4] = {};
  for (Index row = 0; row < c.p.n; ++row) {
    const float* const q = c.q.data() + static_cast<Index>(c.saved.query[row]) * c.width;
    const std::int32_t* const keys = c.saved.keys.data() + row * list;
    Vec sum[4] = {};  // as many as hide the latency of an addition
    for (Index e = 0; e < c.saved.count[row]; ++e) {
      const float* const v = c.in.v.data() + static_cast<Index>(keys[e]) * d_v;
      const float* const k = c.k.data() + static_cast<Index>(keys[e]) * c.width;
      float dot = 0;
      for (Index x = 0; x < c.width; ++x) dot += q[x] * k[x];
      products[e % 4] += dot;
      for (Index i = 0; i < d_v; i += kLanes) sum[i / kLanes % 4] += load(v + i) * 0.5f;
    }
    sink += sum[0] + sum[1] + sum[2] + sum[3];
  }
  return products[0] + products[1] + products[2] + products[3] + horizontal_sum(sink);
}

void report(Case c) {
  const float theta = 0;  // gamma 0.5
  const ZetaKernel kernel{c.o.similarity, zeta_width(theta)};
  const auto forward_time = [&](bool history) {
    ZetaOptions o = c.o;
    o.history = history;
    ZetaAttention attention;
    attention.prepare(c.p, o, {.seed = 1, .gradients = false});
    return time_of([&] { attention.forward(c.in.inputs(), &theta, c.out, &c.saved); });
  };
  const double without = forward_time(false), whole = forward_time(true);

  ZetaPoints points;
  points.prepare(c.o.points, c.p.d_k, 1);
  AlignedArray<std::uint64_t> q_code(c.p.n), k_code(c.p.n);
  const double codes = time_of([&] {
    points.map(c.in.q.data(), c.p.n, c.q.data(), q_code.data());
    points.map(c.in.k.data(), c.p.n, c.k.data(), k_code.data());
  });
  AlignedArray<CodeAt> sort(2 * c.p.n);
  const int bits = c.o.points.bits * static_cast<int>(c.o.points.d_key);
  const Index chunk = c.o.chunk_size(c.p.n);
  const double sorting = time_of([&] {
    const auto sorted = [&](const AlignedArray<std::uint64_t>& code, Index first, Index last) {
      for (Index i = first; i < last; ++i)
        sort[i - first] = {code[i], static_cast<std::int32_t>(i)};
      sort_by_code(sort.data(), sort.data() + c.p.n, last - first, bits);
    };
    sorted(k_code, 0, c.p.n);
    for (Index i = 0; i < c.p.n; i += chunk) sorted(q_code, i, std::min(c.p.n, i + chunk));
  });
  const double gathering = time_of([&] { gather(c, kernel, c.out.data()); });
  volatile float sink = 0;
  const double bare = time_of([&] { sink = bare_loop(c); });

  fmt::print("{} top_k={} chunk={}, one thread\n", c.p.str(), c.o.top_k, chunk);
  const auto line = [&](const char* name, double time) {
    fmt::print("{:<38} {:9.3f} ms  {:5.1f} %\n", name, 1e3 * time, 100 * time / whole);
  };
  line("points and codes", codes);
  line("sorting", sorting);
  line("search and choice (rest)", without - codes - sorting - gathering);
  line("gathered attention", gathering);
  line("averaged token (difference)", whole - without);
  line("whole call", whole);
  fmt::print(
      "bare loop over the same keys {:.3f} ms: gathered attention takes {:.2f} times as long\n",
      1e3 * bare, gathering / bare);
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, Index otherwise) {
    return argc > i ? static_cast<Index>(std::atoll(argv[i])) : otherwise;
  };
  const Index n = number(1, 0);
  if (n <= 0) {
    fmt::print(stderr, "usage: zeta_bench N [D_K=64] [D_V=64] [TOP_K=32] [CHUNKS=16]\n");
    return 2;
  }
  omp_set_num_threads(1);
  ZetaOptions o;
  o.top_k = number(4, 32);
  o.chunks = number(5, 16);
  report(Case({.batch = 1,
               .heads = 1,
               .n = n,
               .n_kv = n,
               .d_k = number(2, 64),
               .d_v = number(3, 64),
               .causal = true},
              o));
  return 0;
}
