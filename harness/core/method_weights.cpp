#include "harness/core/method_weights.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "harness/core/error.h"
#include "harness/core/safetensors.h"

namespace subquad {
namespace {

// "runs/a/checkpoint.safetensors:2" -> the path and "layers.2.method."; without a layer: "".
std::pair<std::string, std::string> split_source(const std::string& source) {
  std::error_code error;
  const std::size_t colon = source.rfind(':');
  if (std::filesystem::exists(source, error) || colon == std::string::npos ||
      colon + 1 == source.size() ||
      source.find_first_not_of("0123456789", colon + 1) != std::string::npos)
    return {source, ""};
  std::filesystem::path path = source.substr(0, colon);
  if (std::filesystem::is_directory(path, error)) path /= "checkpoint.safetensors";
  return {path.string(), fmt::format("layers.{}.method.", source.substr(colon + 1))};
}

}  // namespace

std::string fill_path(std::string pattern, const std::string& method, const std::string& label,
                      Seed seed, Index n) {
  for (const auto& [name, value] : {std::pair<std::string, std::string>{"{method}", method},
                                    {"{label}", label},
                                    {"{seed}", std::to_string(seed)},
                                    {"{n}", std::to_string(n)}})
    for (std::size_t at = 0; (at = pattern.find(name, at)) != std::string::npos; at += value.size())
      pattern.replace(at, name.size(), value);
  return pattern;
}

void save_method_weights(const std::string& path, const std::string& method,
                         const Settings& settings, Method& prepared, std::optional<Seed> seed) {
  std::vector<FileTensor> tensors;
  for (const Parameter* p : prepared.parameters())
    tensors.push_back({p->name, p->shape, "F32", p->value.data()});
  std::map<std::string, std::string> metadata{{"method", method},
                                              {"settings", to_string(settings)}};
  if (seed) metadata["seed"] = std::to_string(*seed);
  write_safetensors(path, tensors, metadata);
}

std::optional<Seed> weights_seed(const std::string& source) {
  const auto [path, prefix] = split_source(source);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return std::nullopt;
  const TensorFile file = read_safetensors(path);
  try {
    if (const auto seed = file.metadata.find("seed"); seed != file.metadata.end())
      return std::stoull(seed->second);
    const auto model = file.metadata.find("model");
    if (prefix.empty() || model == file.metadata.end()) return std::nullopt;
    const Seed seed = nlohmann::json::parse(model->second).at("seed");
    return derive(seed, "method", {std::stoull(prefix.substr(std::string("layers.").size()))});
  } catch (const std::exception& problem) {
    throw UserError(fmt::format("weights: {}: its seed cannot be read: {}", path, problem.what()));
  }
}

void load_method_weights(const std::string& source, const std::string& method, Method& prepared) {
  const std::vector<Parameter*> parameters = prepared.parameters();
  if (parameters.empty())
    throw Unsupported(fmt::format("{} has no parameters that weights could fill", method));
  const auto [path, prefix] = split_source(source);
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw UserError(fmt::format("weights: {}: no such file", path));
  const TensorFile file = read_safetensors(path);
  const auto owner = file.metadata.find("method");
  if (prefix.empty() && owner != file.metadata.end() && owner->second != method)
    throw UserError(
        fmt::format("weights: {}: of the method {}, expected {}", path, owner->second, method));
  for (Parameter* p : parameters) {
    const auto& tensor = file.get(path, prefix + p->name, "F32", p->shape);
    std::memcpy(p->value.data(), tensor.bytes.data(), tensor.bytes.size());
  }
}

}  // namespace subquad
