// subquad: benchmarks of efficient attention. The commands live in files of their own.
#include <fmt/core.h>

#include <cstdio>
#include <new>

#include "harness/cli/cli.h"
#include "harness/core/error.h"
#include "harness/core/registry.h"

int main(int argc, char** argv) {
  using namespace subquad;
  int status = kExitOk;
  try {
    Registry::instance().check();
    CLI::App app("Measures efficient attention against an exact baseline.", "subquad");
    app.require_subcommand(1);
    app.set_version_flag("--version", SUBQUAD_VERSION);
    for (const auto add : {add_run, add_list, add_describe, add_apply, add_sample, add_plot,
                           add_table, add_new, add_doctor, add_test, add_worker})
      add(app, &status);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      return app.exit(error) == 0 ? kExitOk : kExitUsage;
    }
  } catch (const StorageError& error) {
    fmt::print(stderr, "subquad: {}\n", error.what());
    return kExitStorage;
  } catch (const UserError& error) {
    fmt::print(stderr, "subquad: {}\n", error.what());
    return kExitUsage;
  } catch (const Unsupported& error) {
    fmt::print(stderr, "subquad: not supported: {}\n", error.what());
    return kExitUsage;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "subquad: out of memory\n");
    return kExitFailed;
  } catch (const std::exception& error) {
    fmt::print(stderr, "subquad: internal error: {}\n", error.what());
    return kExitFailed;
  }
  return status;
}
