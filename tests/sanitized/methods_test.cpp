// Every registered method under a sanitizer. With the thread sanitizer only the checks that compare
// numbers of threads: the others run on one.
#include <catch2/catch.hpp>

#include "harness/core/registry.h"
#include "harness/measure/conformance.h"

using namespace subquad;

TEST_CASE("every registered method passes the generated checks under the sanitizer", "[methods]") {
  // Left to the ordinary build, because they would take minutes here: the comparison with oracles,
  // which is the same arithmetic for every method, differences of outputs, and the far ends of
  // parameters. Cubic oracles show their memory errors in one check as well as in all.
  for (const MethodEntry* entry : Registry::instance().methods()) {
    ConformanceOptions options{.rounds = 1,
                               .skip = {"bounds:", "parameters:", "central differences"}};
    if (entry->info.max_n > 0) options.only = "finite";
#ifdef __SANITIZE_THREAD__
    options.only = "3 threads";
    if (entry->info.max_n > 0) continue;
#endif
    int ran = 0;
    for (const CheckResult& result : check_method(*entry, options)) {
      INFO(entry->info.name << ": " << result.check << ": " << result.detail);
      CHECK(result.outcome != CheckOutcome::failed);
      if (result.outcome == CheckOutcome::passed) ++ran;
    }
    INFO(entry->info.name);
    CHECK(ran > 0);
  }
}
