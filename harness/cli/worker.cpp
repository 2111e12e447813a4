// subquad worker: the hidden command that `run` starts for each cell (see harness/sweep/worker.h).
#include "harness/sweep/worker.h"

#include "harness/cli/cli.h"

namespace subquad {

void add_worker(CLI::App& app, int* status) {
  CLI::App* const command = app.add_subcommand("worker", "runs one cell; started by `run`");
  command->group("");  // not listed in the help
  command->callback([status] { *status = worker_main(); });
}

}  // namespace subquad
