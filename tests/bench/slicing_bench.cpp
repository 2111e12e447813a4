// Releasing one of m cached tokens, three ways: its slot is written over (what the cache policies
// do), later rows move up, or the cache is multiplied with a slicing matrix, as ADORE (arXiv
// 2407.02328) does on a GPU. One head, keys and values of width 64; a call releases one token.
#include <benchmark/benchmark.h>

#include <cstring>

#include "harness/core/types.h"

namespace {

using subquad::Index;
using subquad::Matrix;

constexpr Index kWidth = 64;

struct Cache {
  explicit Cache(Index m)
      : keys(Matrix::Random(m + 1, kWidth)), values(Matrix::Random(m + 1, kWidth)) {}
  Matrix keys, values;
  Index gone = 0;  // another one in every call
};

template <class Release>
void measure(benchmark::State& state, const Release& release) {
  const Index m = state.range(0);
  Cache cache(m);
  for (auto _ : state) {
    cache.gone = (cache.gone * 5 + 3) % m;
    release(cache, m);
    benchmark::DoNotOptimize(cache.keys.data());
    benchmark::DoNotOptimize(cache.values.data());
    benchmark::ClobberMemory();
  }
}

void written_over(benchmark::State& state) {
  measure(state, [](Cache& cache, Index m) {
    for (Matrix* x : {&cache.keys, &cache.values})
      std::memcpy(x->row(cache.gone).data(), x->row(m).data(), kWidth * sizeof(float));
  });
}

void moved_up(benchmark::State& state) {
  measure(state, [](Cache& cache, Index m) {
    for (Matrix* x : {&cache.keys, &cache.values})
      std::memmove(x->row(cache.gone).data(), x->row(cache.gone + 1).data(),
                   static_cast<std::size_t>((m - cache.gone) * kWidth) * sizeof(float));
  });
}

void sliced(benchmark::State& state) {
  const Index most = state.range(0);
  Matrix slicing = Matrix::Zero(most, most + 1), out(most, kWidth);
  for (Index i = 0; i < most; ++i) slicing(i, i < most / 2 ? i : i + 1) = 1;
  measure(state, [&](Cache& cache, Index m) {
    for (Matrix* x : {&cache.keys, &cache.values}) {
      out.noalias() = slicing * *x;
      x->topRows(m) = out;
    }
  });
}

BENCHMARK(written_over)->RangeMultiplier(2)->Range(32, 512);
BENCHMARK(moved_up)->RangeMultiplier(2)->Range(32, 512);
BENCHMARK(sliced)->RangeMultiplier(2)->Range(32, 512);

}  // namespace

BENCHMARK_MAIN();
