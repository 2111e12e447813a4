// Does this processor have the instructions that the build uses? Checked before any other code of
// the executable runs; otherwise a build made elsewhere would die of SIGILL without a word.
#pragma once

namespace subquad {

using CpuFeatures = unsigned;  // one bit for each name of kCpuFeatureNames

inline constexpr const char* kCpuFeatureNames[] = {
    "sse4.2",     "avx",        "avx2",       "fma",       "bmi",      "bmi2",
    "f16c",       "avx512f",    "avx512bw",   "avx512dq",  "avx512vl", "avx512cd",
    "avx512vnni", "avx512vbmi", "avx512ifma", "avx512bf16"};
inline constexpr int kCpuFeatureCount = sizeof kCpuFeatureNames / sizeof *kCpuFeatureNames;

extern const CpuFeatures kCpuFeaturesBuiltFor;  // what the compiler was allowed to use
CpuFeatures cpu_features();                     // what this processor has

// Writes the names of needed features that are not available, separated by ", ", cut to the buffer.
// Returns false (and an empty text) when nothing is missing. Plain loops: it runs before all else.
bool missing_cpu_features(CpuFeatures needed, CpuFeatures available, char* text, int capacity);

}  // namespace subquad
