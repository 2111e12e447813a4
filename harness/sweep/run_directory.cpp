#include "harness/sweep/run_directory.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "harness/core/error.h"
#include "harness/core/printable.h"
#include "harness/sweep/utc_time.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;

// Whether a directory holds nothing but what a runner makes before its plan is stored.
bool holds_nothing(const std::string& path) {
  for (const fs::directory_entry& entry : fs::directory_iterator(path))
    if (entry.path().filename() != ".lock" && entry.path().filename() != ".new") return false;
  return true;
}

}  // namespace

std::string default_directory(const std::string& name, int shard, int shards) {
  constexpr const char* kLetters = "abcdefghijklmnopqrstuvwxyz0123456789";
  if (name.empty() || name.size() > 64 || std::strchr(kLetters, name[0]) == nullptr ||
      name.find_first_not_of(std::string(kLetters) + "_.-") != std::string::npos ||
      name.find("..") != std::string::npos)
    throw UserError(
        fmt::format("name: got \"{}\", expected [a-z0-9][a-z0-9_.-]{{0,63}} without \"..\"", name));
  return shards == 1 ? "results/" + name
                     : fmt::format("results/{}/shard-{}-of-{}", name, shard, shards);
}

std::string to_text(const Plan& plan) {
  nlohmann::json json{{"cells", plan.cells}, {"rounds", plan.rounds}};
  if (plan.shards > 1) {
    json["shard"] = plan.shard;
    json["shards"] = plan.shards;
    json["sweep"] = plan.sweep;
  }
  return json.dump(1) + "\n";
}

Plan plan_from_text(const std::string& text, const std::string& path) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    Plan plan;
    json.at("cells").get_to(plan.cells);
    json.at("rounds").get_to(plan.rounds);
    if (json.contains("shards")) {
      json.at("shard").get_to(plan.shard);
      json.at("shards").get_to(plan.shards);
      json.at("sweep").get_to(plan.sweep);
    }
    return plan;
  } catch (const nlohmann::json::exception& error) {
    throw StorageError(
        fmt::format("{}: damaged: {}; --fresh starts over", path, printable(error.what())));
  }
}

bool Plan::same_cells(const Plan& other) const {
  return rounds == other.rounds && cells == other.cells;
}

bool Plan::contains(const Plan& other) const {
  return other.rounds <= rounds &&
         std::includes(cells.begin(), cells.end(), other.cells.begin(), other.cells.end());
}

RunDirectory::RunDirectory(const std::string& path, const Plan& plan, Existing existing,
                           bool follow_links)
    : path_(path) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  open(follow_links);
  try {
    if (!has("plan.json") && !has("results.csv")) {
      if (!holds_nothing(path_))
        throw UserError(fmt::format(
            "{}: there are files in it, but not those of a run; choose another --out", path_));
    } else if (existing == Existing::fresh) {
      move_aside();
      open(follow_links);
    } else {
      was_there_ = true;
      const bool known = has("plan.json");
      const Plan stored =
          known ? plan_from_text(read_file("plan.json"), path_ + "/plan.json") : Plan{};
      plan_is_part_ = stored.contains(plan) && !stored.same_cells(plan);
      if (!stored.contains(plan) && existing != Existing::resume)
        throw UserError(fmt::format(
            "{}: holds another run ({} cells x {} rounds, {}); --fresh moves it aside, --resume "
            "continues it with this config, --out writes elsewhere",
            path_, stored.cells.size(), stored.rounds,
            known ? "not those of this config" : "its plan.json is missing"));
    }
    if (!plan_is_part_) write_file("plan.json", to_text(plan));
  } catch (...) {
    lock_.reset();
    close(fd_);
    throw;
  }
}

RunDirectory::~RunDirectory() {
  lock_.reset();
  if (fd_ >= 0) close(fd_);
}

