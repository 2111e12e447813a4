#include "harness/measure/machine.h"

#include <elf.h>
#include <fftw3.h>
#include <fmt/format.h>
#include <gnu/libc-version.h>
#include <link.h>
#include <omp.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <CLI/Version.hpp>
#include <Eigen/Core>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "harness/core/cpu_check.h"

namespace subquad {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// First line of a file without its newline; "" when it cannot be read: much of /sys is missing in
// virtual machines and containers.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

json text_or_null(const std::string& text) { return text.empty() ? json() : json(text); }

// The text behind "key   :" in a file such as /proc/cpuinfo; "" when there is none.
std::string field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    if (line.find_first_not_of(" \t", key.size()) != colon) continue;
    const std::size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? "" : line.substr(start);
  }
  return "";
}

std::int64_t kilobytes(const std::string& key) {  // of /proc/meminfo, in bytes
  return std::strtoll(field("/proc/meminfo", key).c_str(), nullptr, 10) * 1024;
}

// "[always] madvise never" -> "always"
std::string chosen(const std::string& line) {
  const std::size_t open = line.find('['), close = line.find(']');
  return open == std::string::npos || close == std::string::npos || close < open
             ? line
             : line.substr(open + 1, close - open - 1);
}

bool has_word(const std::string& text, const std::string& word) {
  std::istringstream words(text);
  for (std::string w; words >> w;)
    if (w == word) return true;
  return false;
}

json caches() {
  json list = json::array();
  for (int i = 0; i < 16; ++i) {
    const std::string dir = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", i);
    const std::string size = first_line(dir + "size");
    if (size.empty()) break;
    char* end = nullptr;
    std::int64_t bytes = std::strtoll(size.c_str(), &end, 10);
    bytes *= *end == 'K' ? 1024 : *end == 'M' ? 1024 * 1024 : 1;
    list.push_back({{"level", std::atoi(first_line(dir + "level").c_str())},
                    {"type", first_line(dir + "type")},
                    {"bytes", bytes},
                    {"line_bytes", std::atoi(first_line(dir + "coherency_line_size").c_str())},
                    {"shared_with", first_line(dir + "shared_cpu_list")}});
  }
  return list;
}

// Physical cores and sockets among the online processors; 0 when /sys does not say.
std::pair<int, int> cores_and_sockets() {
  std::set<std::string> cores, sockets;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/sys/devices/system/cpu", error)) {
    const std::string topology = entry.path().string() + "/topology/";
    const std::string socket = first_line(topology + "physical_package_id");
    if (socket.empty()) continue;
    sockets.insert(socket);
    cores.insert(socket + ":" + first_line(topology + "core_id"));
  }
  return {static_cast<int>(cores.size()), static_cast<int>(sockets.size())};
}

std::vector<int> affinity() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> list;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return list;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) list.push_back(i);
  return list;
}

// "on", "off", or "" when the system does not say.
std::string turbo() {
  const std::string cpu = "/sys/devices/system/cpu/";
  const std::string boost = first_line(cpu + "cpufreq/boost");
  if (!boost.empty()) return boost == "1" ? "on" : "off";
  const std::string no_turbo = first_line(cpu + "intel_pstate/no_turbo");
  return no_turbo.empty() ? "" : no_turbo == "0" ? "on" : "off";
}

json cpu() {
  const std::string flags = field("/proc/cpuinfo", "flags");
  const std::string freq = "/sys/devices/system/cpu/cpu0/cpufreq/";
  const auto [cores, sockets] = cores_and_sockets();
  json features = json::array();
  for (int i = 0; i < kCpuFeatureCount; ++i)
    if ((cpu_features() >> i & 1) != 0) features.push_back(kCpuFeatureNames[i]);
  return {{"model", cpu_model()},
          {"logical", sysconf(_SC_NPROCESSORS_ONLN)},
          {"cores", cores},
          {"sockets", sockets},
          {"smt", text_or_null(first_line("/sys/devices/system/cpu/smt/active"))},
          {"affinity", affinity()},
          {"features", features},
          {"caches", caches()},
          {"mhz", std::strtod(field("/proc/cpuinfo", "cpu MHz").c_str(), nullptr)},
          {"governor", text_or_null(first_line(freq + "scaling_governor"))},
          {"frequency_driver", text_or_null(first_line(freq + "scaling_driver"))},
          {"turbo", text_or_null(turbo())},
          {"microcode", text_or_null(field("/proc/cpuinfo", "microcode"))},
          {"hypervisor", has_word(flags, "hypervisor")}};
}

json memory() {
  int nodes = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/sys/devices/system/node", error)) {
    const std::string node = entry.path().filename().string();
    nodes += node.starts_with("node") && node.size() > 4 && node[4] >= '0' && node[4] <= '9';
  }
  const std::string thp = "/sys/kernel/mm/transparent_hugepage/enabled";
  return {{"total_bytes", kilobytes("MemTotal")},
          {"available_bytes", kilobytes("MemAvailable")},
          {"swap_bytes", kilobytes("SwapTotal")},
          {"numa_nodes", nodes},
          {"transparent_huge_pages", text_or_null(chosen(first_line(thp)))}};
}

