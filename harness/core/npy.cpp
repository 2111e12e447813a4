// Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1-3.
#include "harness/core/npy.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string_view>

#include "harness/core/error.h"

namespace subquad {
namespace {

constexpr std::string_view kMagic{"\x93NUMPY", 6};
constexpr std::size_t kMaxHeader = 1 << 16;  // a real one has 64 to 192 bytes
constexpr std::size_t kMaxAxes = 32;         // NumPy's own limit

// A file that is open for reading; every read is checked.
class File {
 public:
  explicit File(const std::string& path)
      : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) throw UserError(fmt::format("{}: {}", path, std::strerror(errno)));
    struct stat status {};
    if (fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
      close(fd_);
      throw UserError(fmt::format("{}: not a regular file, expected a .npy file", path));
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }
  ~File() { close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::uint64_t size() const { return size_; }
  std::uint64_t position() const { return position_; }
  [[noreturn]] void refuse(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", path_, what));
  }
  void read(void* to, std::size_t count, const char* what) {
    auto* bytes = static_cast<unsigned char*>(to);
    for (std::size_t done = 0; done < count;) {
      const ssize_t got = ::read(fd_, bytes + done, count - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) refuse(fmt::format("cannot be read: {}", std::strerror(errno)));
      if (got == 0)
        refuse(fmt::format("ends after {} bytes, within {}; expected a whole .npy file",
                           position_ + done, what));
      done += static_cast<std::size_t>(got);
    }
    position_ += count;
  }

 private:
  std::string path_;
  int fd_;
  std::uint64_t size_ = 0, position_ = 0;
};

struct Header {
  std::size_t item_bytes = 0;  // 2, 4 or 8
  bool swapped = false;        // the other byte order than this machine's
  bool fortran_order = false;
  std::vector<Index> shape;
  Index count = 1;
};

// The header is a Python dictionary of exactly three keys; this reads the part of the language
// that NumPy writes, and nothing else.
class HeaderParser {
 public:
  HeaderParser(const File& file, std::string_view text) : file_(file), text_(text) {}

  Header parse() {
    Header header;
    bool has_descr = false, has_order = false, has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      bool* seen = nullptr;
      if (key == "descr") {
        seen = &has_descr;
        skip_space();
        if (at_ < text_.size() && text_[at_] == '[')
          file_.refuse("holds a structured type; expected float16, float32 or float64");
        set_type(string(), &header);
      } else if (key == "fortran_order") {
        seen = &has_order;
        header.fortran_order = boolean();
      } else if (key == "shape") {
        seen = &has_shape;
        header.shape = shape(&header.count);
      } else {
        file_.refuse(
            fmt::format("header has the unknown key \"{}\"; expected descr, "
                        "fortran_order and shape",
                        printable(key)));
      }
      if (*seen) file_.refuse(fmt::format("header has the key \"{}\" twice", key));
      *seen = true;
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) bad("the end of the header");
    if (!has_descr || !has_order || !has_shape)
      file_.refuse(fmt::format("header has no key \"{}\"", !has_descr   ? "descr"
                                                           : !has_order ? "fortran_order"
                                                                        : "shape"));
    return header;
  }

 private:
  static std::string printable(std::string_view text) {
    std::string out;
    for (const char c : text.substr(0, 40)) out += c >= ' ' && c <= '~' ? c : '?';
    return out;
  }
  [[noreturn]] void bad(const char* expected) const {
    file_.refuse(fmt::format("bad header at its character {}: got \"{}\", expected {}", at_,
                             printable(text_.substr(at_, 12)), expected));
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) bad(std::string{'\'', c, '\''}.c_str());
  }
  bool word(std::string_view w) {
    skip_space();
    if (!text_.substr(at_).starts_with(w)) return false;
    at_ += w.size();
    return true;
  }
  std::string string() {
    skip_space();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) bad("a string");
    const std::size_t end = text_.find(text_[at_], at_ + 1);
    if (end == std::string_view::npos) bad("a string that ends");
    const std::string value(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return value;
  }
  bool boolean() {
    if (word("True")) return true;
    if (word("False")) return false;
    bad("True or False");
  }
  Index integer() {
    skip_space();
    Index value = 0;
    const std::size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const Index digit = text_[at_] - '0';
      if (value > (std::numeric_limits<Index>::max() - digit) / 10) bad("a length below 2^63");
      value = value * 10 + digit;
    }
    if (at_ == start) bad("a length (an integer >= 0)");
    if (at_ < text_.size() && text_[at_] == 'L') ++at_;  // written by Python 2
    return value;
  }
  std::vector<Index> shape(Index* count) {
    std::vector<Index> axes;
    expect('(');
    while (!accept(')')) {
      axes.push_back(integer());
      if (axes.size() > kMaxAxes) bad("at most 32 axes");
      if (!accept(',')) {
        if (axes.size() == 1) bad("',' (a shape of one axis is written (n,))");
        expect(')');
        break;
      }
    }
    // Products are checked with every axis counted as at least 1: an axis of 0 does not excuse
    // absurd other ones.
    Index size = 1;
    bool empty = false;
    for (const Index axis : axes) {
      empty = empty || axis == 0;
      if (axis > 0 && size > std::numeric_limits<Index>::max() / 8 / axis)
        file_.refuse(fmt::format("shape ({}) has too many elements", fmt::join(axes, ", ")));
      size *= std::max<Index>(axis, 1);
    }
    *count = empty ? 0 : size;
    return axes;
  }
  void set_type(const std::string& descr, Header* header) {
    const char order = descr.empty() ? '?' : descr[0];
    const std::string_view kind = std::string_view(descr).substr(descr.empty() ? 0 : 1);
    const bool known_order = order == '<' || order == '>' || order == '=';
    if (!known_order || (kind != "f2" && kind != "f4" && kind != "f8"))
      file_.refuse(fmt::format("holds {} ('{}'); expected float16, float32 or float64{}",
                               kind == "O" ? "Python objects" : "another type", printable(descr),
                               kind == "O" ? "" : ", for example through .astype('float32')"));
    header->item_bytes = static_cast<std::size_t>(kind[1] - '0');
    const bool little =
        order == '<' || (order == '=' && std::endian::native == std::endian::little);
    header->swapped = little != (std::endian::native == std::endian::little);
  }

  const File& file_;
  std::string_view text_;
  std::size_t at_ = 0;
};

