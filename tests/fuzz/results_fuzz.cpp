// Any bytes as results.csv: refused with file, line and offset, or rows that survive being written.
#include "harness/core/error.h"
#include "harness/sweep/results_csv.h"
#include "harness/sweep/results_store.h"
#include "tests/fuzz/input.h"

using namespace subquad;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const auto rows = final_rows(parse_results_csv(text, "results.csv"));
    for (RowFields row : rows) {
      const std::string line = results_line(row);
      auto again = parse_results_csv(results_header() + line, "results.csv");
      fuzz::require(again.size() == 1);
      fuzz::require(results_line(again[0]) == line);
    }
  } catch (const StorageError& error) {
    const std::string message = error.what();
    fuzz::require(message.starts_with("results.csv:"));
    fuzz::require_printable(message);
  }
  return 0;
}
