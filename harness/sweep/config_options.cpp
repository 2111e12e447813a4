// The keys of the sections `measure` and `error`: names, ranges, help.
#include <sched.h>

#include <algorithm>
#include <thread>

#include "harness/sweep/config_sweep.h"

namespace subquad {

const std::vector<Field<MeasureOptions>>& measure_fields() {
  using M = MeasureOptions;
  static const std::vector<Field<M>> fields{
      param("min_time_s", &M::min_time_s, {1e-6, 3600}, "one repetition lasts at least this long"),
      param("repetitions", &M::repetitions, {1, 10000}, "samples per round"),
      param("warmup_s", &M::warmup_s, {0, 3600}, "untimed calls before the first sample"),
      param("input_sets", &M::input_sets, {1, 64}, "pre-made inputs that timed calls rotate over"),
      param("decode_tokens", &M::decode_tokens, {1, 1 << 24}, "decode: tokens timed at the end"),
      param("max_spread", &M::max_spread, {0, 1000},
            "uncertainty of the median above which a row is unstable"),
      param("timeout_s", &M::timeout_s, {0.001, 1e7}, "wall time of the whole worker"),
      param("memory_limit_mb", &M::memory_limit_mb, {0, 1 << 30},
            "address space of the worker; 0 = 90 % of the free memory"),
      param("pin", &M::pin, "bind the worker's threads to cores 0 .. threads-1"),
      param("examples", &M::examples, {1, 1 << 24}, "whole models: examples that are decoded"),
      choice("feed", &M::feed, {"teacher", "own"},
             "whole models: tokens after the prompt, the example's or those the model draws"),
      param("temperature", &M::temperature, {0, 100},
            "feed own: of the draws; 0 = the most probable token")};
  return fields;
}

const std::vector<Field<ErrorOptions>>& error_fields() {
  using E = ErrorOptions;
  static const std::vector<Field<E>> fields{
      param("max_gflop", &E::max_gflop, {0, 1e9},
            "above this cost of the exact reference rows are sampled"),
      param("rows", &E::rows, {1, 1 << 24}, "query rows per batch and head sampled then"),
      param("matrix_rows", &E::matrix_rows, {0, 1 << 24},
            "rows of the attention matrix for KL and top-k mass; 0 = off"),
      param("top_k", &E::top_k, {1, 1 << 24}, "k of the top-k mass")};
  return fields;
}

int available_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace subquad