void RunDirectory::open(bool follow_links) {
  std::error_code error;
  if (!follow_links && fs::is_symlink(path_, error))
    throw UserError(fmt::format(
        "{}: is a symbolic link; --follow writes where it points to, --out elsewhere", path_));
  while (true) {
    fs::create_directories(path_, error);
    if (error && !fs::is_directory(path_))
      throw StorageError(fmt::format("{}: cannot be made: {}", path_, error.message()));
    fd_ =
        ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | (follow_links ? 0 : O_NOFOLLOW));
    if (fd_ < 0 && errno == ENOENT) continue;  // moved aside by another runner just now
    if (fd_ < 0)
      throw StorageError(fmt::format("{}: cannot be opened: {}", path_, std::strerror(errno)));
    try {
      lock_ = std::make_unique<DirectoryLock>(fd_, path_);
    } catch (...) {
      close(fd_);
      fd_ = -1;
      throw;
    }
    // Another runner may have moved the directory aside between our open and our lock.
    struct stat ours {
    }, named{};
    if (fstat(fd_, &ours) == 0 && stat(path_.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
        ours.st_dev == named.st_dev)
      break;
    lock_.reset();
    close(fd_);
  }
  absolute_path_ = fs::absolute(path_).string();
}

void RunDirectory::move_aside() {
  const std::string target = path_ + ".old-" + utc_time_compact();
  moved_to_ = target;
  for (int i = 2; fs::exists(fs::symlink_status(moved_to_)); ++i)
    moved_to_ = fmt::format("{}-{}", target, i);
  if (rename(path_.c_str(), moved_to_.c_str()) != 0)
    throw StorageError(
        fmt::format("{}: cannot be moved to {}: {}", path_, moved_to_, std::strerror(errno)));
  lock_.reset();
  close(fd_);
  fd_ = -1;
}

bool RunDirectory::has(const std::string& name) const {
  struct stat status {};
  return fstatat(fd_, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0;
}

void RunDirectory::write_file(const std::string& name, const std::string& content) const {
  const auto failed = [&](const char* what) {
    return StorageError(fmt::format("{}/{}: {}: {}", path_, name, what, std::strerror(errno)));
  };
  unlinkat(fd_, ".new", 0);
  const int file = openat(fd_, ".new", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (file < 0) throw failed("cannot be written");
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = write(file, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;
    done += static_cast<std::size_t>(count);
  }
  const bool written = done == content.size() && fdatasync(file) == 0;
  const int reason = errno;
  const bool closed = close(file) == 0;
  if (!written) errno = reason;
  if (!written || !closed) throw failed("cannot be written");
  if (renameat(fd_, ".new", fd_, name.c_str()) != 0) throw failed("cannot be renamed to");
}

std::string RunDirectory::read_file(const std::string& name) const {
  const auto failed = [&] {
    return StorageError(
        fmt::format("{}/{}: cannot be read: {}", path_, name, std::strerror(errno)));
  };
  const int file = openat(fd_, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) throw failed();
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = read(file, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int reason = errno;
      close(file);
      errno = reason;
      throw failed();
    }
    if (count == 0) break;
    content.append(buffer, static_cast<std::size_t>(count));
  }
  close(file);
  return content;
}

std::string RunDirectory::cache_directory() const {
  if (mkdirat(fd_, ".cache", 0755) != 0 && errno != EEXIST)
    throw StorageError(fmt::format("{}/.cache: cannot be made: {}", path_, std::strerror(errno)));
  return absolute_path_ + "/.cache";
}

void RunDirectory::remove_cache() const {
  std::error_code ignored;  // what stays behind is only disk space
  fs::remove_all(absolute_path_ + "/.cache", ignored);
}

double RunDirectory::free_bytes() const {
  struct statvfs status {};
  if (fstatvfs(fd_, &status) != 0)
    throw StorageError(fmt::format("{}: fstatvfs failed: {}", path_, std::strerror(errno)));
  return static_cast<double>(status.f_bavail) * static_cast<double>(status.f_frsize);
}

}  // namespace subquad
