#include "harness/sweep/merge.h"

#include <fmt/core.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string_view>
#include <tuple>
#include <utility>

#include "harness/core/error.h"
#include "harness/measure/memory.h"
#include "harness/sweep/csv.h"
#include "harness/sweep/results_store.h"
#include "harness/sweep/run_directory.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;
using Key = std::pair<int, std::string>;  // round, cell id

constexpr std::size_t kListed = 10;  // of anything that may be long

// What may yet appear: of a run that has not begun, or on a slow file system.
struct NotYet : UserError {
  using UserError::UserError;
};

struct Source {
  std::string directory;
  Plan plan;
  std::map<Key, std::vector<RowFields>> rows;  // in the order of the file
};

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

bool is_run(const fs::path& path) {
  return fs::exists(path / "results.csv") || fs::exists(path / "plan.json");
}

// I and N of "shard-I-of-N".
std::optional<std::pair<int, int>> shard_in_name(const std::string& name) {
  int index = 0, count = 0, used = 0;
  if (std::sscanf(name.c_str(), "shard-%6d-of-%6d%n", &index, &count, &used) != 2 ||
      static_cast<std::size_t>(used) != name.size())
    return std::nullopt;
  return std::pair{index, count};
}

std::vector<std::string> run_directories(const std::vector<std::string>& given) {
  std::vector<std::string> list;
  for (const std::string& path : given) {
    if (!fs::is_directory(path))
      throw NotYet(fmt::format("{}: is no directory; expected that of a run", path));
    std::vector<std::tuple<int, int, std::string>> shards;
    for (const fs::directory_entry& entry : fs::directory_iterator(path))
      if (const auto shard = shard_in_name(entry.path().filename().string());
          shard && is_run(entry.path()))
        shards.emplace_back(shard->second, shard->first, entry.path().string());
    if (is_run(path)) list.push_back(path);
    std::sort(shards.begin(), shards.end());
    for (const auto& shard : shards) list.push_back(std::get<2>(shard));
    if (!is_run(path) && shards.empty())
      throw NotYet(fmt::format(
          "{}: holds no run and no shard-I-of-N; expected directories of subquad run", path));
  }
  return list;
}

// `results`: content of its results.csv, empty while there is none (it was killed early).
Source read_source(const std::string& directory, const std::string& results) {
  Source source{directory, {}, {}};
  const std::string plan = directory + "/plan.json";
  if (!fs::exists(plan))
    throw NotYet(fmt::format("{}: has no plan.json; is it a run directory?", directory));
  source.plan = plan_from_text(slurp(plan), plan);
  if (!results.empty())
    for (RowFields& row : parse_results_csv(results, directory + "/results.csv")) {
      row.erase("line_crc");
      std::erase_if(row, [](const auto& field) { return field.second.empty(); });
      source.rows[{std::stoi(row.at("round")), row.at("cell_id")}].push_back(std::move(row));
    }
  return source;
}

// The whole sweep that all sources are parts of.
Plan whole_plan(const std::vector<Source>& sources) {
  const auto sharded = [](const Source& source) { return source.plan.shards > 1; };
  Plan whole;
  whole.rounds = sources.front().plan.rounds;
  const Source* first = nullptr;
  for (const Source& source : sources) {
    if (source.plan.rounds != whole.rounds)
      throw UserError(fmt::format("{} has {} rounds, {} has {}; they are of different sweeps",
                                  sources.front().directory, whole.rounds, source.directory,
                                  source.plan.rounds));
    if (!sharded(source)) continue;
    if (first == nullptr) first = &source;
    if (source.plan.sweep != first->plan.sweep || source.plan.shards != first->plan.shards)
      throw UserError(fmt::format(
          "{} is a shard of {} cells in {} parts, {} of {} cells in {}: not the same sweep",
          first->directory, first->plan.sweep.size(), first->plan.shards, source.directory,
          source.plan.sweep.size(), source.plan.shards));
  }
  if (first != nullptr) whole.cells = first->plan.sweep;
  for (const Source& source : sources) {
    if (first == nullptr) whole.cells.insert(source.plan.cells.begin(), source.plan.cells.end());
    for (const std::string& id : source.plan.cells)
      if (!whole.cells.contains(id))
        throw UserError(fmt::format("{}: cell {} is not part of the sweep of {}", source.directory,
                                    id, first->directory));
  }
  return whole;
}