// Reads up to the first value and checks that the file holds exactly the values announced.
Header read_header(File& file) {
  unsigned char start[8];
  file.read(start, sizeof start, "the magic string");
  if (std::memcmp(start, kMagic.data(), kMagic.size()) != 0)
    file.refuse("does not begin as a .npy file does (\\x93NUMPY)");
  const int major = start[6], minor = start[7];
  if (major < 1 || major > 3 || minor != 0)
    file.refuse(fmt::format("format version {}.{}; expected 1.0, 2.0 or 3.0", major, minor));
  unsigned char bytes[4] = {};
  file.read(bytes, major == 1 ? 2 : 4, "the header length");
  const std::size_t length = std::size_t{bytes[0]} | std::size_t{bytes[1]} << 8 |
                             std::size_t{bytes[2]} << 16 | std::size_t{bytes[3]} << 24;
  if (length > kMaxHeader)
    file.refuse(fmt::format("header of {} bytes; at most {} are allowed", length, kMaxHeader));
  std::string text(length, '\0');
  file.read(text.data(), length, "the header");
  const Header header = HeaderParser(file, text).parse();

  const std::uint64_t found = file.size() - file.position();
  const std::uint64_t announced = static_cast<std::uint64_t>(header.count) * header.item_bytes;
  if (found != announced)
    file.refuse(fmt::format("shape ({}) of float{} needs {} bytes of values, the file has {}",
                            fmt::join(header.shape, ", "), 8 * header.item_bytes, announced,
                            found));
  return header;
}

template <class T>
T swap_bytes(T x) {
  T y = 0;
  for (std::size_t i = 0; i < sizeof x; ++i) {
    y = static_cast<T>(y << 8 | (x & 0xff));
    x = static_cast<T>(x >> 8);
  }
  return y;
}

double half_to_double(std::uint16_t half) {  // IEEE 754 binary16
  const int exponent = half >> 10 & 31;
  const double fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31)
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity()
                         : std::numeric_limits<double>::quiet_NaN();
  return sign *
         (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

double decode(const unsigned char* bytes, const Header& header) {
  if (header.item_bytes == 2) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bytes, 2);
    return half_to_double(header.swapped ? swap_bytes(bits) : bits);
  }
  if (header.item_bytes == 4) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, bytes, 4);
    return static_cast<double>(std::bit_cast<float>(header.swapped ? swap_bytes(bits) : bits));
  }
  std::uint64_t bits = 0;
  std::memcpy(&bits, bytes, 8);
  return std::bit_cast<double>(header.swapped ? swap_bytes(bits) : bits);
}

// "[0, 3, 1]": the subscripts of the C-order position.
std::string subscripts(Index position, const std::vector<Index>& shape) {
  std::vector<Index> index(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    index[axis] = position % shape[axis];
    position /= shape[axis];
  }
  return fmt::format("[{}]", fmt::join(index, ", "));
}

