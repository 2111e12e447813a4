// The directory of one run: made, locked, compared with what is to be run, and cleaned up.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "harness/sweep/lock.h"

namespace subquad {

enum class Existing {
  same_plan,  // go on where it stopped, provided that it holds the same cells
  resume,     // go on with the new plan, whatever the directory holds
  fresh       // move it aside to DIR.old-<UTC time> and start over
};

// What identifies the cells of a run directory (plan.json).
struct Plan {
  std::set<std::string> cells;  // ids
  int rounds = 0;
  // Of a shard: which one, and the ids of the whole sweep, by which `merge` knows what is missing.
  int shard = 0, shards = 1;
  std::set<std::string> sweep = {};
  bool same_cells(const Plan& other) const;
  bool contains(const Plan& other) const;
  bool operator==(const Plan&) const = default;
};

std::string to_text(const Plan& plan);  // content of plan.json
// StorageError that names `path` when it is damaged.
Plan plan_from_text(const std::string& text, const std::string& path);

// results/<name>, or results/<name>/shard-I-of-N when there are several shards. UserError unless
// the name is [a-z0-9][a-z0-9_.-]{0,63} without "..".
std::string default_directory(const std::string& name, int shard, int shards);

class RunDirectory {
 public:
  // Creates `path` (with its parents) or opens it, locks it and settles what to do with what is
  // there. UserError when it is a symbolic link (unless follow_links), holds another plan (unless
  // `existing` says what to do), or holds something that is no run; LockedError when another runner
  // works there; StorageError when it cannot be made or written.
  RunDirectory(const std::string& path, const Plan& plan, Existing existing, bool follow_links);
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;
  ~RunDirectory();

  const std::string& path() const { return path_; }  // as given
  const std::string& absolute_path() const { return absolute_path_; }
  int fd() const { return fd_; }
  bool was_there() const { return was_there_; }              // it goes on with an earlier run
  bool plan_is_part() const { return plan_is_part_; }        // of the plan that is stored
  const std::string& moved_to() const { return moved_to_; }  // --fresh: where the old one is now

  bool has(const std::string& name) const;
  // Writes a small file entirely or not at all (a temporary name, then a rename).
  void write_file(const std::string& name, const std::string& content) const;
  std::string read_file(const std::string& name) const;  // StorageError when it cannot be read

  std::string cache_directory() const;  // absolute path of .cache/, made when missing
  void remove_cache() const;
  double free_bytes() const;  // on its file system, for an unprivileged user

 private:
  void open(bool follow_links);
  void move_aside();

  std::string path_, absolute_path_, moved_to_;
  int fd_ = -1;
  std::unique_ptr<DirectoryLock> lock_;
  bool was_there_ = false, plan_is_part_ = false;
};

}  // namespace subquad
