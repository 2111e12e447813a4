#include "harness/measure/alloc_counter.h"

#include <dlfcn.h>
#include <fftw3.h>
#include <malloc.h>
#include <omp.h>
#include <sys/mman.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "harness/core/tensor.h"
#include "harness/measure/memory.h"

using namespace subquad;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

// Bytes that `body` adds to the live bytes, while what it returns is alive.
template <class Body>
std::int64_t live_after(Body&& body) {
  const std::int64_t before = live_bytes();
  auto kept = body();
  const std::int64_t grown = live_bytes() - before;
  static_cast<void>(kept);
  return grown;
}

bool about(std::int64_t bytes, std::size_t expected, double share = 0.001) {
  const auto wanted = static_cast<double>(expected);
  return std::abs(static_cast<double>(bytes) - wanted) <= share * wanted;
}

}  // namespace

#define SKIP_WITHOUT_HOOKS()                           \
  if (!hooks_active()) {                               \
    WARN("allocations are not counted in this build"); \
    CHECK(live_bytes() == 0);                          \
    return;                                            \
  }

TEST_CASE("every allocation function is counted and given back", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  const std::size_t size = 3 * kMiB;
  const std::int64_t start = live_bytes();
  std::vector<void*> blocks;
  const auto grows = [&](auto&& allocate, std::size_t expected) {
    const std::int64_t before = live_bytes();
    const std::uint64_t calls = alloc_calls();
    void* block = allocate();
    const std::int64_t grown = live_bytes() - before;
    const std::uint64_t called = alloc_calls() - calls;
    blocks.push_back(block);
    REQUIRE(block != nullptr);
    CHECK(about(grown, expected, 0.002));
    CHECK(called == 1);
  };
  blocks.reserve(32);
  const std::int64_t reserved = live_bytes() - start;
  grows([&] { return std::malloc(size); }, size);
  grows([&] { return std::calloc(3, kMiB); }, size);
  grows([&] { return std::realloc(nullptr, size); }, size);
  grows([&] { return reallocarray(nullptr, 3, kMiB); }, size);
  grows([&] { return memalign(4096, size); }, size);
  grows([&] { return std::aligned_alloc(64, size); }, size);
  grows([&] { return valloc(size); }, size);
  grows([&] { return pvalloc(size); }, size);
  grows(
      [&] {
        void* block = nullptr;
        return posix_memalign(&block, 128, size) == 0 ? block : nullptr;
      },
      size);
  for (void* block : blocks) std::free(block);
  CHECK(live_bytes() - start == reserved);

  grows([&] { return static_cast<void*>(new std::byte[size]); }, size);
  delete[] static_cast<std::byte*>(blocks.back());
  grows([&] { return ::operator new(size, std::align_val_t(256)); }, size);
  ::operator delete(blocks.back(), std::align_val_t(256));
  CHECK(live_bytes() - start == reserved);
}

TEST_CASE("realloc counts the difference and a failing call counts nothing", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  const std::int64_t start = live_bytes();
  void* block = std::malloc(kMiB);
  block = std::realloc(block, 5 * kMiB);
  CHECK(about(live_bytes() - start, 5 * kMiB, 0.002));
  block = std::realloc(block, 2 * kMiB);
  CHECK(about(live_bytes() - start, 2 * kMiB, 0.003));
  const std::int64_t held = live_bytes();
  volatile std::size_t impossible = std::size_t{1} << 62;
  CHECK(std::malloc(impossible) == nullptr);
  void* volatile grown = std::realloc(nullptr, impossible);
  CHECK(grown == nullptr);
  grown = reallocarray(nullptr, impossible, 8);
  CHECK(grown == nullptr);
  void* aligned = nullptr;
  CHECK(posix_memalign(&aligned, 3, 64) == EINVAL);
  CHECK(posix_memalign(&aligned, 64, impossible) == ENOMEM);
  CHECK(live_bytes() == held);
  std::free(block);
  CHECK(live_bytes() == start);
}

