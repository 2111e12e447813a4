#include "harness/sweep/lock.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "harness/core/error.h"
#include "harness/sweep/csv.h"
#include "harness/sweep/utc_time.h"

namespace subquad {
namespace {

// "pid P on host H since T", as the holder wrote it.
std::string holder(int fd) {
  // The holder writes its line just after it took the lock: it may be a moment late.
  for (int i = 0; i < 20; ++i) {
    char text[256];
    const ssize_t count = pread(fd, text, sizeof text, 0);
    if (count > 0 && text[count - 1] == '\n')
      return single_line(std::string_view(text, static_cast<std::size_t>(count - 1)));
    usleep(10000);
  }
  return "another process";
}

}  // namespace

DirectoryLock::DirectoryLock(int directory_fd, const std::string& directory) {
  while (true) {
    fd_ = openat(directory_fd, ".lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0)
      throw StorageError(
          fmt::format("{}/.lock: cannot be opened: {}", directory, std::strerror(errno)));
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
      const int reason = errno;
      const std::string who = reason == EWOULDBLOCK ? holder(fd_) : "";
      close(fd_);
      if (reason == EINTR) continue;
      if (reason == EWOULDBLOCK) throw LockedError(fmt::format("{}: locked by {}", directory, who));
      throw StorageError(
          fmt::format("{}/.lock: cannot be locked: {}", directory, std::strerror(reason)));
    }
    // Somebody may have removed the file between our open and our lock: then that was no lock.
    struct stat ours {
    }, named{};
    if (fstat(fd_, &ours) == 0 && fstatat(directory_fd, ".lock", &named, 0) == 0 &&
        ours.st_ino == named.st_ino)
      break;
    close(fd_);
  }
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  const std::string line = fmt::format("pid {} on host {} since {}\n", getpid(), host, utc_time());
  // For humans only: the lock holds even when the disk is too full to say whose it is.
  if (ftruncate(fd_, 0) == 0) (void)!pwrite(fd_, line.data(), line.size(), 0);
}

DirectoryLock::~DirectoryLock() {
  if (fd_ < 0) return;
  (void)!ftruncate(fd_, 0);
  close(fd_);
}

}  // namespace subquad