struct Chosen {
  RowFields row;
  const Source* source = nullptr;
};

std::string describe(const Chosen& chosen) {
  const std::string time = field(chosen.row, "time_s");
  return fmt::format("{} (attempt {}, {}{})", chosen.source->directory,
                     field(chosen.row, "attempt"), chosen.row.at("status"),
                     time.empty() ? "" : ", " + time + " s");
}

bool contains(const std::vector<RowFields>& rows, const RowFields& row) {
  return std::find(rows.begin(), rows.end(), row) != rows.end();
}

bool is_final(const RowFields& row) { return row.at("status") != "interrupted"; }

// The row that counts for every cell and round. What one directory holds as an earlier attempt,
// another may hold as its last: the later one counts. UserError when there are two that differ.
std::map<Key, Chosen> choose_rows(const std::vector<Source>& sources, const Plan& whole,
                                  std::vector<std::string>* warnings) {
  std::map<Key, Chosen> chosen;
  std::vector<std::string> contradictions;
  std::size_t foreign = 0, contradicting = 0;
  for (const Source& source : sources)
    for (const auto& [key, rows] : source.rows) {
      if (!whole.cells.contains(key.second) || key.first >= whole.rounds) {
        ++foreign;
        continue;
      }
      const Chosen candidate{rows.back(), &source};
      const auto [place, fresh] = chosen.emplace(key, candidate);
      if (fresh || place->second.row == candidate.row) continue;
      Chosen& other = place->second;
      if (contains(rows, other.row) || (is_final(candidate.row) && !is_final(other.row))) {
        other = candidate;
      } else if (!contains(other.source->rows.at(key), candidate.row) && is_final(candidate.row)) {
        if (++contradicting <= kListed)
          contradictions.push_back(fmt::format("cell {} round {}: {} and {}", key.second, key.first,
                                               describe(other), describe(candidate)));
      }
    }
  if (contradicting > 0)
    throw UserError(fmt::format(
        "{} runs have two different final rows; leave out one of the directories:\n  {}{}",
        contradicting, fmt::join(contradictions, "\n  "),
        contradicting > kListed ? "\n  ..." : ""));
  if (foreign > 0)
    warnings->push_back(fmt::format(
        "{} rows of cells that the sweep does not have any more were left out", foreign));
  return chosen;
}

// `given`: sources before the result's own.
void list_missing(const std::vector<Source>& sources, std::size_t given, const Plan& whole,
                  const std::map<Key, Chosen>& chosen, MergeReport* report) {
  const auto missing_of = [&](const std::set<std::string>& ids) {
    std::vector<std::string> runs;
    for (const std::string& id : ids)
      for (int round = 0; round < whole.rounds; ++round) {
        const auto found = chosen.find({round, id});
        if (found == chosen.end() || !is_final(found->second.row))
          runs.push_back(fmt::format("{} round {}", id, round));
      }
    return runs;
  };
  const auto add = [&](const Source* source, const std::set<std::string>& ids) {
    MissingRows missing;
    missing.runs = missing_of(ids);
    if (missing.runs.empty()) return;
    missing.asked = ids.size() * static_cast<std::size_t>(whole.rounds);
    if (source != nullptr) {
      missing.directory = source->directory;
      missing.shard = source->plan.shard;
      missing.shards = source->plan.shards;
    }
    report->missing.push_back(std::move(missing));
  };
  std::set<std::string> rest = whole.cells;
  std::set<int> present;
  int shards = 1;
  for (std::size_t i = 0; i < given; ++i) {
    const Source& source = sources[i];
    add(&source, source.plan.cells);
    for (const std::string& id : source.plan.cells) rest.erase(id);
    if (source.plan.shards > 1) {
      shards = source.plan.shards;
      present.insert(source.plan.shard);
    }
  }
  add(nullptr, rest);
  for (int shard = 0; shards > 1 && shard < shards; ++shard)
    if (!present.contains(shard)) report->absent.push_back(shard);
}

