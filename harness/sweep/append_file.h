// A file that only grows by whole lines.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <string>
#include <string_view>

#include "harness/core/error.h"

namespace subquad {

// The system calls whose failure has to be survived; tests put failing ones in their place.
struct FileCalls {
  std::function<ssize_t(int, const void*, std::size_t)> write = ::write;
  std::function<int(int)> fdatasync = ::fdatasync;
  std::function<int(int, off_t)> ftruncate = ::ftruncate;
  std::function<int(int)> close = ::close;
  std::function<int(useconds_t)> pause = ::usleep;  // before another try
};

enum class Durability {
  power_loss,    // every append is on the disk when it returns (fdatasync)
  process_death  // in the page cache: survives kill -9, may lose its end when the power fails
};

class AppendFile {
 public:
  // Opens `name` in the open directory `directory_fd` (`directory` is its path, for messages),
  // creating it when missing. A symbolic link is refused. StorageError when it cannot be opened.
  AppendFile(int directory_fd, const std::string& directory, const std::string& name,
             Durability durability, FileCalls calls = {});
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  const std::string& path() const { return path_; }
  std::string read() const;  // the whole content
  void truncate(off_t size);
  // Appends `lines` (ending in a newline) by one write, entirely or not at all. A failure is tried
  // again three times after short pauses; then StorageError, with the file as it was before.
  void append(std::string_view lines);
  void close();  // StorageError when the system reports a late failure

 private:
  std::string path_;
  Durability durability_;
  FileCalls calls_;
  int fd_ = -1;
  off_t size_ = 0;
};

}  // namespace subquad
