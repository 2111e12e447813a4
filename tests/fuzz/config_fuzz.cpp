// Any bytes as a config: refused in clear lines, or cells that read back from the resolved config.
#include "harness/sweep/config.h"
#include "tests/fuzz/input.h"

using namespace subquad;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::InputFile file(data, size);
  try {
    const Config config = load_config(file.path());
    fuzz::require(!config.cells.empty());
    if (config.cells.size() > 200) return 0;  // slow, and nothing new
    const fuzz::InputFile resolved(
        reinterpret_cast<const std::uint8_t*>(config.resolved_yaml.data()),
        config.resolved_yaml.size());
    const Config again = load_config(resolved.path());
    fuzz::require(again.cells.size() == config.cells.size());
    for (std::size_t i = 0; i < config.cells.size(); ++i)
      fuzz::require(again.cells[i].id() == config.cells[i].id());
  } catch (const ConfigError& error) {
    fuzz::require_printable(error.what());
  }
  return 0;
}