// Rows that are divided by each other: the same data, sizes, threads and round.
std::string compared_with(const RowFields& row) {
  std::string key;
  for (const char* column : {"task", "task_params", "pass", "causal", "batch", "heads", "n", "n_kv",
                             "d_k", "d_v", "scale", "threads", "seed", "round"}) {
    key += field(row, column) + "|";
  }
  return key;
}

void look_at_hardware(const std::map<Key, Chosen>& chosen, const MergeOptions& options,
                      MergeReport* report) {
  std::map<std::string, std::set<std::string>> cpus;  // by comparison
  std::set<std::string> builds;
  for (const auto& [key, row_and_source] : chosen) {
    const RowFields& row = row_and_source.row;
    report->hosts[field(row, "cpu")].insert(field(row, "host"));
    ++report->rows_of_cpu[field(row, "cpu")];
    cpus[compared_with(row)].insert(field(row, "cpu"));
    builds.insert(field(row, "build_id"));
  }
  if (builds.size() > 1)
    report->warnings.push_back(
        fmt::format("rows of {} builds of subquad; tables refuse to mix them", builds.size()));
  if (report->hosts.size() < 2) return;
  if (!options.mixed_hardware) {
    std::string list;
    for (const auto& [cpu, hosts] : report->hosts)
      list += fmt::format("\n  {}: {} rows, hosts {}", cpu, report->rows_of_cpu[cpu],
                          fmt::join(hosts, ", "));
    throw UserError(
        fmt::format("rows of {} CPU models; merge them apart, or together with --mixed-hardware:{}",
                    report->hosts.size(), list));
  }
  const auto split = std::count_if(cpus.begin(), cpus.end(),
                                   [](const auto& group) { return group.second.size() > 1; });
  if (split > 0)
    report->warnings.push_back(fmt::format(
        "{} comparisons have rows of several CPU models; their ratios mean nothing", split));
}

// Lines of samples.csv or curves.csv that belong to merged rows, after one header.
std::string join_lines(const std::vector<Source>& sources, const std::string& name,
                       const std::map<Key, Chosen>& chosen) {
  std::string joined;
  std::set<std::string> taken;  // cell, round, attempt, of an earlier source
  for (const Source& source : sources) {
    std::set<std::string> here;
    const std::string content = slurp(source.directory + "/" + name);
    for (std::size_t start = 0, end = 0; (end = content.find('\n', start)) != std::string::npos;
         start = end + 1) {
      const std::string line = content.substr(start, end - start + 1);
      if (start == 0) {
        if (joined.empty()) joined = line;
        continue;
      }
      const auto fields = split_csv(std::string_view(line).substr(0, line.size() - 1));
      if (!fields || fields->size() < 4 ||
          (*fields)[1].find_first_not_of("0123456789") != std::string::npos ||
          (*fields)[1].empty() || (*fields)[1].size() > 9)
        throw StorageError(
            fmt::format("{}/{}: byte {}: malformed line", source.directory, name, start));
      const auto row = chosen.find({std::stoi((*fields)[1]), (*fields)[0]});
      if (row == chosen.end() || field(row->second.row, "attempt") != (*fields)[2]) continue;
      const std::string key =
          fmt::format("{}", fmt::join(fields->begin(), fields->begin() + 3, ","));
      if (taken.contains(key)) continue;
      here.insert(key);
      joined += line;
    }
    taken.merge(here);
  }
  return joined;
}

std::string join_attempts(const std::vector<Source>& sources) {
  std::string joined;
  std::set<std::string> seen;
  for (const Source& source : sources) {
    std::istringstream lines(slurp(source.directory + "/attempts.log"));
    for (std::string line; std::getline(lines, line);)
      if (seen.insert(line).second) joined += line + "\n";
  }
  return joined;
}

