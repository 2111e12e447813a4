// What `plan`, `run --dry-run` and `submit` share.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "harness/sweep/config.h"
#include "harness/sweep/estimate.h"

namespace subquad {

// The config with the cells that match every filter.
Config load_filtered(const std::string& path, const std::vector<std::string>& settings,
                     const std::vector<std::string>& plugins,
                     const std::vector<std::string>& filters);

// Estimates from the results in these directories, where they have some.
Estimator estimator_from(const std::vector<std::string>& directories);

// What a shard adds up to by estimate: all rounds, every exact reference once.
struct Load {
  std::size_t cells = 0;
  double seconds = 0;      // wall time, one cell after the other
  double bytes = 0;        // the largest worker
  double limit_bytes = 0;  // the largest memory limit of a worker, 0 = none has one
  int threads = 1;         // of any cell
  std::set<std::string> references;
};
// By shard.
std::vector<Load> loads_of(const Config& config, const Estimator& estimator, int shards);

// Keeps the cells of one shard and notes which whole they are a part of.
void take_shard(Config* config, int shard, int shards);

// The cells with their estimates on stdout, and what they add up to. `shards` > 1: also the shard
// of every cell, and what each shard adds up to.
void print_plan(const Config& config, const Estimator& estimator, int shards = 1);

}  // namespace subquad