TEST_CASE("the peak stays until it is reset", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  reset_peak();
  const std::int64_t start = live_bytes();
  CHECK(peak_bytes() >= start);
  void* volatile large = ::operator new(8 * kMiB);  // volatile: the pair must not be elided
  ::operator delete(large);
  CHECK(about(peak_bytes() - start, 8 * kMiB, 0.01));
  reset_peak();
  CHECK(peak_bytes() - start < static_cast<std::int64_t>(kMiB));
}

TEST_CASE("anonymous mappings are counted through mmap, mremap and partial munmap", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  const std::int64_t start = live_bytes();
  const auto grown = [&] { return live_bytes() - start; };
  const auto map = [](std::size_t bytes, int protection) {
    return mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  char* region = static_cast<char*>(map(8 * kMiB, PROT_READ | PROT_WRITE));
  REQUIRE(region != MAP_FAILED);
  CHECK(grown() == 8 * kMiB);
  // A hole in the middle leaves two pieces.
  CHECK(munmap(region + 2 * kMiB, kMiB) == 0);
  CHECK(grown() == 7 * kMiB);
  CHECK(munmap(region + 2 * kMiB, kMiB) == 0);  // nothing is there any more
  CHECK(grown() == 7 * kMiB);
  void* moved = mremap(region, 2 * kMiB, 4 * kMiB, MREMAP_MAYMOVE);
  REQUIRE(moved != MAP_FAILED);
  CHECK(grown() == 9 * kMiB);
  CHECK(munmap(moved, 4 * kMiB) == 0);
  CHECK(munmap(region + 3 * kMiB, 5 * kMiB) == 0);
  CHECK(grown() == 0);
  // A reservation without access is no memory, nor is a failing call.
  void* reserved = map(kMiB, PROT_NONE);
  CHECK(grown() == 0);
  CHECK(munmap(reserved, kMiB) == 0);
  CHECK(map(0, PROT_READ) == MAP_FAILED);
  CHECK(grown() == 0);
}

TEST_CASE("shared libraries find the counted functions", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  // The search that the dynamic linker does for a library's undefined symbol.
  const std::int64_t start = live_bytes();
  const auto found_malloc = reinterpret_cast<void* (*)(std::size_t)>(dlsym(RTLD_DEFAULT, "malloc"));
  const auto found_free = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "free"));
  const auto found_mmap = reinterpret_cast<void* (*)(void*, std::size_t, int, int, int, off_t)>(
      dlsym(RTLD_DEFAULT, "mmap"));
  const auto found_munmap =
      reinterpret_cast<int (*)(void*, std::size_t)>(dlsym(RTLD_DEFAULT, "munmap"));
  REQUIRE((found_malloc && found_free && found_mmap && found_munmap));
  const std::int64_t looked_up = live_bytes() - start;
  void* block = found_malloc(kMiB);
  void* region =
      found_mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(about(live_bytes() - start - looked_up, 2 * kMiB, 0.01));
  found_free(block);
  found_munmap(region, kMiB);
  CHECK(live_bytes() - start == looked_up);
  // And a library that was not asked: the C library's own strdup.
  const std::string text(2 * kMiB, 'x');
  const std::int64_t before = live_bytes();
  char* copy = strdup(text.c_str());
  CHECK(about(live_bytes() - before, 2 * kMiB, 0.01));
  std::free(copy);
}

