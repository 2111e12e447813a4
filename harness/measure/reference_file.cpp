#include "harness/measure/reference_file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "harness/measure/checksum.h"

namespace subquad {
namespace {

static_assert(std::endian::native == std::endian::little, "the file format is little-endian");

struct Header {
  char magic[8];
  std::uint64_t version;
  char id[16];
  std::int64_t sizes[7];  // batch, heads, n, n_kv, d_k, d_v, causal
  double scale;           // as in Problem::logit_scale
  std::uint64_t inputs_hash;
  std::int64_t rows;       // per (batch, head)
  std::int64_t sampled;    // 1: row numbers follow the header
  std::int64_t gradients;  // 1: dq (and, unless sampled, dk and dv) follow out
};

constexpr char kMagic[8] = {'S', 'Q', 'E', 'X', 'A', 'C', 'T', '\n'};
constexpr std::uint64_t kVersion = 1;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Header header_of(const std::string& id, const Reference& r) {
  const Problem& p = r.problem;
  Header h{};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.version = kVersion;
  std::memcpy(h.id, id.data(), std::min(id.size(), sizeof h.id));
  const std::int64_t sizes[7] = {p.batch, p.heads, p.n, p.n_kv, p.d_k, p.d_v, p.causal};
  std::memcpy(h.sizes, sizes, sizeof sizes);
  h.scale = p.logit_scale();
  h.inputs_hash = r.inputs_hash;
  h.rows = r.out.n();
  h.sampled = !r.all_rows();
  h.gradients = !r.dq.empty();
  return h;
}

// The tensors of a file, in order.
template <class R, class Body>
void for_tensors(R& r, Body&& body) {
  for (auto* tensor : {&r.out, &r.dq, &r.dk, &r.dv})
    if (!tensor->empty())
      body(tensor->data(), static_cast<std::size_t>(tensor->size()) * sizeof(double));
}

class Writer {
 public:
  Writer(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  void put(const void* data, std::size_t bytes) {
    sum_ = checksum64(data, bytes, sum_);
    raw(data, bytes);
  }
  void finish() { raw(&sum_, sizeof sum_); }

 private:
  void raw(const void* data, std::size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t wrote = write(fd_, at, std::min<std::size_t>(bytes, 1 << 30));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0)
        throw StorageError(
            fmt::format("reference {}: cannot be written: {}", path_, std::strerror(errno)));
      at += wrote;
      bytes -= static_cast<std::size_t>(wrote);
    }
  }
  int fd_;
  std::string path_;
  std::uint64_t sum_ = 0;
};

class Reader {
 public:
  Reader(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  void get(void* data, std::size_t bytes) {
    raw(data, bytes);
    sum_ = checksum64(data, bytes, sum_);
  }
  void finish() {
    std::uint64_t stored = 0;
    raw(&stored, sizeof stored);
    if (stored != sum_)
      fail(fmt::format("checksum {:016x} does not match its content ({:016x})", stored, sum_));
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw StorageError(fmt::format("reference {}: {}", path_, what));
  }

 private:
  void raw(void* data, std::size_t bytes) {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t got = read(fd_, at, std::min<std::size_t>(bytes, 1 << 30));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(std::strerror(errno));
      if (got == 0) fail(fmt::format("ends {} bytes too early", bytes));
      at += got;
      bytes -= static_cast<std::size_t>(got);
    }
  }
  int fd_;
  std::string path_;
  std::uint64_t sum_ = 0;
};

}  // namespace

