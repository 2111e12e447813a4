#include "harness/core/safetensors.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "harness/core/error.h"
#include "harness/core/printable.h"

namespace subquad {
namespace {

constexpr std::uint64_t kMaxHeader = 100000000;  // the format's own limit

Index type_size(const std::string& type) {
  if (type == "F32" || type == "I32") return 4;
  if (type == "F64" || type == "I64") return 8;
  return 0;
}

Index count_of(const std::vector<Index>& shape) {
  Index count = 1;
  for (const Index size : shape)
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) return -1;
  return count;
}

struct File {
  int descriptor;
  std::string path;
  ~File() {
    if (descriptor >= 0) close(descriptor);
  }
  [[noreturn]] void fail(const char* what) const {
    throw StorageError(fmt::format("{}: {} failed: {}", path, what, std::strerror(errno)));
  }
  void write(const void* data, std::size_t size) const {
    const auto* from = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t wrote = ::write(descriptor, from, size);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) fail("writing");
      from += wrote;
      size -= static_cast<std::size_t>(wrote);
    }
  }
};

// The empty file at `path`, held by nobody else: two processes that write the same file come one
// after the other. A file that was renamed while we waited is no longer ours to write.
int open_alone(const std::string& path) {
  for (;;) {
    const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0) return -1;
    struct stat held {
    }, there{};
    while (flock(descriptor, LOCK_EX) != 0 && errno == EINTR) continue;
    if (fstat(descriptor, &held) == 0 && stat(path.c_str(), &there) == 0 &&
        held.st_ino == there.st_ino && held.st_dev == there.st_dev) {
      if (ftruncate(descriptor, 0) == 0) return descriptor;
      close(descriptor);
      return -1;
    }
    close(descriptor);
  }
}

void little_endian(std::uint64_t value, unsigned char* bytes) {
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
}

}  // namespace

Index TensorFile::Entry::count() const { return count_of(shape); }

const TensorFile::Entry& TensorFile::get(const std::string& path, const std::string& name,
                                         const std::string& type,
                                         const std::vector<Index>& shape) const {
  const auto found = tensors.find(name);
  if (found == tensors.end())
    throw UserError(fmt::format("{}: no tensor \"{}\"; expected {} {}", path, name, type, shape));
  if (found->second.type != type || found->second.shape != shape)
    throw UserError(fmt::format("{}: tensor \"{}\" is {} {}, expected {} {}", path, name,
                                found->second.type, found->second.shape, type, shape));
  return found->second;
}

void write_safetensors(const std::string& path, const std::vector<FileTensor>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const FileTensor& tensor : tensors) {
    const Index count = count_of(tensor.shape), size = type_size(tensor.type);
    SUBQUAD_CHECK(count >= 0 && size > 0 && !header.contains(tensor.name), "tensor {}",
                  tensor.name);
    const std::uint64_t end = offset + static_cast<std::uint64_t>(count * size);
    header[tensor.name] = {
        {"dtype", tensor.type}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data starts aligned

  const std::string temporary = path + ".writing";
  const File file{open_alone(temporary), temporary};
  if (file.descriptor < 0) file.fail("opening");
  unsigned char length[8];
  little_endian(text.size(), length);
  file.write(length, sizeof length);
  file.write(text.data(), text.size());
  for (const FileTensor& tensor : tensors)
    file.write(tensor.data,
               static_cast<std::size_t>(count_of(tensor.shape) * type_size(tensor.type)));
  if (fsync(file.descriptor) != 0) file.fail("flushing");
  if (rename(temporary.c_str(), path.c_str()) != 0) file.fail("renaming");
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const File directory{
      open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), folder};
  if (directory.descriptor < 0 || fsync(directory.descriptor) != 0) directory.fail("flushing");
}

TensorFile read_safetensors(const std::string& path) {
  const auto bad = [&](const std::string& what) {
    return UserError(fmt::format("{}: {}", path, printable(what)));  // names come from the file
  };
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw bad("cannot be read");
  const std::vector<char> all((std::istreambuf_iterator<char>(stream)), {});
  if (stream.bad()) throw bad("reading failed");
  if (all.size() < 8) throw bad(fmt::format("{} bytes, expected a safetensors file", all.size()));
  std::uint64_t length = 0;
  for (std::size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(all[i]);
  if (length > kMaxHeader || length > all.size() - 8)
    throw bad(fmt::format("a header of {} bytes in a file of {}: truncated, or no safetensors file",
                          length, all.size()));
  const auto data_size = static_cast<Index>(all.size() - 8 - length);
  const char* const data = all.data() + 8 + length;

  std::set<std::string> seen;
  std::string twice;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    if (event == nlohmann::json::parse_event_t::key && depth == 1 &&
        !seen.insert(value.get<std::string>()).second)
      twice = value.get<std::string>();
    return true;
  };
  nlohmann::json header;
  try {
    header =
        nlohmann::json::parse(all.begin() + 8, all.begin() + 8 + static_cast<Index>(length), watch);
  } catch (const std::exception& error) {
    throw bad(fmt::format("the header is no JSON: {}", error.what()));
  }
  if (!header.is_object()) throw bad("the header is no JSON object");
  if (!twice.empty()) throw bad(fmt::format("tensor \"{}\" stands twice", twice));

  // A number that is no integer must not be converted to one: what that gives is undefined.
  const auto integers = [&](const std::string& name, const char* key, const nlohmann::json& list) {
    std::vector<Index> out;
    bool whole = list.is_array();
    for (const nlohmann::json& item : list) {
      whole = whole && item.is_number_integer() &&
              !(item.is_number_unsigned() && item.get<std::uint64_t>() >> 63 != 0);
      if (whole) out.push_back(item.get<Index>());
    }
    if (!whole)
      throw bad(fmt::format("tensor \"{}\" has {} {}, expected a list of integers", name, key,
                            list.dump()));
    return out;
  };

  TensorFile file;
  std::vector<std::pair<Index, Index>> ranges;
  for (const auto& [name, value] : header.items()) {
    try {
      if (name == "__metadata__") {
        file.metadata = value.get<std::map<std::string, std::string>>();
        continue;
      }
      TensorFile::Entry entry;
      entry.type = value.at("dtype").get<std::string>();
      entry.shape = integers(name, "shape", value.at("shape"));
      const auto offsets = integers(name, "data_offsets", value.at("data_offsets"));
      const Index count = count_of(entry.shape), size = type_size(entry.type);
      if (size == 0)
        throw bad(fmt::format("tensor \"{}\" has type {}, expected F32, F64, I32 or I64", name,
                              entry.type));
      if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0] ||
          offsets[1] > data_size || count < 0 || (offsets[1] - offsets[0]) / size != count ||
          (offsets[1] - offsets[0]) % size != 0)
        throw bad(fmt::format("tensor \"{}\" {} {} lies at {} of {} bytes", name, entry.type,
                              entry.shape, offsets, data_size));
      entry.bytes.assign(data + offsets[0], data + offsets[1]);
      ranges.emplace_back(offsets[0], offsets[1]);
      file.tensors.emplace(name, std::move(entry));
    } catch (const nlohmann::json::exception& error) {
      throw bad(fmt::format("\"{}\" in the header: {}", name, error.what()));
    }
  }
  std::sort(ranges.begin(), ranges.end());
  Index end = 0;
  for (const auto& [first, last] : ranges) {
    if (first != end)
      throw bad(fmt::format("bytes {} to {} belong to no tensor, or to two", end, first));
    end = last;
  }
  if (end != data_size) throw bad(fmt::format("{} bytes after the last tensor", data_size - end));
  return file;
}

}  // namespace subquad
