// What `plan`, `run --dry-run` and `submit` share.
#pragma once

#include "harness/sweep/config.h"
#include "harness/sweep/estimate.h"

namespace subquad {

// Keeps the cells of one shard and notes which whole they are a part of.
void take_shard(Config* config, int shard, int shards);

// The cells with their estimates on stdout, and what they add up to. `shards` > 1: also the shard
// of every cell, and what each shard adds up to.
void print_plan(const Config& config, const Estimator& estimator, int shards = 1);

}  // namespace subquad
