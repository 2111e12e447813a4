#include "harness/sweep/slurm.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "harness/core/error.h"
#include "harness/sweep/runner.h"

namespace subquad {
namespace {

// An #SBATCH line ends at its newline and knows no quotes of the shell but plain double ones.
std::string directive_value(const std::string& text) {
  if (text.find_first_of("\"\n\\") != std::string::npos)
    throw UserError(
        fmt::format("{}: quotes, backslashes and newlines cannot stand in a batch file", text));
  return text.find(' ') == std::string::npos ? text : "\"" + text + "\"";
}

// A % in the name of a log file is a pattern of Slurm's.
std::string log_name(const std::string& directory, const std::string& pattern) {
  std::string path;
  for (const char c : directory) path += c == '%' ? std::string("%%") : std::string(1, c);
  return directive_value(path + "/log/" + pattern);
}

std::string common(const SlurmJob& job) {
  std::string text = fmt::format("#SBATCH --chdir={}\n", directive_value(job.working_directory));
  for (const std::string& option : job.options) {
    if (!option.starts_with("-") || option.find('\n') != std::string::npos)
      throw UserError(
          fmt::format("--sbatch: got \"{}\", expected an option of sbatch, for example "
                      "--partition=fast",
                      option));
    text += fmt::format("#SBATCH {}\n", option);
  }
  return text;
}

}  // namespace

std::string slurm_memory(double bytes) {
  constexpr double kMiB = 1 << 20, kRunner = 64 * kMiB;
  constexpr double kMargin = 1.25;  // the estimate is one
  return fmt::format("{:.0f}M", std::ceil((kMargin * bytes + kRunner) / kMiB));
}

std::string slurm_time(int seconds) {
  const std::string clock =
      fmt::format("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
  return seconds < 86400 ? clock : fmt::format("{}-{}", seconds / 86400, clock);
}

int seconds_of_slurm_time(const std::string& text) {
  int days = 0, hours = 0, minutes = 0, seconds = 0, used = 0;
  const auto whole = [&] { return static_cast<std::size_t>(used) == text.size(); };
  const char* const t = text.c_str();
  if ((std::sscanf(t, "%4d-%2d:%2d:%2d%n", &days, &hours, &minutes, &seconds, &used) == 4 &&
       whole()) ||
      (days = 0,
       std::sscanf(t, "%4d:%2d:%2d%n", &hours, &minutes, &seconds, &used) == 3 && whole()) ||
      (hours = seconds = 0, std::sscanf(t, "%6d%n", &minutes, &used) == 1 && whole())) {
    const int total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
    if (total > 0 && minutes >= 0 && seconds >= 0 && hours >= 0 && days >= 0) return total;
  }
  throw UserError(fmt::format("--time: got \"{}\", expected minutes, H:MM:SS or D-HH:MM:SS", text));
}

std::string array_script(const SlurmJob& job) {
  std::string s = "#!/bin/bash\n";
  s += fmt::format(
      "# The sweep {} in {} shards, one array task each; each writes only into its own directory\n"
      "# and goes on where it stopped. Written by `subquad submit`; may be edited.\n"
      "#   all:               sbatch {}\n"
      "#   shard 2 once more: sbatch --array=2 {}\n",
      job.name, job.shards, shell_word(job.directory + "/submit/array.sbatch"),
      shell_word(job.directory + "/submit/array.sbatch"));
  s += fmt::format("#SBATCH --job-name=subquad-{}\n", job.name);
  s += fmt::format("#SBATCH --array=0-{}{}\n", job.shards - 1,
                   job.at_once > 0 ? fmt::format("%{}", job.at_once) : "");
  s += "#SBATCH --nodes=1\n#SBATCH --ntasks=1\n";
  s += fmt::format("#SBATCH --cpus-per-task={}\n", job.cpus);
  if (job.exclusive)
    s += "# Times are taken: nobody else on the node.\n#SBATCH --exclusive\n";
  else
    s += "# Bound to processors of its own; other jobs may run on the node's others.\n"
         "#SBATCH --hint=nomultithread\n";
  s += fmt::format("#SBATCH --mem={}\n", slurm_memory(job.memory_bytes));
  s += fmt::format("#SBATCH --time={}\n", slurm_time(job.limit_s));
  s += fmt::format(
      "# TERM to the runner {} s before the limit: it notes the cell that runs as interrupted.\n"
      "#SBATCH --signal=B:TERM@{}\n",
      job.warning_s, job.warning_s);
  s += "# After a preemption or a node's failure the task starts again and does the rest.\n"
       "#SBATCH --requeue\n#SBATCH --open-mode=append\n";
  s += fmt::format("#SBATCH --output={}\n", log_name(job.directory, "%A_%a.log"));
  s += common(job);
  s += fmt::format(
      "\nshard=$SLURM_ARRAY_TASK_ID\n"
      "echo \"shard $shard of {}, job $SLURM_JOB_ID on $(hostname), start number "
      "$((${{SLURM_RESTART_COUNT:-0}} + 1))\"\n"
      "# exec: the runner itself is the batch process and gets the signals at once.\n"
      "exec {} run {} \\\n  --shard \"$shard/{}\" --out {}\"/shard-$shard-of-{}\" \\\n"
      "  --no-plots --yes",
      job.shards, shell_word(job.program), shell_word(job.config), job.shards,
      shell_word(job.directory), job.shards);
  for (const std::string& filter : job.filters)
    s += fmt::format(" --filter {}", shell_word(filter));
  return s + "\n";
}

std::string merge_script(const SlurmJob& job) {
  std::string s = "#!/bin/bash\n";
  s += "# Joins the shards' directories when all tasks of the array have ended, and says what is\n"
       "# missing. Written by `subquad submit`, which adds --dependency=afterany:<array job>.\n";
  s += fmt::format("#SBATCH --job-name=subquad-{}-merge\n", job.name);
  s += "#SBATCH --nodes=1\n#SBATCH --ntasks=1\n#SBATCH --cpus-per-task=1\n#SBATCH --mem=512M\n"
       "#SBATCH --time=00:15:00\n#SBATCH --requeue\n#SBATCH --open-mode=append\n";
  s += fmt::format("#SBATCH --output={}\n", log_name(job.directory, "merge_%j.log"));
  s += common(job);
  s += fmt::format(
      "\n# Shards of this number only: another submission may have left some beside them.\n"
      "# --wait: the last rows of another node may be late on a shared file system.\n"
      "exec {} merge {}/shard-*-of-{} --out {} --wait 30{}\n",
      shell_word(job.program), shell_word(job.directory), job.shards,
      shell_word(job.directory + "/merged"), job.mixed_hardware ? " --mixed-hardware" : "");
  return s;
}

}  // namespace subquad
