#include "harness/core/capture.h"

#include <algorithm>

namespace subquad {
namespace {

MakeCaptured g_make = nullptr;

bool is_capture_key(const std::string& name) {
  const auto& fields = capture_fields();
  return std::any_of(fields.begin(), fields.end(),
                     [&](const Field<CaptureParams>& field) { return field.spec.name == name; });
}

// Whether accept_capture() put its keys behind the task's own parameters.
bool accepts(const TaskEntry& entry) {
  const auto& fields = capture_fields();
  if (!entry.info.labelled || entry.params.size() < fields.size()) return false;
  return std::equal(fields.begin(), fields.end(),
                    entry.params.end() - static_cast<Index>(fields.size()),
                    [](const Field<CaptureParams>& field, const ParamSpec& spec) {
                      return field.spec.name == spec.name && field.spec.help == spec.help;
                    });
}

}  // namespace

const std::vector<Field<CaptureParams>>& capture_fields() {
  static const std::vector<Field<CaptureParams>> fields{
      param("from", &CaptureParams::from,
            "checkpoint of `subquad train`, or its directory: q, k, v are those of that model on "
            "examples it was not trained on"),
      param("layer", &CaptureParams::layer, {-1, 1 << 20},
            "from: layer of the model; -1 = the heads of all layers side by side"),
      param("head", &CaptureParams::head, {-1, 1 << 20}, "from: head of the layer; -1 = all"),
      param("cache", &CaptureParams::cache,
            "layer: -1, decode: off, a token costs the forward of all tokens up to it")};
  return fields;
}

void set_make_captured(MakeCaptured make) { g_make = make; }

void accept_capture(TaskEntry* entry) {
  if (!entry->info.labelled) return;
  for (const ParamSpec& spec : entry->params)
    if (is_capture_key(spec.name)) return;
  const TaskEntry plain = *entry;
  for (const ParamSpec& spec : specs_of(capture_fields())) entry->params.push_back(spec);
  entry->create = [plain](const Settings& settings) -> std::unique_ptr<Task> {
    const auto from = settings.find("from");
    if (from == settings.end() || std::get<std::string>(from->second).empty())
      return plain.create(settings);
    if (g_make == nullptr) throw UserError("from: this program was built without models");
    Settings own = settings;
    for (const Field<CaptureParams>& field : capture_fields()) own.erase(field.spec.name);
    return g_make(bind(capture_fields(), settings), plain, own);
  };
}

Settings identifying(const TaskEntry& entry, const Settings& resolved) {
  if (!accepts(entry)) return resolved;
  const bool captured = !std::get<std::string>(resolved.at("from")).empty();
  Settings kept;
  for (const ParamSpec& spec : entry.params) {
    const ParamValue& value = resolved.at(spec.name);
    const bool keep =
        is_capture_key(spec.name) ? captured : !captured || value != spec.default_value;
    if (keep) kept[spec.name] = value;
  }
  return kept;
}

}  // namespace subquad
