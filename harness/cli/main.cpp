// subquad: benchmarks of efficient attention. The commands live in files of their own.
#include <fmt/core.h>

#include <csignal>
#include <cstdio>
#include <new>
#include <string>
#include <vector>

#include "harness/cli/cli.h"
#include "harness/core/error.h"
#include "harness/core/params.h"
#include "harness/core/registry.h"

namespace subquad {
namespace {

// "; see subquad run --help", or the command that may have been meant.
std::string hint(const CLI::App& app, int argc, char** argv) {
  for (const CLI::App* command : app.get_subcommands())
    return fmt::format("; see subquad {} --help", command->get_name());
  std::vector<std::string> known;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    known.push_back(command->get_name());
  const std::string near = argc > 1 ? nearest_name(argv[1], known) : "";
  return near.empty() ? "; see subquad --help" : fmt::format("; did you mean \"{}\"?", near);
}

}  // namespace
}  // namespace subquad

int main(int argc, char** argv) {
  using namespace subquad;
  int status = kExitOk;
  std::signal(SIGCHLD, SIG_DFL);  // inherited as ignored, it would hide how children end
  try {
    Registry::instance().check();
    CLI::App app("Measures efficient attention against an exact baseline.", "subquad");
    app.require_subcommand(1);
    app.set_version_flag("--version", SUBQUAD_VERSION);
    for (const auto add :
         {add_run, add_plan, add_merge, add_submit, add_compare, add_list, add_describe, add_apply,
          add_sample, add_plot, add_table, add_report, add_reproduce, add_new, add_doctor, add_test,
          add_train, add_capture, add_worker})
      add(app, &status);
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) return app.exit(error);  // --help and --version
      fmt::print(stderr, "subquad: {}{}\n", error.what(), hint(app, argc, argv));
      return kExitUsage;
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