// Converts the values in pieces, so that a file of doubles needs no second copy in memory.
// store(position in C order, value).
template <class Store>
void read_values(File& file, const Header& header, Store&& store) {
  constexpr std::size_t kPiece = 1 << 16;
  std::vector<unsigned char> piece(kPiece * header.item_bytes);
  // Subscripts of the next value in the file, for Fortran order: its first axis runs fastest.
  std::vector<Index> index(header.shape.size()), stride(header.shape.size());
  Index step = 1;
  for (std::size_t axis = header.shape.size(); axis-- > 0;) {
    stride[axis] = step;
    step *= header.shape[axis];
  }
  Index position = 0;
  for (Index done = 0; done < header.count;) {
    const std::size_t count = std::min(kPiece, static_cast<std::size_t>(header.count - done));
    file.read(piece.data(), count * header.item_bytes, "the values");
    for (std::size_t i = 0; i < count; ++i) {
      const double value = decode(piece.data() + i * header.item_bytes, header);
      const float rounded = static_cast<float>(value);
      if (!std::isfinite(rounded))
        file.refuse(fmt::format("value {} at {}{}; expected finite numbers", value,
                                subscripts(position, header.shape),
                                std::isfinite(value) ? " does not fit into float32" : ""));
      store(position, rounded);
      if (!header.fortran_order) {
        ++position;
        continue;
      }
      for (std::size_t axis = 0; axis < index.size(); ++axis) {
        position += stride[axis];
        if (++index[axis] < header.shape[axis]) break;
        position -= stride[axis] * header.shape[axis];
        index[axis] = 0;
      }
    }
    done += static_cast<Index>(count);
  }
}

void write_all(int fd, const void* from, std::size_t count, const std::string& path) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  while (count > 0) {
    const ssize_t put = ::write(fd, bytes, count);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0)
      throw StorageError(fmt::format("{}: cannot be written: {}", path, std::strerror(errno)));
    bytes += put;
    count -= static_cast<std::size_t>(put);
  }
}

void write_contents(int fd, const std::string& path, const ConstTensorView& tensor, int axes) {
  const Shape& s = tensor.shape();
  std::string header =
      fmt::format("{{'descr': '{}f4', 'fortran_order': False, 'shape': ({}{}{}, {}), }}",
                  std::endian::native == std::endian::little ? '<' : '>',
                  axes == 4 ? fmt::format("{}, ", s.batch) : "",
                  axes >= 3 ? fmt::format("{}, ", s.heads) : "", s.n, s.d);
  // Magic, version and length take 10 bytes; values begin at a multiple of 64.
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::string start(kMagic);
  start += '\x01';
  start += '\0';
  start += static_cast<char>(header.size() & 0xff);
  start += static_cast<char>(header.size() >> 8);
  start += header;
  write_all(fd, start.data(), start.size(), path);
  write_all(fd, tensor.data(), static_cast<std::size_t>(tensor.size()) * sizeof(float), path);
}

}  // namespace

NpyArray read_npy(const std::string& path) {
  File file(path);
  const Header header = read_header(file);
  NpyArray array;
  array.shape = header.shape;
  array.values.resize(static_cast<std::size_t>(header.count));
  read_values(file, header, [&](Index position, float value) {
    array.values[static_cast<std::size_t>(position)] = value;
  });
  return array;
}

std::vector<Index> read_npy_shape(const std::string& path) {
  File file(path);
  return read_header(file).shape;
}

Tensor read_npy_tensor(const std::string& path) {
  File file(path);
  const Header header = read_header(file);
  const std::vector<Index>& axes = header.shape;
  if (axes.size() < 2 || axes.size() > 4 || header.count == 0)
    file.refuse(
        fmt::format("shape ({}); expected [batch, heads, n, d], [heads, n, d] or [n, d] "
                    "without an axis of length 0",
                    fmt::join(axes, ", ")));
  std::vector<Index> full(4 - axes.size(), 1);
  full.insert(full.end(), axes.begin(), axes.end());
  Tensor tensor(full[0], full[1], full[2], full[3]);
  read_values(file, header, [&](Index position, float value) { tensor.data()[position] = value; });
  return tensor;
}

void write_npy(const std::string& path, const ConstTensorView& tensor, int axes) {
  SUBQUAD_CHECK(axes >= 2 && axes <= 4 && (axes == 4 || tensor.batch() == 1) &&
                    (axes > 2 || tensor.heads() == 1),
                "{} axes of {}", axes, tensor.shape().str());
  namespace fs = std::filesystem;
  const auto fail = [&](const char* what) {
    return StorageError(fmt::format("{}: {}: {}", path, what, std::strerror(errno)));
  };
  std::error_code error;
  const fs::file_status target = fs::status(path, error);
  if (fs::exists(target) && !fs::is_regular_file(target)) {
    // A pipe or a device is written to; renaming would replace it.
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) throw fail("cannot be opened for writing");
    try {
      write_contents(fd, path, tensor, axes);
    } catch (...) {
      close(fd);
      throw;
    }
    if (close(fd) != 0) throw fail("cannot be written");
    return;
  }
  // Through a link, the file that it points to is replaced, not the link.
  const std::string final_path = fs::exists(target) ? fs::canonical(path).string() : path;
  const std::string temporary = fmt::format("{}.{}.part", final_path, getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) throw fail("cannot be created");
  try {
    write_contents(fd, path, tensor, axes);
    if (fsync(fd) != 0) throw fail("cannot be written");
  } catch (...) {
    close(fd);
    unlink(temporary.c_str());
    throw;
  }
  if (close(fd) != 0 || rename(temporary.c_str(), final_path.c_str()) != 0) {
    const StorageError failure = fail("cannot be written");
    unlink(temporary.c_str());
    throw failure;
  }
}

}  // namespace subquad
