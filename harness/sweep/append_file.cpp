#include "harness/sweep/append_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>

namespace subquad {

AppendFile::AppendFile(int directory_fd, const std::string& directory, const std::string& name,
                       Durability durability, FileCalls calls)
    : path_(directory + "/" + name), durability_(durability), calls_(std::move(calls)) {
  fd_ = openat(directory_fd, name.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW,
               0644);
  if (fd_ < 0)
    throw StorageError(fmt::format(
        "{}: cannot be opened: {}", path_,
        errno == ELOOP ? "it is a symbolic link, expected a file" : std::strerror(errno)));
  struct stat status {};
  if (fstat(fd_, &status) != 0)
    throw StorageError(fmt::format("{}: fstat failed: {}", path_, std::strerror(errno)));
  size_ = status.st_size;
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) calls_.close(fd_);
}

std::string AppendFile::read() const {
  std::string content;
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = pread(fd_, buffer, sizeof buffer, static_cast<off_t>(content.size()));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      throw StorageError(fmt::format("{}: cannot be read: {}", path_, std::strerror(errno)));
    if (count == 0) return content;
    content.append(buffer, static_cast<std::size_t>(count));
  }
}

void AppendFile::truncate(off_t size) {
  if (calls_.ftruncate(fd_, size) != 0)
    throw StorageError(fmt::format("{}: cannot be cut: {}", path_, std::strerror(errno)));
  size_ = size;
}

void AppendFile::append(std::string_view lines) {
  constexpr useconds_t kPauses[] = {20000, 100000, 400000};
  std::string failure;
  for (int attempt = 0; attempt <= 3; ++attempt) {
    if (attempt > 0) calls_.pause(kPauses[attempt - 1]);
    const ssize_t written = calls_.write(fd_, lines.data(), lines.size());
    if (written == static_cast<ssize_t>(lines.size())) {
      if (durability_ == Durability::process_death || calls_.fdatasync(fd_) == 0) {
        size_ += written;
        return;
      }
      failure = fmt::format("fdatasync failed: {}", std::strerror(errno));
    } else if (written < 0) {
      failure = fmt::format("write failed: {}", std::strerror(errno));
    } else {
      failure = fmt::format("only {} of {} bytes were written, as when the disk is full", written,
                            lines.size());
    }
    // Nothing of a failed append may stay: the next one would be glued to it. After a failed
    // fdatasync the pages may be gone, so the line is written anew.
    if (written > 0 && calls_.ftruncate(fd_, size_) != 0) {
      failure += fmt::format(", and cutting it off again failed: {}", std::strerror(errno));
      break;
    }
  }
  throw StorageError(fmt::format("{}: {}", path_, failure));
}

void AppendFile::close() {
  const int fd = fd_;
  fd_ = -1;
  if (fd >= 0 && calls_.close(fd) != 0)
    throw StorageError(fmt::format("{}: close failed: {}", path_, std::strerror(errno)));
}

}  // namespace subquad
