// Image files of labelled tasks: IDX pairs (also .gz), as of MNIST, and gray PNG images.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include "tasks/files.h"
#include "tasks/inflate.h"

namespace subquad {
namespace {

// Gray images of one size, with labels where there are any.
struct Images {
  Index count = 0, height = 0, width = 0;
  std::string pixels;  // [count, height, width]
  Tokens labels;       // [count]
  Index size() const { return height * width; }
  const std::uint8_t* image(Index i) const {
    return reinterpret_cast<const std::uint8_t*>(pixels.data()) + i * size();
  }
};

// The bytes of a file, unpacked if its name ends in .gz.
[[maybe_unused]] std::string read_packed(const std::string& owner, const std::string& path,
                                         const std::string& hint) {
  std::string bytes = read_file(owner, path, hint);
  if (!path.ends_with(".gz")) return bytes;
  constexpr std::size_t kLimit = std::size_t{1} << 30;  // twice the largest known set
  return gunzip(owner + ": " + path, bytes, kLimit);
}

// Sizes of the axes of IDX data of unsigned bytes, checked against the number of bytes.
[[maybe_unused]] std::vector<Index> idx_axes(const std::string& where, std::string_view bytes,
                                             std::size_t axes) {
  const auto word = [&](std::size_t i) {
    Index value = 0;
    for (std::size_t b = 0; b < 4; ++b)
      value = value << 8 | static_cast<unsigned char>(bytes[4 * i + b]);
    return value;
  };
  const std::size_t header = 4 * (axes + 1);
  const auto magic = static_cast<Index>(0x800 + axes);
  if (bytes.size() < header)
    throw UserError(
        fmt::format("{}: got {} bytes, expected an IDX header of {}", where, bytes.size(), header));
  if (word(0) != magic)
    throw UserError(
        fmt::format("{}: got 0x{:08x} at offset 0, expected 0x{:08x} (IDX, unsigned "
                    "bytes, {} axes)",
                    where, word(0), magic, axes));
  std::vector<Index> sizes;
  double product = 1;
  for (std::size_t i = 1; i <= axes; ++i) {
    sizes.push_back(word(i));
    product *= static_cast<double>(sizes.back());
  }
  if (product != static_cast<double>(bytes.size() - header))
    throw UserError(
        fmt::format("{}: got {} bytes after the header, expected {:.0f} for {}", where,
                    bytes.size() - header, product,
                    axes == 3 ? fmt::format("{} images of {} x {}", sizes[0], sizes[1], sizes[2])
                              : fmt::format("{} labels", sizes[0])));
  return sizes;
}

// An IDX file of images, and of labels below `classes` unless that path is empty.
[[maybe_unused]] Images read_idx(const std::string& owner, const std::string& path,
                                 const std::string& label_path, Index classes,
                                 const std::string& hint) {
  Images out;
  out.pixels = read_packed(owner, path, hint);
  const std::vector<Index> axes = idx_axes(owner + ": " + path, out.pixels, 3);
  out.count = axes[0], out.height = axes[1], out.width = axes[2];
  out.pixels.erase(0, 16);
  require_rows(owner, path, out.count);
  if (out.size() == 0) throw UserError(fmt::format("{}: {}: images without pixels", owner, path));
  if (label_path.empty()) return out;
  const std::string labels = read_packed(owner, label_path, hint);
  const Index count = idx_axes(owner + ": " + label_path, labels, 1)[0];
  if (count != out.count)
    throw UserError(fmt::format("{}: {}: got {} labels, expected {}, one for each image of {}",
                                owner, label_path, count, out.count, path));
  for (Index i = 0; i < count; ++i) {
    const auto label = static_cast<unsigned char>(labels[static_cast<std::size_t>(8 + i)]);
    if (label >= classes)
      throw UserError(fmt::format("{}: {}: label {} at offset {}, expected less than {}", owner,
                                  label_path, label, 8 + i, classes));
    out.labels.push_back(label);
  }
  return out;
}

// A PNG image: 8-bit gray without interlace. Pixels [height, width] in `pixels`, count 1.
[[maybe_unused]] Images read_png(const std::string& where, std::string_view bytes) {
  try {
    constexpr std::string_view kMagic("\x89PNG\r\n\x1a\n", 8);
    if (!bytes.starts_with(kMagic)) throw std::string("no PNG file");
    const auto word = [&](std::size_t at) {
      if (at + 4 > bytes.size()) throw std::string("the data end too early");
      std::uint32_t value = 0;
      for (std::size_t i = 0; i < 4; ++i)
        value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
      return value;
    };
    Images out;
    std::string packed;
    for (std::size_t at = 8; out.count == 0;) {
      const std::size_t length = word(at);
      if (length > bytes.size() || at + 12 + length > bytes.size())
        throw std::string("the data end too early");
      const std::string_view type = bytes.substr(at + 4, 4), data = bytes.substr(at + 8, length);
      if (crc32(bytes.substr(at + 4, length + 4)) != word(at + 8 + length))
        throw std::string("the checksum does not match");
      if (type == "IHDR") {
        if (length != 13) throw std::string("a header of another size");
        out.width = word(at + 8), out.height = word(at + 12);
        if (out.width < 1 || out.height < 1 || out.width > 4096 || out.height > 4096)
          throw fmt::format("{} x {} pixels, expected 1 to 4096 each", out.width, out.height);
        if (data.substr(8) != std::string_view("\x08\x00\x00\x00\x00", 5))
          throw std::string("expected 8-bit gray without interlace");
      } else if (type == "IDAT") {
        packed += data;
      } else if (type == "IEND") {
        out.count = 1;
      } else if ((type[0] & 0x20) == 0) {
        throw fmt::format("unknown chunk {}", excerpt(type));
      }
      at += 12 + length;
    }
    const std::size_t width = static_cast<std::size_t>(out.width), row = width + 1;
    const std::size_t height = static_cast<std::size_t>(out.height);
    if (width == 0) throw std::string("no header");
    const std::string raw = unzlib(packed, row * height);
    if (raw.size() != row * height) throw std::string("too few pixels");
    out.pixels.resize(width * height);
    const auto at = [&](std::size_t y, std::size_t x) {
      return static_cast<int>(static_cast<unsigned char>(out.pixels[y * width + x]));
    };
    for (std::size_t y = 0; y < height; ++y)
      for (std::size_t x = 0; x < width; ++x) {
        const int left = x > 0 ? at(y, x - 1) : 0, up = y > 0 ? at(y - 1, x) : 0;
        const int corner = x > 0 && y > 0 ? at(y - 1, x - 1) : 0;
        int predicted = 0;
        switch (raw[y * row]) {
          case 0:
            break;
          case 1:
            predicted = left;
            break;
          case 2:
            predicted = up;
            break;
          case 3:
            predicted = (left + up) / 2;
            break;
          case 4: {
            const int pl = std::abs(up - corner), pu = std::abs(left - corner);
            const int pc = std::abs(left + up - 2 * corner);
            predicted = pl <= pu && pl <= pc ? left : pu <= pc ? up : corner;
            break;
          }
          default:
            throw std::string("an unknown filter");
        }
        out.pixels[y * width + x] = static_cast<char>(
            (static_cast<unsigned char>(raw[y * row + 1 + x]) + predicted) & 0xFF);
      }
    return out;
  } catch (const std::string& reason) {
    throw UserError(where + ": damaged PNG image: " + reason);
  }
}

}  // namespace
}  // namespace subquad
