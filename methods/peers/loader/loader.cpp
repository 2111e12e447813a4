// The part of a peer plugin that subquad loads. A numeric library reads its environment and picks
// its kernels when it is loaded, so what it needs to be at its best is settled first; then the
// implementation beside this file is loaded, which registers its methods.
#include <dlfcn.h>
#include <fmt/core.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "harness/core/cpu_check.h"
#include "harness/core/error.h"
#include "harness/core/plugin.h"

SUBQUAD_PLUGIN();

namespace subquad {
namespace {

void load(const std::string& path, bool needed) {
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr && needed)
    throw UserError(fmt::format("{}", dlerror()));
}

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

void start() {
  // OpenBLAS does not know newer processors and falls back to AVX2 kernels, half as fast; an
  // environment may even ask for them (OPENBLAS_CORETYPE=Haswell). Debian's torch uses AVX2 unless
  // told otherwise.
  if (has_avx512()) {
    setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
    setenv("ATEN_CPU_CAPABILITY", "avx512", 1);
  }
  unsetenv("OPENBLAS_L2_SIZE");  // detected; a wrong value moves the block sizes
  // The OpenMP build goes in first: whatever needs these names later is given this one, whichever
  // build the system prefers.
  const std::string blas = PEER_OPENBLAS_DIR;
  if (!blas.empty())
    for (const char* name : {"/libopenblas.so.0", "/libblas.so.3", "/liblapack.so.3"})
      load(blas + name, false);
  Dl_info self{};
  if (dladdr(static_cast<const void*>(subquad_stamp), &self) == 0)
    throw UserError("the directory of the peer plugin cannot be found");
  load((std::filesystem::path(self.dli_fname).parent_path() / PEER_IMPL).string(), true);
}

// An exception cannot leave a constructor that dlopen runs; the loader then finds that no method
// was registered and refuses the plugin.
const bool kStarted = [] {
  try {
    start();
    return true;
  } catch (const std::exception& error) {
    fmt::print(stderr, "subquad: peers: {}\n", error.what());
    return false;
  }
}();

}  // namespace
}  // namespace subquad
