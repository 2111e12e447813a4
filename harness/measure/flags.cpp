#include "harness/measure/flags.h"

#include <algorithm>

namespace subquad {

const std::vector<FlagHelp>& all_flags() {
  static const std::vector<FlagHelp> kFlags = {
      {"attention_rows", "the method's attention matrix could not be judged",
       "look at the reason; the other columns are not affected"},
      {"context_switches", "other tasks took the processor from it often",
       "close other programs, or set `threads` below the number of cores"},
      {"died_after_answer", "the worker crashed when it had answered",
       "the numbers stand; the method frees something twice, or too early"},
      {"extra_threads", "it used more processors than it was granted",
       "the method starts threads of its own; compare it at equal processor time"},
      {"frequency", "a fixed small product ran at another speed afterwards",
       "fix the clock (governor, turbo), let the machine warm up, use more rounds"},
      {"hung_after_answer", "the worker did not end when it had answered",
       "the numbers stand; a thread of the method waits for something"},
      {"judged_check_call", "no timed call fell on the inputs that are judged",
       "raise measure.min_time_s, or lower measure.input_sets"},
      {"leaked_threads", "threads of the method went on running",
       "later calls shared the processor with them: mend the method"},
      {"left_processes", "processes that the method started were still there and were killed",
       "mend the method"},
      {"not_reproducible", "the same input gave other bits",
       "sums in an order that depends on threads; set threads: 1 to see whether it goes away"},
      {"reference_failed", "there is no exact attention to compare with",
       "look at worker.log; lower error.rows or error.max_gflop"},
      {"reference_recomputed", "the stored exact reference could not be used",
       "it was computed again in the worker; nothing is wrong with the numbers"},
      {"short_samples", "a sample lasts less than a millisecond, near the clock's own noise",
       "raise measure.min_time_s"},
      {"spread", "the samples do not tell the median well enough",
       "a quiet machine, more repetitions, or a larger measure.max_spread"},
      {"steal", "the hypervisor gave the processor to another machine",
       "a machine of your own, or more rounds"},
      {"suspended", "the machine slept meanwhile", "run the cell again"},
      {"swapping", "memory was written to swap meanwhile",
       "set measure.memory_limit_mb below the free memory, switch swap off"},
      {"waited", "its threads wanted to run and had to wait for a processor",
       "something else runs here: wait until the machine is idle; --retry-failed does not repeat "
       "such rows, --fresh does"},
      {"weak_check", "the exact output hardly differs between queries, so any method looks good",
       "take a task with structure (mqar, needle), or shorter inputs"},
  };
  return kFlags;
}

const FlagHelp* find_flag(std::string_view flag) {
  const auto& flags = all_flags();
  const auto found =
      std::find_if(flags.begin(), flags.end(), [&](const FlagHelp& f) { return f.flag == flag; });
  return found == flags.end() ? nullptr : &*found;
}

}  // namespace subquad
