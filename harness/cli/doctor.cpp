// subquad doctor: what this machine is, how steady it is now, and what may spoil a measurement.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "harness/cli/options.h"
#include "harness/measure/flags.h"
#include "harness/measure/machine.h"
#include "harness/measure/machine_check.h"
#include "harness/sweep/results_csv.h"

namespace subquad {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

struct Options {
  double seconds = 4;
  bool json = false, flags = false;
  std::string results;
};

// Text of a JSON value, "not known" for null: /sys says little in virtual machines.
std::string text(const json& value) {
  if (value.is_null()) return "not known";
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

std::string text_or_empty(const json& value) {
  return value.is_string() ? value.get<std::string>() : "";
}

std::string bytes(double count) {
  for (const char* unit : {"B", "KiB", "MiB", "GiB"}) {
    if (count < 1024) return fmt::format("{:.4g} {}", count, unit);
    count /= 1024;
  }
  return fmt::format("{:.4g} TiB", count);
}

bool plots_can_be_drawn() {
  // A fixed command line: nothing of it comes from the user.
  for (const char* python : {"/usr/bin/python3", "python3"}) {
    const std::string command =
        fmt::format("{} -c 'import matplotlib, pandas' >/dev/null 2>&1", python);
    if (std::system(command.c_str()) == 0) return true;
  }
  return false;
}

DoctorFacts gather(const json& machine, double seconds) {
  DoctorFacts facts;
  facts.speed = measure_speed(seconds / 2);
  facts.noise = measure_noise(seconds / 2);
  facts.build_type = machine["build"]["type"];
  facts.sanitized = machine["build"]["sanitized"];
  facts.governor = text_or_empty(machine["cpu"]["governor"]);
  facts.turbo = text_or_empty(machine["cpu"]["turbo"]);
  facts.smt = text_or_empty(machine["cpu"]["smt"]) == "1";
  facts.hypervisor = machine["cpu"]["hypervisor"];
  facts.huge_pages = text_or_empty(machine["memory"]["transparent_huge_pages"]);
  facts.swap = machine["memory"]["swap_bytes"].get<double>() > 0;
  facts.plots = plots_can_be_drawn();
  return facts;
}

ordered_json as_json(const json& machine, const DoctorFacts& facts) {
  const NoiseReport& noise = facts.noise;
  const SpeedReport& speed = facts.speed;
  ordered_json advice = ordered_json::array();
  for (const Advice& item : advise(facts))
    advice.push_back({{"problem", item.problem}, {"remedy", item.remedy}});
  return {{"machine", machine},
          {"speed",
           {{"clock_idle_mhz", speed.clock_idle_mhz},
            {"clock_load_mhz", speed.clock_load_mhz},
            {"fma_gflops", speed.fma_gflops},
            {"gemm_gflops", speed.gemm_gflops},
            {"gemm_share", speed.gemm_share()}}},
          {"noise",
           {{"samples", noise.samples},
            {"median_s", noise.median_s},
            {"min_s", noise.min_s},
            {"max_s", noise.max_s},
            {"spread", noise.spread},
            {"slow_share", noise.slow_share},
            {"drift", noise.drift},
            {"steal_share", noise.steal_share},
            {"involuntary_switches", noise.involuntary_switches},
            {"other_runnable", noise.runnable}}},
          {"plots", facts.plots},
          {"advice", advice}};
}

void print(const json& machine, const DoctorFacts& facts) {
  const json &cpu = machine["cpu"], &memory = machine["memory"], &build = machine["build"];
  std::string caches;
  for (const json& cache : cpu["caches"])
    caches += fmt::format("{}L{} {} {}", caches.empty() ? "" : ", ", cache["level"].get<int>(),
                          cache["type"].get<std::string>(), bytes(cache["bytes"].get<double>()));
  std::string libraries;
  for (const auto& [name, version] : machine["libraries"].items())
    libraries += fmt::format("{}{} {}", libraries.empty() ? "" : ", ", name, text(version));
  const NoiseReport& noise = facts.noise;
  const SpeedReport& speed = facts.speed;
  fmt::print(
      "{}",
      format_table(
          {{"processor", fmt::format("{}{}", text(cpu["model"]),
                                     facts.hypervisor ? ", in a virtual machine" : "")},
           {"cores", fmt::format("{} logical, {} physical, {} sockets", text(cpu["logical"]),
                                 text(cpu["cores"]), text(cpu["sockets"]))},
           {"caches", caches.empty() ? "not known" : caches},
           {"memory",
            fmt::format("{}, {} free; huge pages {}", bytes(memory["total_bytes"].get<double>()),
                        bytes(memory["available_bytes"].get<double>()),
                        text(memory["transparent_huge_pages"]))},
           {"system", fmt::format("{}, {}", text(machine["system"]["os"]),
                                  text(machine["system"]["kernel"]))},
           {"frequency", fmt::format("governor {}, turbo {}; measured {:.0f} MHz at rest, {:.0f} "
                                     "MHz after load",
                                     text(cpu["governor"]), text(cpu["turbo"]),
                                     speed.clock_idle_mhz, speed.clock_load_mhz)},
           {"build", fmt::format("{}, {}, git {}", text(build["type"]), text(build["compiler"]),
                                 text(build["git_revision"]))},
           {"flags", text(build["flags"])},
           {"vectors", text(build["eigen_simd"])},
           {"libraries", libraries},
           {"peak", fmt::format("{:.0f} GFLOP/s multiply-add on one core", speed.fma_gflops)},
           {"matrix product", fmt::format("{:.0f} GFLOP/s on one core, {:.0f} % of that peak",
                                          speed.gemm_gflops, 100 * speed.gemm_share())},
           {"noise",
            fmt::format("{} samples of {:.3f} ms: spread {:.2f} %, fastest {:.3f}, slowest "
                        "{:.3f} ms, drift {:+.2f} %",
                        noise.samples, 1e3 * noise.median_s, 100 * noise.spread, 1e3 * noise.min_s,
                        1e3 * noise.max_s, 100 * noise.drift)},
           {"disturbance",
            fmt::format("steal {:.2f} %, {} involuntary switches, up to {} other runnable tasks",
                        100 * noise.steal_share, noise.involuntary_switches, noise.runnable)},
           {"figures", facts.plots ? "can be drawn" : "cannot be drawn"}}));
  const std::vector<Advice> advice = advise(facts);
  fmt::print("\n{}\n", advice.empty() ? "Nothing found that would spoil a measurement."
                                      : "What may spoil a measurement:");
  for (const Advice& item : advice) fmt::print("  {}\n      -> {}\n", item.problem, item.remedy);
}

void print_flag(const std::string& flag, const std::string& title) {
  const FlagHelp* help = find_flag(flag);
  fmt::print("{}: {}\n      -> {}\n", title, help == nullptr ? "unknown" : help->meaning,
             help == nullptr ? "it may be of another version of subquad" : help->remedy);
}

// What put the rows of a run directory in doubt.
void explain_results(const std::string& directory) {
  struct Count {
    std::size_t rows = 0, unstable = 0;
  };
  std::map<std::string, Count> flags;
  std::size_t unstable = 0;
  const auto rows = final_rows(read_results_csv(directory + "/results.csv"));
  for (const RowFields& row : rows) {
    const bool doubtful = row.at("status") == "unstable";
    unstable += doubtful;
    const auto field = row.find("flags");
    std::string rest = field == row.end() ? "" : field->second + ";";
    for (std::size_t end = 0; (end = rest.find(';')) != std::string::npos;
         rest = rest.substr(end + 1)) {
      const std::string flag = rest.substr(0, rest.find_first_of(":=;"));
      if (flag.empty()) continue;
      ++flags[flag].rows;
      flags[flag].unstable += doubtful;
    }
  }
  fmt::print(
      "{} rows, {} of them unstable ({:.1f} %)\n", rows.size(), unstable,
      rows.empty() ? 0 : 100.0 * static_cast<double>(unstable) / static_cast<double>(rows.size()));
  for (const auto& [flag, count] : flags)
    print_flag(flag, fmt::format("  {} in {} rows, {} of them unstable", flag, count.rows,
                                 count.unstable));
}

}  // namespace

void add_doctor(CLI::App& app, int*) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("doctor", "Describe this machine and what may spoil a measurement on it");
  command->add_option("--seconds", options->seconds, "How long to measure noise and speed")
      ->check(CLI::Range(0.1, 600.0));
  command->add_flag("--json", options->json, "As JSON");
  command->add_flag("--flags", options->flags, "What each flag of a row means; measures nothing");
  command->add_option("--results", options->results,
                      "What put rows of this run directory in doubt; measures nothing");
  command->callback([options] {
    if (options->flags)
      for (const FlagHelp& help : all_flags())
        print_flag(std::string(help.flag), std::string(help.flag));
    if (!options->results.empty()) explain_results(options->results);
    if (options->flags || !options->results.empty()) return;
    const json machine = machine_description();
    const DoctorFacts facts = gather(machine, options->seconds);
    if (options->json) {
      fmt::print("{}\n", as_json(machine, facts).dump(2));
    } else {
      print(machine, facts);
    }
  });
}

}  // namespace subquad