void write_reference(const std::string& path, const std::string& id, const Reference& reference) {
  // The process id keeps two writers of one reference apart; the last rename wins, with equal
  // bytes.
  const std::string temporary = fmt::format("{}.{}.tmp", path, getpid());
  Descriptor file(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (file.get() < 0)
    throw StorageError(
        fmt::format("reference {}: cannot be created: {}", temporary, std::strerror(errno)));
  try {
    Writer writer(file.get(), temporary);
    const Header header = header_of(id, reference);
    writer.put(&header, sizeof header);
    for (const auto& rows : reference.rows) writer.put(rows.data(), rows.size() * sizeof(Index));
    for_tensors(reference, [&](const double* data, std::size_t bytes) { writer.put(data, bytes); });
    writer.finish();
    if (close(file.release()) != 0)
      throw StorageError(
          fmt::format("reference {}: cannot be written: {}", temporary, std::strerror(errno)));
    if (rename(temporary.c_str(), path.c_str()) != 0)
      throw StorageError(
          fmt::format("reference {}: cannot be renamed: {}", path, std::strerror(errno)));
  } catch (...) {
    unlink(temporary.c_str());
    throw;
  }
}

Reference read_reference(const std::string& path, const std::string& id, const Problem& problem) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0)
    throw StorageError(fmt::format("reference {}: cannot be read: {}", path, std::strerror(errno)));
  Reader reader(file.get(), path);
  Header h{};
  reader.get(&h, sizeof h);
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0)
    reader.fail("not a reference file (its first bytes are another kind's)");
  if (h.version != kVersion)
    reader.fail(fmt::format("format version {}, expected {}", h.version, kVersion));

  // Rebuild the header from what was asked for: whatever differs is another reference's.
  Reference r;
  r.problem = problem;
  const Header wanted = header_of(id, r);
  if (std::memcmp(h.id, wanted.id, sizeof h.id) != 0)
    reader.fail(fmt::format("belongs to {}, expected {}", std::string_view(h.id, sizeof h.id), id));
  if (std::memcmp(h.sizes, wanted.sizes, sizeof h.sizes) != 0 || h.scale != wanted.scale)
    reader.fail(fmt::format("is of another problem, expected {}", problem.str()));
  if (h.rows < 1 || h.rows > problem.n || (h.sampled != 0 && h.sampled != 1) ||
      (h.gradients != 0 && h.gradients != 1) || (h.sampled == 0 && h.rows != problem.n))
    reader.fail("its header makes no sense");

  // Checked before anything is allocated: a damaged size must not ask for the whole memory.
  const Index heads = problem.batch * problem.heads;
  Index doubles = heads * h.rows * problem.d_v;
  if (h.gradients != 0) doubles += heads * h.rows * problem.d_k;
  if (h.gradients != 0 && h.sampled == 0)
    doubles += heads * problem.n_kv * (problem.d_k + problem.d_v);
  const auto expected = static_cast<std::int64_t>(sizeof h) +
                        8 * ((h.sampled != 0 ? heads * h.rows : 0) + doubles + 1);
  struct stat status {};
  if (fstat(file.get(), &status) != 0 || status.st_size != expected)
    reader.fail(fmt::format("has {} bytes, expected {}", status.st_size, expected));

  r.inputs_hash = h.inputs_hash;
  if (h.sampled != 0)
    for (Index bh = 0; bh < heads; ++bh) {
      auto& rows = r.rows.emplace_back(static_cast<std::size_t>(h.rows));
      reader.get(rows.data(), rows.size() * sizeof(Index));
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i] < 0 || rows[i] >= problem.n || (i > 0 && rows[i] <= rows[i - 1]))
          reader.fail("its row numbers are not sorted within the problem");
    }
  r.out = TensorD(problem.batch, problem.heads, h.rows, problem.d_v);
  if (h.gradients != 0) {
    r.dq = TensorD(problem.batch, problem.heads, h.rows, problem.d_k);
    if (h.sampled == 0) {
      r.dk = TensorD(problem.batch, problem.heads, problem.n_kv, problem.d_k);
      r.dv = TensorD(problem.batch, problem.heads, problem.n_kv, problem.d_v);
    }
  }
  for_tensors(r, [&](double* data, std::size_t bytes) { reader.get(data, bytes); });
  reader.finish();
  return r;
}

}  // namespace subquad
