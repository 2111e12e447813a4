// What SEA's sparse formats cost against a bare loop over the same rows: T3 with its limit.
//   sea_bench N HEADS D CELLS K
// (The formats alone, and the stages of a call: configs/papers/sea/formats.yaml, stages.yaml.)
#include <fmt/core.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "harness/core/task.h"
#include "methods/engines/row_attention.h"
#include "methods/engines/sea_attention.h"
#include "methods/engines/sea_sparse.h"
#include "tests/bench/timing.h"
#include "tests/methods/sea_problem.h"

using namespace subquad;
using namespace subquad::engine;
using bench::time_of;

namespace {

struct Case {
  Problem p;
  SeaOptions o;
  QKV in;
};

Case make_case(Index n, Index heads, Index d, Index cells, Index k) {
  Problem p{.batch = 1, .heads = heads, .n = n, .n_kv = n, .d_k = d, .d_v = d};
  Case c{p, {}, QKV(p)};
  fill_normal(1, c.in.q.data(), c.in.q.size());
  fill_normal(2, c.in.k.data(), c.in.k.size());
  fill_normal(3, c.in.v.data(), c.in.v.size());
  c.o.top_k = k;
  c.o.cells = cells;
  return c;
}

// Random cells, as the paper's comparison has random inputs.
SeaCsr random_rows(Case& c) {
  c.o.source = SeaOptions::Source::random;
  SeaAttention attention;
  SeaWeights weights;
  attention.prepare(c.p, c.o, &weights, 1, false);
  return testing::kept_keys(attention, c.in.inputs(), c.p);
}

// The least that any format has to do: one multiply-add per element of the same rows of k and v.
float bare_loop(const Case& c, const SeaCsr& csr) {
  const Index d = c.p.d_k;
  Vec sink{};
  for (Index t = 0; t < c.p.n; ++t)
    for (Index e = csr.row_ptr[static_cast<std::size_t>(t)];
         e < csr.row_ptr[static_cast<std::size_t>(t) + 1]; ++e) {
      const Index column = csr.columns[static_cast<std::size_t>(e)];
      const float *const k = c.in.k.data() + column * d, *const v = c.in.v.data() + column * d,
                         *const q = c.in.q.data() + t * d;
      Vec dot{}, sum{};
      for (Index x = 0; x < d; x += kLanes) {
        dot += load(k + x) * load(q + x);
        sum += load(v + x) * 0.5f;
      }
      sink += dot + sum;
    }
  return horizontal_sum(sink);
}

void formats(Case c) {
  const SeaCsr csr = random_rows(c);
  const SeaCoo coo = coo_of(csr);
  const SeaRuns runs = runs_of(csr, c.p.n);
  SeaSparse sparse{c.in.q, c.in.k, c.in.v, c.p.logit_scale()};
  Tensor out(1, c.p.heads, c.p.n, c.p.d_v);
  volatile float sink = 0;
  const double bare = time_of([&] { sink = bare_loop(c, csr); });
  const double by_csr = time_of([&] { sparse.csr(csr, out); });
  const double by_runs = time_of([&] { sparse.runs(runs, out); });
  const double by_coo = time_of([&] { sparse.coo(coo, out); });
  // A library that gets entries in any order first sorts them by row and column ("coalesce").
  std::vector<std::size_t> shuffled(coo.rows.size());
  std::iota(shuffled.begin(), shuffled.end(), std::size_t{0});
  Random random(1, "sea_bench");
  random.shuffle(shuffled);
  const double sorting = time_of([&] {
    std::vector<std::size_t> order = shuffled;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return a < b; });
    SeaCoo sorted;
    sorted.rows.resize(order.size());
    sorted.columns.resize(order.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
      sorted.rows[i] = coo.rows[order[i]];
      sorted.columns[i] = coo.columns[order[i]];
    }
    sink = static_cast<float>(sorted.rows.back());
  });
  const auto entries = static_cast<double>(csr.columns.size());
  fmt::print("n={} heads={} d={} cells={} k={}: {} entries, {} runs\n", c.p.n, c.p.heads, c.p.d_k,
             c.o.cells, c.o.top_k, csr.columns.size(), runs.first.size());
  const auto line = [&](const char* name, double time, double bytes) {
    fmt::print("{:<22} {:9.3f} ms  {:6.2f} x bare  {:6.2f} x csr  {:8.2f} MB\n", name, 1e3 * time,
               time / bare, time / by_csr, 1e-6 * bytes);
  };
  line("bare loop", bare, 0);
  line("flat CSR", by_csr, entries * 8 + 8 * static_cast<double>(c.p.n));
  line("runs, fused", by_runs, 8 * static_cast<double>(runs.first.size() + csr.row_ptr.size()));
  line("COO, sorted entries", by_coo, entries * 20 + 8 * static_cast<double>(c.p.heads * c.p.n));
  line("COO, sorting included", by_coo + sorting,
       entries * 36 + 8 * static_cast<double>(c.p.heads * c.p.n));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    fmt::print(stderr, "sea_bench N HEADS D CELLS K\n");
    return 2;
  }
  omp_set_num_threads(1);
  const auto number = [&](int i) { return static_cast<Index>(std::atol(argv[i])); };
  formats(make_case(number(1), number(2), number(3), number(4), number(5)));
  return 0;
}