void write_out(const RunDirectory& out, const std::vector<Source>& sources,
               const std::map<Key, Chosen>& chosen, MergeReport* report) {
  std::set<std::string> configs, machines;
  for (const Source& source : sources) {
    const std::string config = slurp(source.directory + "/config.resolved.yaml");
    if (!config.empty() && configs.insert(config).second && configs.size() == 1)
      out.write_file("config.resolved.yaml", config);
    const std::string machine = slurp(source.directory + "/machine.json");
    if (!machine.empty() && machines.insert(machine).second)
      out.write_file(
          machines.size() == 1
              ? "machine.json"
              : fmt::format("machine-{}.json", fs::path(source.directory).filename().string()),
          machine);
  }
  if (configs.size() > 1)
    report->warnings.push_back(
        "the directories' configs differ in what is no part of a cell; the first one was kept");
  out.write_file("attempts.log", join_attempts(sources));
  for (const char* name : {"samples.csv", "curves.csv"})
    if (const std::string lines = join_lines(sources, name, chosen); !lines.empty())
      out.write_file(name, lines);
  std::string results = results_header();
  for (const auto& [key, row] : chosen) {
    // Earlier attempts stay in front: by them a later merge knows which of two rows came first.
    std::vector<RowFields> earlier;
    for (const Source& source : sources) {
      const auto rows = source.rows.find(key);
      if (rows == source.rows.end()) continue;
      for (const RowFields& attempt : rows->second)
        if (attempt != row.row && !contains(earlier, attempt)) earlier.push_back(attempt);
    }
    for (const RowFields& attempt : earlier) results += results_line(attempt);
    results += results_line(row.row);
  }
  out.write_file("results.csv", results);  // last: the rest is there when the rows are
}

}  // namespace

int MergeReport::exit_status() const {
  return !complete() || std::any_of(counts.begin(), counts.end(), [](const auto& count) {
    return count.second > 0 && failed(count.first);
  });
}

namespace {

// Nothing when the result changed while it was read, or rows are missing and `last` is not set.
std::optional<MergeReport> try_merge(const MergeOptions& options, bool last) {
  std::vector<std::string> directories = run_directories(options.directories);
  std::error_code ignored;
  std::erase_if(directories, [&](const std::string& directory) {
    return fs::equivalent(directory, options.out, ignored);
  });
  if (directories.empty()) throw NotYet("there is no directory to merge but the result's own");
  std::vector<Source> sources;
  for (const std::string& directory : directories)
    sources.push_back(read_source(directory, slurp(directory + "/results.csv")));
  MergeReport report;
  report.directories = directories;
  const Plan whole = whole_plan(sources);
  const std::string before = slurp(options.out + "/results.csv");
  if (is_run(options.out)) {
    sources.push_back(read_source(options.out, before));
    for (const auto& [key, rows] : sources.back().rows)
      if (!whole.cells.contains(key.second) || key.first >= whole.rounds)
        throw UserError(
            fmt::format("{}: holds rows of another sweep; choose another --out", options.out));
  }
  const auto chosen = choose_rows(sources, whole, &report.warnings);
  list_missing(sources, directories.size(), whole, chosen, &report);
  if (!report.complete() && !last) return std::nullopt;
  look_at_hardware(chosen, options, &report);
  report.asked = whole.cells.size() * static_cast<std::size_t>(whole.rounds);
  for (const auto& [key, row] : chosen) ++report.counts[status_from_name(row.row.at("status"))];
  const RunDirectory out(options.out, whole, Existing::resume, false);
  // A runner may have added rows until the directory was ours.
  if (slurp(options.out + "/results.csv") != before) return std::nullopt;
  write_out(out, sources, chosen, &report);
  return report;
}

}  // namespace

MergeReport merge_runs(const MergeOptions& options) {
  const double end = monotonic_seconds() + options.wait_s;
  while (true) {
    const bool last = monotonic_seconds() >= end;
    try {
      if (auto report = try_merge(options, last)) return *report;
    } catch (const NotYet&) {
      if (last) throw;
    }
    if (!last) usleep(500000);
  }
}

}  // namespace subquad
