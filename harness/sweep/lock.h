// One runner per run directory.
#pragma once

#include <stdexcept>
#include <string>

namespace subquad {

// Another runner holds the directory; what() is "DIR: locked by pid P on host H since T".
struct LockedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// An flock on the file .lock of an open directory; it goes with the process, however that ends. The
// file also says who holds it. (Advisory: on a network file system that does not implement flock
// across hosts, give every host a directory of its own.)
class DirectoryLock {
 public:
  // LockedError when it is held, StorageError when the file cannot be opened.
  DirectoryLock(int directory_fd, const std::string& directory);
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  ~DirectoryLock();

 private:
  int fd_ = -1;
};

}  // namespace subquad
