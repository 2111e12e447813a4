#include "harness/cli/cli.h"

namespace subquad {

void add_test(CLI::App&, int*) {}

}  // namespace subquad