TEST_CASE("FFTW arrays and plans of both precisions are counted", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  const std::int64_t start = live_bytes();
  float* single = static_cast<float*>(fftwf_malloc(4 * kMiB));
  CHECK(about(live_bytes() - start, 4 * kMiB, 0.01));
  double* twice = static_cast<double*>(fftw_malloc(4 * kMiB));
  CHECK(about(live_bytes() - start, 8 * kMiB, 0.01));
  fftwf_complex* single_out = fftwf_alloc_complex(70000);
  fftw_complex* double_out = fftw_alloc_complex(70000);

  std::int64_t before = live_bytes();
  fftwf_plan plan_f = fftwf_plan_dft_r2c_1d(65521, single, single_out, FFTW_ESTIMATE);
  CHECK(live_bytes() - before > 65521 * 4);  // a prime length needs tables of its own
  before = live_bytes();
  fftw_plan plan_d = fftw_plan_dft_r2c_1d(65521, twice, double_out, FFTW_ESTIMATE);
  CHECK(live_bytes() - before > 65521 * 8);
  fftwf_destroy_plan(plan_f);
  fftw_destroy_plan(plan_d);
  fftwf_free(single);
  fftw_free(twice);
  fftwf_free(single_out);
  fftw_free(double_out);
  fftwf_cleanup();
  fftw_cleanup();
  CHECK(live_bytes() - start < 4096);
}

TEST_CASE("OpenMP allocations are counted: omp_alloc, team start and work inside a team",
          "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  const std::int64_t start = live_bytes();
  void* block = omp_alloc(2 * kMiB, omp_default_mem_alloc);
  REQUIRE(block != nullptr);
  CHECK(about(live_bytes() - start, 2 * kMiB, 0.01));
  omp_free(block, omp_default_mem_alloc);

  const std::uint64_t calls = alloc_calls();
  omp_set_num_threads(5);
#pragma omp parallel
  {}
  CHECK(alloc_calls() > calls);  // libgomp's team of a new size

  reset_peak();
  const std::int64_t before = live_bytes();
  std::vector<void*> held(4);
#pragma omp parallel for num_threads(4)
  for (int i = 0; i < 4; ++i) held[static_cast<std::size_t>(i)] = std::malloc(2 * kMiB);
  const std::int64_t peak = peak_bytes() - before;
  for (void* each : held) std::free(each);
  CHECK(peak >= static_cast<std::int64_t>(8 * kMiB));
  omp_set_num_threads(omp_get_num_procs());
}

TEST_CASE("Eigen matrices and tensors are counted", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  CHECK(about(live_after([] { return Matrix(1024, 1024); }), 4 * kMiB, 0.01));
  CHECK(about(live_after([] { return MatrixD(1024, 1024); }), 8 * kMiB, 0.01));
  CHECK(about(live_after([] { return Tensor(1, 1, 1024, 1024); }), 4 * kMiB, 0.01));
}

TEST_CASE("256 MiB read 256 MiB, in the counter and in VmHWM once touched", "[alloc][memory]") {
  const std::size_t size = 256 * kMiB;
  const std::int64_t hwm = vm_hwm_bytes(), rss = vm_rss_bytes();
  REQUIRE(hwm > 0);
  reset_peak();
  const std::int64_t start = live_bytes();
  {
    const std::unique_ptr<char[]> block(new char[size]);
    std::memset(block.get(), 1, size);
    CHECK(block[size - 1] == 1);
    if (hooks_active()) CHECK(about(live_bytes() - start, size, 0.001));
    CHECK(about(vm_rss_bytes() - rss, size, 0.05));
  }
  if (hooks_active()) CHECK(about(peak_bytes() - start, size, 0.001));
  CHECK(vm_hwm_bytes() >= std::max(hwm, rss + static_cast<std::int64_t>(0.95 * size)));
}

TEST_CASE("counting is right when many threads allocate at once", "[alloc]") {
  SKIP_WITHOUT_HOOKS();
  const auto work = [] {
    for (int i = 0; i < 2000; ++i) {
      void* block = std::malloc(static_cast<std::size_t>(100 + i));
      block = std::realloc(block, 50);
      std::free(block);
      void* region = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      munmap(region, 4096);
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(4);
  work();
  const std::int64_t start = live_bytes();
  const std::uint64_t calls = alloc_calls();
  for (int t = 0; t < 4; ++t) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  CHECK(std::abs(live_bytes() - start) < 4096);  // a thread's own bookkeeping
  CHECK(alloc_calls() - calls >= 4 * 2000 * 3);
}
