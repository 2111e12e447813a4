// The columns of results.csv. A row has a text for each; empty means missing. Columns are only
// ever added at the end.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "harness/core/types.h"

namespace subquad {

struct Column {
  std::string_view name;
  std::string_view filled_by;  // "runner", "worker"
  std::string_view help;       // one line, with the unit
};

inline constexpr Column kColumns[] = {
    // identity
    {"cell_id", "runner", "16 hex digits over everything that determines the result"},
    {"round", "runner", "0-based; one complete run of the cell in a process of its own"},
    {"attempt", "runner",
     "1-based; counts starts of this cell and round, also those that left no row"},
    {"status", "runner",
     "ok, unstable, wrong, unsupported, oom, timeout, crash, error, interrupted"},
    {"reason", "runner", "why the status is not ok; empty when it is"},
    // what was asked
    {"method", "runner", "registered name"},
    {"label", "runner", "display name in figures"},
    {"method_params", "runner", "a=1;b=2, every parameter"},
    {"family", "runner", "folder of the method"},
    {"approximates", "runner", "softmax, own_kernel or nothing"},
    {"oracle", "runner", "1: sees the exact attention matrix; a bound, not a competitor"},
    {"task", "runner", "registered name"},
    {"task_params", "runner", "a=1;b=2, every parameter"},
    {"pass", "runner", "forward, backward, forward_backward, decode, train, fit"},
    {"causal", "runner", "1 or 0"},
    {"batch", "runner", "sequences"},
    {"heads", "runner", "heads"},
    {"n", "runner", "queries (decode: length of the history at the end)"},
    {"n_kv", "runner", "keys"},
    {"d_k", "runner", "width of q and k"},
    {"d_v", "runner", "width of v"},
    {"scale", "runner", "factor on the logits"},
    {"threads", "runner", "OpenMP threads"},
    {"seed", "runner", "seed of inputs and random methods"},
    // time
    {"time_s", "worker", "median over the repetitions, seconds per call (decode: per token)"},
    {"time_min_s", "worker", "fastest repetition, seconds per call"},
    {"time_max_s", "worker", "slowest repetition, seconds per call"},
    {"time_q25_s", "worker", "lower quartile of the repetitions"},
    {"time_q75_s", "worker", "upper quartile of the repetitions"},
    {"spread", "worker", "(q75 - q25) / median of the repetitions"},
    {"repetitions", "worker", "samples taken"},
    {"iterations", "worker", "calls per sample"},
    {"setup_s", "worker", "prepare: plans, buffers, random features"},
    {"fit_s", "worker", "training of the methods' own parameters, seconds"},
    {"fit_steps", "worker", "steps of that training; empty = not fitted"},
    {"tokens_per_s", "worker", "batch * n / time (decode: batch / time)"},
    {"gflops", "worker", "the method's own operation count / time"},
    // memory
    {"peak_bytes", "worker",
     "high-water mark of allocations by prepare and the pass, beyond inputs and outputs"},
    {"analytic_bytes", "worker", "what the method says that this should be"},
    {"timed_allocs", "worker", "allocations inside one timed call"},
    {"vm_hwm_bytes", "worker", "peak resident set of the worker process (VmHWM)"},
    {"keys_per_query", "worker", "budget: keys or features that one query meets"},
    {"state_bytes", "worker", "budget: recurrent state or cache"},
    {"kv_bytes", "worker", "decode: peak bytes of keys and values or state"},
    {"aux_bytes", "worker", "decode: peak bytes of scores, indices, controllers"},
    {"cold_bytes", "worker", "decode: peak bytes kept outside the cache"},
    // error against exact softmax attention, in double precision, of the output of a timed call
    {"error_of", "worker", "output, or gradient (dq, dk, dv together)"},
    {"rel_error", "worker", "relative Frobenius error"},
    {"max_error", "worker", "largest absolute error"},
    {"cosine", "worker", "mean cosine similarity of rows"},
    {"error_rows", "worker", "query rows judged"},
    {"error_rows_total", "worker",
     "query rows there are; equal to error_rows when all were judged"},
    {"kl", "worker", "mean row-wise KL(exact || method) of the attention matrix, in nats"},
    {"topk_mass", "worker",
     "mass that the method puts on the exact top k keys / the exact mass there"},
    {"topk", "worker", "that k"},
    {"method_metrics", "worker", "a=1;b=2, numbers that the method reports"},
    // how far the number can be trusted
    {"flags", "worker",
     "doubts, separated by ';' (spread, steal, context_switches, frequency, weak_check, ...)"},
    {"context_switches", "worker", "involuntary ones while timing"},
    {"steal_s", "worker", "processor time taken by the hypervisor while timing, all cores"},
    {"mhz", "worker", "clock of core 0 after timing"},
    {"calibration_before", "worker", "GFLOP/s of a fixed small matrix product before timing"},
    {"calibration_after", "worker", "the same after timing"},
    // provenance
    {"build", "worker", "build type and flags hash"},
    {"build_id", "runner", "hash of the executable"},
    {"cpu", "runner", "model name"},
    {"host", "runner", "host name"},
    {"started", "runner", "UTC, ISO 8601; for humans"},
    {"wall_s", "runner", "wall time of the worker process"},
    {"command", "runner", "reproduces this row alone"},
    {"line_crc", "runner",
     "CRC-32 of the line with this field empty, 8 hex digits; a damaged line is refused"},
    // the attention matrix against the exact one, where the method shows it
    {"matrix_error", "worker", "relative Frobenius error of the attention matrix"},
    {"row_tv", "worker", "mean total variation of its rows: half the sum of absolute differences"},
    {"matrix_rows", "worker", "rows of the attention matrix judged, over all heads"},
    {"bounds_in", "worker",
     "oracles: the column in which no method that it bounds is smaller at equal keys_per_query"},
    {"bounded_by", "runner", "a;b, the oracles that bound the method"},
    // training
    {"train_params", "runner", "train: a=1;b=2, every option"},
    {"accuracy", "worker", "train: share of the test labels that have the largest logit"},
    {"loss", "worker", "train: mean cross-entropy of the test labels, nats"},
    {"bits", "worker", "train: the same in bits (per token, byte, pixel or sequence)"},
    {"perplexity", "worker", "train: exp(loss)"},
    {"evaluation", "worker", "train: on what, and with which weights"},
    {"validation_accuracy", "worker", "train: at the last validation"},
    {"validation_loss", "worker", "train: at the last validation, nats"},
    {"best_accuracy", "worker", "train: highest of all validations"},
    {"steps", "worker", "train: optimizer steps done"},
    {"stopped", "worker", "train: why: steps, accuracy, patience, diverged"},
    {"best_step", "worker", "train: step of the lowest validation loss"},
    {"half_step", "worker", "train: first validation with an accuracy above 0.5"},
    {"parameters", "worker", "train: learned numbers"},
    {"floors", "worker", "train: trivial predictors of the task, name=value;..."},
    // limits of the machine, measured in the same run
    {"fma_peak_gflops", "worker",
     "GFLOP/s of float32 multiply-adds in registers on the cell's threads, between its "
     "repetitions"},
    {"fraction_of_peak", "worker", "gflops / fma_peak_gflops"},
    {"bandwidth_gbs", "worker",
     "GB/s of reading or copying memory on the cell's threads, the better; at most a minute old"},
    {"fraction_of_bandwidth", "runner", "decode: state_bytes / time_s / bandwidth_gbs"},
    // learned parameters of methods
    {"fit_params", "runner", "fit: a=1;b=2, every option"},
    {"learned_from", "worker",
     "how learned parameters came: initial (untrained), fit (in this cell), train, a file, or a "
     "list "
     "of these"},
    {"fit_first_loss", "worker", "fit: squared relative error on training inputs before it"},
    {"fit_last_loss", "worker", "fit: mean of the same over the last tenth of the steps"},
    // what a query sees, where the method or its decoder shows it; and single tokens
    {"recall_topk", "worker", "share of the exact top k keys that get any weight, mean over rows"},
    {"mass_recall", "worker", "exact mass of the keys that get any weight, mean over rows"},
    {"row_error", "worker", "mean over rows of the relative error of a row"},
    {"token_p50_s", "worker", "decode: median time of a token, each timed alone"},
    {"token_p95_s", "worker", "decode: 95 % of the tokens take no longer"},
    // where it ran
    {"waited_s", "worker", "time that its threads waited for a processor while timing, together"},
    {"placement", "runner",
     "processors that the worker might use, runners that measured at once on this machine (each on "
     "processors of its own), and whether threads were pinned: a=1;b=2"},
};

}  // namespace subquad
