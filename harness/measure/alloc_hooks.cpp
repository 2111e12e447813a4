// Replaces the allocation functions of the process and counts what passes (see alloc_counter.h).
//
// The definitions live in the executable, which the dynamic linker searches first: calls from
// shared libraries arrive here too. They forward to glibc's own entry points and to raw system
// calls, hold no thread-local state and allocate nothing, so they work from the first allocation
// of the dynamic linker on. glibc's internal mmap (large blocks, thread stacks) does not pass here:
// a large malloc is counted once.

#include <features.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define SUBQUAD_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SUBQUAD_SANITIZED
#endif

#if defined(__GLIBC__) && !defined(SUBQUAD_SANITIZED)

#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>

#include "harness/measure/alloc_counter.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
}

namespace {

using subquad::detail::count_alloc;
using subquad::detail::count_free;
using subquad::detail::count_resize;

void* counted(void* block) noexcept {
  if (block != nullptr) count_alloc(malloc_usable_size(block));
  return block;
}

bool power_of_two(size_t x) { return x != 0 && (x & (x - 1)) == 0; }

// The live anonymous mappings: munmap says neither what a range was nor whether it was counted.
// A fixed table; what does not fit is not counted.
class Mappings {
 public:
  void add(std::uintptr_t start, size_t length) noexcept {
    const Lock lock(busy_);
    if (insert(start, length)) count_alloc(length);
  }
  // Forgets whatever of [start, start + length) was counted; returns those bytes.
  size_t remove(std::uintptr_t start, size_t length) noexcept {
    if (used_.load(std::memory_order_relaxed) == 0) return 0;
    const Lock lock(busy_);
    const std::uintptr_t end = start + length;
    size_t removed = 0;
    for (size_t i = 0; i < used_.load(std::memory_order_relaxed);) {
      const Range range = ranges_[i];
      const std::uintptr_t low = std::max(start, range.start), high = std::min(end, range.end);
      if (low >= high) {
        ++i;
        continue;
      }
      removed += high - low;
      const size_t last = used_.load(std::memory_order_relaxed) - 1;
      ranges_[i] = ranges_[last];
      used_.store(last, std::memory_order_relaxed);
      // What is left of the range on either side stays; both sides lie outside [start, end).
      if (range.start < low) insert(range.start, low - range.start);
      if (high < range.end) insert(high, range.end - high);
    }
    return removed;
  }

 private:
  struct Range {
    std::uintptr_t start, end;
  };
  struct Lock {
    explicit Lock(std::atomic_flag& flag) noexcept : flag_(flag) {
      while (flag_.test_and_set(std::memory_order_acquire)) {
      }
    }
    ~Lock() { flag_.clear(std::memory_order_release); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    std::atomic_flag& flag_;
  };

  bool insert(std::uintptr_t start, size_t length) noexcept {
    const size_t used = used_.load(std::memory_order_relaxed);
    if (used == kCapacity) return false;
    ranges_[used] = {start, start + length};
    used_.store(used + 1, std::memory_order_relaxed);
    return true;
  }

  static constexpr size_t kCapacity = 4096;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
  std::atomic<size_t> used_{0};
  Range ranges_[kCapacity] = {};
};

constinit Mappings mappings;

size_t whole_pages(size_t length) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (length + page - 1) / page * page;
}

std::uintptr_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

void* map(void* at, size_t length, int protection, int flags, int file, off_t offset) noexcept {
  void* const start =
      reinterpret_cast<void*>(syscall(SYS_mmap, at, length, protection, flags, file, offset));
  if (start == MAP_FAILED) return start;
  if ((flags & MAP_FIXED) != 0) count_free(mappings.remove(address(start), whole_pages(length)));
  // A range without access is a reservation, not memory.
  if ((flags & MAP_ANONYMOUS) != 0 && protection != PROT_NONE)
    mappings.add(address(start), whole_pages(length));
  return start;
}

}  // namespace

extern "C" {

void* malloc(size_t size) noexcept { return counted(__libc_malloc(size)); }

void* calloc(size_t count, size_t size) noexcept { return counted(__libc_calloc(count, size)); }

void* realloc(void* old, size_t size) noexcept {
  if (old == nullptr) return counted(__libc_realloc(old, size));
  const size_t before = malloc_usable_size(old);
  void* const block = __libc_realloc(old, size);
  if (block != nullptr) {
    count_resize(before, malloc_usable_size(block));
  } else if (size == 0) {
    count_free(before);
  }
  return block;
}

void* reallocarray(void* old, size_t count, size_t size) noexcept {
  size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    errno = ENOMEM;
    return nullptr;
  }
  return realloc(old, bytes);
}

void free(void* block) noexcept {
  if (block == nullptr) return;
  count_free(malloc_usable_size(block));
  __libc_free(block);
}

void* memalign(size_t alignment, size_t size) noexcept {
  return counted(__libc_memalign(alignment, size));
}

void* aligned_alloc(size_t alignment, size_t size) noexcept {
  return counted(__libc_memalign(alignment, size));
}

int posix_memalign(void** block, size_t alignment, size_t size) noexcept {
  if (!power_of_two(alignment) || alignment % sizeof(void*) != 0) return EINVAL;
  void* const memory = counted(__libc_memalign(alignment, size));
  if (memory == nullptr) return ENOMEM;
  *block = memory;
  return 0;
}

void* valloc(size_t size) noexcept {
  return counted(__libc_memalign(static_cast<size_t>(sysconf(_SC_PAGESIZE)), size));
}

void* pvalloc(size_t size) noexcept { return valloc(whole_pages(size)); }

void* mmap(void* at, size_t length, int protection, int flags, int file, off_t offset) noexcept {
  return map(at, length, protection, flags, file, offset);
}

void* mmap64(void* at, size_t length, int protection, int flags, int file,
             off64_t offset) noexcept {
  return map(at, length, protection, flags, file, offset);
}

int munmap(void* start, size_t length) noexcept {
  // Forgotten before it is gone: another thread may be given the same addresses at once.
  const size_t removed = mappings.remove(address(start), whole_pages(length));
  const long result = syscall(SYS_munmap, start, length);
  if (result == 0) {
    count_free(removed);
  } else if (removed != 0) {
    count_free(removed);
    mappings.add(address(start), removed);
  }
  return static_cast<int>(result);
}

void* mremap(void* old, size_t old_length, size_t length, int flags, ...) noexcept {
  void* target = nullptr;
  if ((flags & MREMAP_FIXED) != 0) {
    va_list rest;
    va_start(rest, flags);
    target = va_arg(rest, void*);
    va_end(rest);
  }
  void* const start =
      reinterpret_cast<void*>(syscall(SYS_mremap, old, old_length, length, flags, target));
  if (start == MAP_FAILED) return start;
  const size_t removed = mappings.remove(address(old), whole_pages(old_length));
  count_free(removed);
  if (target != nullptr) count_free(mappings.remove(address(start), whole_pages(length)));
  if (removed != 0) mappings.add(address(start), whole_pages(length));
  return start;
}

}  // extern "C"

#endif
