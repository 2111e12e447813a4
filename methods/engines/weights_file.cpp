#include "methods/engines/weights_file.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

namespace subquad {

using nlohmann::json;

void read_weights(const std::string& path, const std::vector<Parameter*>& parameters) {
  const auto bad = [&](const std::string& what) {
    return UserError(fmt::format("{}: {}", path, what));
  };
  std::ifstream file(path, std::ios::binary);
  if (!file) throw bad("cannot be read");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::uint64_t length = 0;
  if (text.size() < 8) throw bad("no safetensors file: shorter than its 8 bytes of length");
  for (int i = 0; i < 8; ++i)
    length |=
        static_cast<std::uint64_t>(static_cast<unsigned char>(text[static_cast<std::size_t>(i)]))
        << (8 * i);
  if (length > text.size() - 8)
    throw bad(fmt::format("a header of {} bytes does not fit into {}", length, text.size()));
  const json header = json::parse(text.substr(8, length), nullptr, false);
  if (!header.is_object()) throw bad("its header is no JSON object");
  const std::size_t start = 8 + static_cast<std::size_t>(length);
  for (Parameter* p : parameters) {
    const auto bytes = static_cast<std::size_t>(p->value.size()) * sizeof(float);
    const auto found = header.find(p->name);
    if (found == header.end()) throw bad(fmt::format("has no tensor {}", p->name));
    std::vector<Index> shape;
    std::vector<std::size_t> place;
    try {
      if (found->at("dtype") != "F32") throw bad(fmt::format("{} is not F32", p->name));
      shape = found->at("shape").get<std::vector<Index>>();
      place = found->at("data_offsets").get<std::vector<std::size_t>>();
    } catch (const json::exception&) {
      throw bad(fmt::format("the entry of {} is malformed", p->name));
    }
    if (shape != p->shape)
      throw bad(fmt::format("{} has shape [{}], expected [{}]", p->name, fmt::join(shape, ", "),
                            fmt::join(p->shape, ", ")));
    if (place.size() != 2 || place[1] < place[0] || place[1] - place[0] != bytes ||
        place[1] > text.size() - start)
      throw bad(fmt::format("the place of {} is not in the file", p->name));
    std::copy_n(text.data() + start + place[0], bytes, reinterpret_cast<char*>(p->value.data()));
  }
}

void write_weights(const std::string& path, const std::vector<Parameter*>& parameters) {
  json header;
  std::size_t offset = 0;
  for (const Parameter* p : parameters) {
    const auto bytes = static_cast<std::size_t>(p->value.size()) * sizeof(float);
    header[p->name] = {
        {"dtype", "F32"}, {"shape", p->shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  const std::string text = header.dump();
  const std::string unfinished = path + ".tmp";
  std::ofstream file(unfinished, std::ios::binary | std::ios::trunc);
  for (int i = 0; i < 8; ++i)
    file.put(static_cast<char>(static_cast<std::uint64_t>(text.size()) >> (8 * i) & 0xff));
  file << text;
  for (const Parameter* p : parameters)
    file.write(reinterpret_cast<const char*>(p->value.data()),
               static_cast<std::streamsize>(p->value.size() * 4));
  file.close();
  if (!file || std::rename(unfinished.c_str(), path.c_str()) != 0) {
    std::remove(unfinished.c_str());
    throw StorageError(fmt::format("{}: cannot be written", path));
  }
}

}  // namespace subquad
