// Compiled for the baseline processor (cmake/machine.cmake) and free of templates: an inline
// function of a header could be taken from an object that was compiled for a newer one.
#include "harness/core/cpu_check.h"

#include <unistd.h>

namespace subquad {

CpuFeatures cpu_features() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has[] = {
      __builtin_cpu_supports("sse4.2") != 0,     __builtin_cpu_supports("avx") != 0,
      __builtin_cpu_supports("avx2") != 0,       __builtin_cpu_supports("fma") != 0,
      __builtin_cpu_supports("bmi") != 0,        __builtin_cpu_supports("bmi2") != 0,
      __builtin_cpu_supports("f16c") != 0,       __builtin_cpu_supports("avx512f") != 0,
      __builtin_cpu_supports("avx512bw") != 0,   __builtin_cpu_supports("avx512dq") != 0,
      __builtin_cpu_supports("avx512vl") != 0,   __builtin_cpu_supports("avx512cd") != 0,
      __builtin_cpu_supports("avx512vnni") != 0, __builtin_cpu_supports("avx512vbmi") != 0,
      __builtin_cpu_supports("avx512ifma") != 0, __builtin_cpu_supports("avx512bf16") != 0};
  CpuFeatures features = 0;
  for (int i = 0; i < kCpuFeatureCount; ++i) features |= has[i] ? 1u << i : 0u;
  return features;
#else
  return ~CpuFeatures{0};
#endif
}

bool missing_cpu_features(CpuFeatures needed, CpuFeatures available, char* text, int capacity) {
  int length = 0;
  const auto append = [&](const char* part) {
    for (; *part != '\0' && length < capacity - 1; ++part) text[length++] = *part;
  };
  for (int i = 0; i < kCpuFeatureCount; ++i) {
    if ((needed & ~available & 1u << i) == 0) continue;
    if (length > 0) append(", ");
    append(kCpuFeatureNames[i]);
  }
  text[length] = '\0';
  return length > 0;
}

namespace {

void write_text(const char* text) {
  int length = 0;
  while (text[length] != '\0') ++length;
  if (write(STDERR_FILENO, text, static_cast<unsigned long>(length)) < 0) _exit(2);
}

// Before every other constructor of the executable: registrations run in those.
__attribute__((constructor(101))) void check_cpu() {
  char missing[256];
  if (!missing_cpu_features(kCpuFeaturesBuiltFor, cpu_features(), missing, sizeof missing)) return;
  write_text("subquad: this build needs processor features that are missing here: ");
  write_text(missing);
  write_text("; build on this machine, or anywhere with SUBQUAD_PORTABLE=ON\n");
  _exit(2);
}

}  // namespace
}  // namespace subquad
