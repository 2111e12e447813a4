// A sweep as a Slurm job array: one task per shard, and a job that merges them. Only options that
// Slurm 22.05 has.
#pragma once

#include <string>
#include <vector>

namespace subquad {

struct SlurmJob {
  std::string name;               // of the sweep
  std::string program;            // absolute path of subquad
  std::string working_directory;  // absolute: paths in a config are relative to it
  std::string config;             // absolute path of the resolved config
  std::string directory;          // absolute: holds shard-I-of-N, log/, merged/
  std::vector<std::string> filters;
  int shards = 1;
  int at_once = 0;          // tasks that may run together; 0 = as many as fit
  int cpus = 1;             // processors of a task
  bool exclusive = true;    // a node of its own; else `cpus` processors of one, bound to them
  double memory_bytes = 0;  // of a task, without margin
  int limit_s = 3600;       // wall time
  int warning_s = 120;      // TERM comes so long before the limit
  bool mixed_hardware = false;
  std::vector<std::string> options;  // further ones of sbatch, such as --partition=fast
};

std::string array_script(const SlurmJob& job);
std::string merge_script(const SlurmJob& job);

// Memory with a margin, in whole MiB, as --mem takes it.
std::string slurm_memory(double bytes);
// "1-02:03:04"
std::string slurm_time(int seconds);
// "2:30:00", "90" (minutes), "1-00:00:00" -> seconds. UserError for anything else.
int seconds_of_slurm_time(const std::string& text);

}  // namespace subquad