json system_json() {
  utsname names{};
  uname(&names);
  std::string os = "unknown";
  std::ifstream release("/etc/os-release");
  for (std::string line; std::getline(release, line);)
    if (line.starts_with("PRETTY_NAME=")) {
      os = line.substr(12);
      std::erase(os, '"');
    }
  return {
      {"host", host_name()},
      {"os", os},
      {"kernel", fmt::format("{} {}", names.sysname, names.release)},
      {"architecture", names.machine},
      {"address_randomisation", text_or_null(first_line("/proc/sys/kernel/randomize_va_space"))}};
}

// Git commit that was built, written beside the executable by the build (cmake/revision.cmake).
std::string revision() {
  std::error_code error;
  const fs::path dir = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const char* place : {"revision.txt", "../revision.txt", "../share/subquad/revision.txt"}) {
    const std::string line = first_line((dir / place).string());
    if (!line.empty()) return line;
  }
  return "unknown";
}

json build() {
  json used = json::array();
  for (int i = 0; i < kCpuFeatureCount; ++i)
    if ((kCpuFeaturesBuiltFor >> i & 1) != 0) used.push_back(kCpuFeatureNames[i]);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  const bool sanitized = true;
#else
  const bool sanitized = false;
#endif
  return {{"type", SUBQUAD_BUILD_TYPE},
          {"compiler", "g++ " __VERSION__},
          {"flags", SUBQUAD_CXX_FLAGS},
          {"uses", used},
          {"eigen_simd", Eigen::SimdInstructionSetsInUse()},
          {"eigen_align_bytes", EIGEN_MAX_ALIGN_BYTES},
          {"sanitized", sanitized},
          {"build_id", build_id()},
          {"git_revision", revision()}};
}

json libraries() {
  return {{"eigen",
           fmt::format("{}.{}.{}", EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION)},
          {"fftw", std::string(fftwf_version).substr(sizeof "fftw-" - 1)},
          {"fmt", fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100,
                              FMT_VERSION % 100)},
          {"yaml_cpp", SUBQUAD_YAML_CPP_VERSION},
          {"benchmark", SUBQUAD_BENCHMARK_VERSION},
          {"nlohmann_json", fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                        NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH)},
          {"cli11", CLI11_VERSION},
          {"openmp", std::to_string(_OPENMP)},
          {"glibc", gnu_get_libc_version()}};
}

json threads() {
  json environment = json::object();
  for (const char* name : {"OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY",
                           "GOMP_CPU_AFFINITY", "OMP_DYNAMIC"})
    if (const char* value = std::getenv(name)) environment[name] = value;
  return {{"openmp_max", omp_get_max_threads()},
          {"openmp_bind", static_cast<int>(omp_get_proc_bind())},
          {"environment", environment}};
}

std::uint64_t fnv1a(std::string_view bytes, std::uint64_t hash = 0xcbf29ce484222325u) {
  for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// The linker's build id of the running executable: a hash over its contents, already in memory.
std::string linker_build_id() {
  std::string id;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* out) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type != PT_NOTE) continue;
          const char* at = reinterpret_cast<const char*>(info->dlpi_addr + header.p_vaddr);
          const char* const end = at + header.p_memsz;
          while (at + sizeof(ElfW(Nhdr)) <= end) {
            ElfW(Nhdr) note;
            std::memcpy(&note, at, sizeof note);
            const char* const owner = at + sizeof note;
            const char* const bytes = owner + (note.n_namesz + 3) / 4 * 4;
            if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
                std::memcmp(owner, "GNU", 4) == 0 && note.n_descsz >= 8) {
              for (int b = 0; b < 8; ++b)
                *static_cast<std::string*>(out) +=
                    fmt::format("{:02x}", static_cast<unsigned char>(bytes[b]));
              return 1;
            }
            at = bytes + (note.n_descsz + 3) / 4 * 4;
          }
        }
        return 1;  // the first object is the executable itself
      },
      &id);
  return id;
}

}  // namespace

std::string cpu_model() {
  for (const char* key : {"model name", "Model", "Hardware", "cpu model"}) {
    const std::string model = field("/proc/cpuinfo", key);
    if (!model.empty()) return model;
  }
  return "unknown";
}

std::string host_name() {
  char name[256] = "";
  return gethostname(name, sizeof name - 1) == 0 && name[0] != '\0' ? name : "unknown";
}

std::string build_description() {
  return fmt::format("{} {:08x}", SUBQUAD_BUILD_TYPE, fnv1a(SUBQUAD_CXX_FLAGS) & 0xffffffffu);
}

std::string build_id() {
  static const std::string id = [] {
    std::string linked = linker_build_id();
    if (!linked.empty()) return linked;
    struct stat file {};  // a linker without build ids: size and time of the file
    if (stat("/proc/self/exe", &file) != 0) return std::string("0000000000000000");
    return fmt::format("{:016x}", fnv1a(fmt::format("{} {} {}", file.st_size, file.st_mtim.tv_sec,
                                                    file.st_mtim.tv_nsec)));
  }();
  return id;
}

json machine_description() {
  return {{"schema", 1},         {"cpu", cpu()},
          {"memory", memory()},  {"system", system_json()},
          {"build", build()},    {"libraries", libraries()},
          {"threads", threads()}};
}

}  // namespace subquad
