// Reading the files of labelled tasks: whole files, lines, splits by row, order of epochs.
// Errors are one line: task, path, line, what was found, what is expected.
//
// For task sources alone, with internal linkage: see common.h.
#pragma once

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "tasks/sequences.h"

namespace subquad {
namespace {

// The bytes of a file. UserError that says why it cannot be read; `hint` is what to do instead.
[[maybe_unused]] std::string read_file(const std::string& owner, const std::string& path,
                                       const std::string& hint = "") {
  const std::string tail = hint.empty() ? "" : "; " + hint;
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    throw UserError(fmt::format("{}: {}: is a directory, expected a file{}", owner, path, tail));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UserError(fmt::format("{}: {}: {}{}", owner, path, std::strerror(errno), tail));
  std::string bytes;
  std::vector<char> piece(1 << 16);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0)
    bytes.append(piece.data(), static_cast<std::size_t>(file.gcount()));
  if (file.bad()) throw UserError(fmt::format("{}: {}: cannot be read", owner, path));
  return bytes;
}

// Paths of the files in a folder whose names end in `extension`, sorted. UserError where it cannot
// be read.
[[maybe_unused]] std::vector<std::string> files_in(const std::string& owner,
                                                   const std::string& folder,
                                                   const std::string& extension,
                                                   const std::string& hint) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw UserError(fmt::format("{}: {}: not a directory; {}", owner, folder, hint));
  std::vector<std::string> names;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error))
    if (at->path().extension() == extension) names.push_back(at->path().string());
  if (error) throw UserError(fmt::format("{}: {}: {}", owner, folder, error.message()));
  std::sort(names.begin(), names.end());
  return names;
}

// Calls body(line, number) for every line, numbered from 1, without its LF or CRLF. A last line
// without an end counts; an empty one after the last end does not.
template <class Body>
void for_lines(std::string_view bytes, Body&& body) {
  Index number = 0;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t end = std::min(bytes.find('\n', at), bytes.size());
    std::string_view line = bytes.substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    body(line, ++number);
    at = end + 1;
  }
}

// At most 40 bytes of a text for an error message, other than printable ASCII as \xNN.
[[maybe_unused]] std::string excerpt(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 40))
    out += c >= ' ' && c <= '~' ? std::string(1, c)
                                : fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  return text.size() > 40 ? out + "..." : out;
}

// A whole number in decimal, nothing around it.
[[maybe_unused]] bool parse_index(std::string_view text, Index* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// Image of `index` under a permutation of [0, size) that the seed chooses: a Feistel network over
// the next power of four, walked until it falls inside.
[[maybe_unused]] Index permuted(Index index, Index size, Seed seed) {
  int bits = 1;  // of one half
  while (Index{1} << (2 * bits) < size) ++bits;
  const std::uint32_t mask = (1u << bits) - 1;
  auto x = static_cast<std::uint64_t>(index);
  do {
    auto left = static_cast<std::uint32_t>(x >> bits), right = static_cast<std::uint32_t>(x) & mask;
    for (std::uint32_t round = 0; round < 6; ++round) {
      const std::uint32_t mixed =
          philox4x32({right, round, 0, 0},
                     {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)})[0];
      const std::uint32_t next = left ^ (mixed & mask);
      left = right;
      right = next;
    }
    x = static_cast<std::uint64_t>(left) << bits | right;
  } while (x >= static_cast<std::uint64_t>(size));
  return static_cast<Index>(x);
}

// Rows [begin, end) of a table.
struct Rows {
  Index begin = 0, end = 0;
  Index size() const { return end - begin; }
};

// Row of example `number`: train in a new random order every epoch, the others in order, from the
// beginning again when the split is used up.
[[maybe_unused]] Index row_of(const Rows& rows, Split split, Index number, Seed seed) {
  const Index at = number % rows.size();
  if (split != Split::train) return rows.begin + at;
  const auto epoch = static_cast<std::uint64_t>(number / rows.size());
  return rows.begin + permuted(at, rows.size(), derive(seed, "epoch", {epoch}));
}

// One file's rows: 80 % train, 10 % validation, 10 % test, by position.
[[maybe_unused]] Rows split_rows(Index count, Split split) {
  const Index train = count * 80 / 100, validation = count * 90 / 100;
  if (split == Split::train) return {0, train};
  if (split == Split::validation) return {train, validation};
  return {validation, count};
}

[[maybe_unused]] void require_rows(const std::string& owner, const std::string& path, Index count) {
  if (count < 10)
    throw UserError(fmt::format("{}: {}: got {} rows, expected at least 10", owner, path, count));
}

// Share of the test labels that are the most frequent label of training.
[[maybe_unused]] Floor majority_floor(const std::vector<std::int32_t>& train,
                                      const std::vector<std::int32_t>& test, Index classes) {
  std::vector<Index> count(static_cast<std::size_t>(classes), 0);
  for (const std::int32_t label : train) ++count[static_cast<std::size_t>(label)];
  const auto best =
      static_cast<std::int32_t>(std::max_element(count.begin(), count.end()) - count.begin());
  return {"majority class", "accuracy",
          static_cast<double>(std::count(test.begin(), test.end(), best)) /
              static_cast<double>(std::max<std::size_t>(1, test.size()))};
}

}  // namespace
}  // namespace subquad
