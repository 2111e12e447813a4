#include "harness/model/checkpoint.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "harness/core/safetensors.h"
#include "harness/model/trained_model.h"

namespace subquad {
namespace {

using Json = nlohmann::json;

std::vector<Index> shape_of(const ParameterEntry& entry) {
  std::vector<Index> shape;
  for (int a = 0; a < entry.dims.rank(); ++a) shape.push_back(entry.dims[a]);
  return shape;
}

// JSON keeps every bit of a finite double; losses may be infinite.
Json number(double x) { return std::isfinite(x) ? Json(x) : Json(fmt::format("{}", x)); }
double number(const Json& json) {
  return json.is_string() ? std::stod(json.get<std::string>()) : json.get<double>();
}

Json to_json(const Scores& s) { return {number(s.loss), number(s.accuracy), s.labels}; }
Scores scores_from(const Json& j) { return {number(j.at(0)), number(j.at(1)), j.at(2)}; }

Json to_json(const TrainLoop& loop) {
  Json curve = Json::array();
  for (const CurvePoint& p : loop.report.curve)
    curve.push_back(
        {p.step, number(p.train_loss), to_json(p.validation), number(p.learning_rate), p.seconds});
  return {{"step", loop.step},
          {"best_loss", number(loop.best_loss)},
          {"has_best", loop.has_best},
          {"best_step", loop.best_step},
          {"bad_validations", loop.bad_validations},
          {"loss_sum", number(loop.loss_sum)},
          {"loss_count", loop.loss_count},
          {"half_step", loop.report.half_step},
          {"best_accuracy", number(loop.report.best_accuracy)},
          {"train_s", loop.report.train_s},
          {"stopped", loop.report.stopped},
          {"fit",
           {loop.report.fit.steps, number(loop.report.fit.first_loss),
            number(loop.report.fit.last_loss), loop.report.fit_s, loop.report.methods_initial}},
          {"curve", curve}};
}

TrainLoop loop_from(const Json& j) {
  TrainLoop loop;
  loop.step = j.at("step");
  loop.best_loss = number(j.at("best_loss"));
  loop.has_best = j.at("has_best");
  loop.best_step = j.at("best_step");
  loop.bad_validations = j.at("bad_validations");
  loop.loss_sum = number(j.at("loss_sum"));
  loop.loss_count = j.at("loss_count");
  loop.report.half_step = j.at("half_step");
  loop.report.best_accuracy = number(j.at("best_accuracy"));
  loop.report.train_s = j.at("train_s");
  loop.report.stopped = j.at("stopped");
  if (j.contains("fit")) {
    const Json& fit = j.at("fit");
    loop.report.fit = {fit.at(0), number(fit.at(1)), number(fit.at(2))};
    loop.report.fit_s = fit.at(3);
    loop.report.methods_initial = fit.at(4);
  }
  for (const Json& p : j.at("curve"))
    loop.report.curve.push_back(
        {p.at(0), number(p.at(1)), scores_from(p.at(2)), number(p.at(3)), p.at(4)});
  return loop;
}

void copy_tensor(const TensorFile& file, const std::string& path, const std::string& name,
                 const ParameterEntry& entry, float* to) {
  const auto& tensor = file.get(path, name, "F32", shape_of(entry));
  std::memcpy(to + entry.offset, tensor.bytes.data(), tensor.bytes.size());
}

}  // namespace

namespace {

void write_model(const std::string& path, const TrainSetup& setup, TrainState& state,
                 const TrainLoop& loop, bool moments) {
  std::vector<FileTensor> tensors;
  const auto add = [&](const std::string& prefix, const float* from) {
    for (const ParameterEntry& entry : state.layout().entries())
      tensors.push_back({prefix + entry.name, shape_of(entry), "F32", from + entry.offset});
  };
  add("", state.weights());
  if (moments) {
    add("adam.mean.", state.optimizer().mean().data());
    add("adam.square.", state.optimizer().square().data());
  }
  std::map<std::string, std::string> metadata{{"run", setup.identity},
                                              {"loop", to_json(loop).dump()}};
  if (!setup.task_name.empty()) metadata["model"] = describe_model(setup);
  write_safetensors(path, tensors, metadata);
}

}  // namespace

void write_checkpoint(const std::string& path, const TrainSetup& setup, TrainState& state,
                      const TrainLoop& loop) {
  write_model(path, setup, state, loop, true);
}

void save_model(const std::string& path, const TrainSetup& setup, TrainState& state,
                const TrainLoop& loop) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder);
  write_model(path, setup, state, loop, false);
}

bool read_checkpoint(const std::string& path, const TrainSetup& setup, TrainState* state,
                     TrainLoop* loop) {
  if (!std::filesystem::exists(path)) return false;
  const TensorFile file = read_safetensors(path);
  const auto run = file.metadata.find("run"), progress = file.metadata.find("loop");
  if (run == file.metadata.end() || progress == file.metadata.end())
    throw UserError(fmt::format("{}: no checkpoint of a training run", path));
  if (run->second != setup.identity)
    throw UserError(fmt::format("{}: belongs to another run ({}), expected {}", path, run->second,
                                setup.identity));
  for (const ParameterEntry& entry : state->layout().entries()) {
    copy_tensor(file, path, entry.name, entry, state->weights());
    copy_tensor(file, path, "adam.mean." + entry.name, entry, state->optimizer().mean().data());
    copy_tensor(file, path, "adam.square." + entry.name, entry, state->optimizer().square().data());
  }
  try {
    *loop = loop_from(Json::parse(progress->second));
  } catch (const std::exception& error) {
    throw UserError(fmt::format("{}: its progress cannot be read: {}", path, error.what()));
  }
  return true;
}

void read_weights(const std::string& path, TrainState* state) {
  read_weights(read_safetensors(path), path, state->layout(), state->weights());
}

void read_weights(const TensorFile& file, const std::string& path, const ParameterLayout& layout,
                  float* weights) {
  for (const ParameterEntry& entry : layout.entries())
    copy_tensor(file, path, entry.name, entry, weights);
}

void write_curve(const std::string& path, const std::vector<CurvePoint>& curve) {
  const std::string temporary = path + ".writing";
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << "step,train_loss,validation_loss,validation_accuracy,learning_rate,seconds\n";
    for (const CurvePoint& p : curve)
      file << fmt::format("{},{},{},{},{},{:.3f}\n", p.step, p.train_loss, p.validation.loss,
                          p.validation.accuracy, p.learning_rate, p.seconds);
    file.flush();
    if (!file) throw StorageError(fmt::format("{}: cannot be written", temporary));
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) throw StorageError(fmt::format("{}: {}", path, error.message()));
}

}  // namespace subquad
