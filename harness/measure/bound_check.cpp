#include "harness/measure/bound_check.h"

#include <fmt/core.h>

#include <cmath>
#include <numeric>
#include <optional>

#include "harness/core/registry.h"
#include "harness/core/task.h"
#include "harness/measure/error_metrics.h"
#include "harness/measure/reference.h"

namespace subquad {
namespace {

constexpr Index kHiddenWidth = 16;        // of Inputs::x for methods that use it
constexpr double kRounding = 2e-6;        // of distances between float32 matrices
constexpr double kRowSumRounding = 1e-3;  // of a row's sum, eps in a normaliser included

struct Shown {
  MatrixMetrics distance;
  double row_sum_error = 0;  // largest |sum - 1| of a row
};

// Distances of the matrix that the method shows for the inputs; nothing when it shows none.
std::optional<Shown> shown(Method& method, const Problem& p, const QKV& in, const Env& env) {
  method.prepare(p, env);
  std::vector<Index> rows(static_cast<std::size_t>(p.n));
  std::iota(rows.begin(), rows.end(), Index{0});
  MatrixSums sums;
  Shown result;
  Matrix weights(p.n, p.n_kv);
  for (Index h = 0; h < p.heads; ++h) {
    if (!method.attention_rows(in.inputs(), 0, h, rows, weights)) return std::nullopt;
    if (!sums.add(exact_attention_rows(in.inputs(), p, 0, h, rows), weights, 1))
      return std::nullopt;
    const double off =
        static_cast<double>((weights.rowwise().sum().array() - 1.f).abs().maxCoeff());
    result.row_sum_error = std::max(result.row_sum_error, off);
  }
  result.distance = sums.metrics().value();
  return result;
}

QKV make_inputs(const MethodInfo& info, const Problem& p, Seed seed, float spread) {
  QKV in(p);
  fill_normal(derive(seed, "bound.q"), in.q.data(), in.q.size());
  fill_normal(derive(seed, "bound.k"), in.k.data(), in.k.size());
  fill_normal(derive(seed, "bound.v"), in.v.data(), in.v.size());
  for (Index e = 0; e < in.q.size(); ++e) in.q.data()[e] *= spread;
  if (info.uses_hidden) {
    in.x = Tensor(p.batch, 1, p.n, kHiddenWidth);
    fill_normal(derive(seed, "bound.x"), in.x.data(), in.x.size());
  }
  return in;
}

std::vector<Settings> trial_settings(const MethodEntry& entry) {
  std::vector<Settings> all{{}};
  for (const ParamSpec& spec : entry.params)
    if (spec.type == ParamType::integer && spec.min <= 4 && spec.max >= 4)
      all.push_back({{spec.name, Index{4}}});
  return all;
}

class Comparison {
 public:
  Comparison(const MethodEntry& entry, Seed seed) : entry_(entry), seed_(seed) {}

  // "" or what is wrong.
  std::string run(const Settings& given, const Problem& p, float spread) {
    std::unique_ptr<Method> method;
    try {
      method = entry_.create(resolve(entry_.info.name, entry_.params, given));
      if (!unsupported_reason(entry_, *method, p, Pass::forward).empty()) return "";
    } catch (const UserError&) {
      return "";  // refused with a reason
    }
    const QKV in = make_inputs(entry_.info, p, seed_, spread);
    const Env env{
        .seed = seed_, .gradients = false, .d_model = entry_.info.uses_hidden ? kHiddenWidth : 0};
    const auto own = shown(*method, p, in, env);
    if (!own) return "";
    const double keys = method->budget(p).keys_per_query;
    if (!(keys >= 1)) return "is bounded by oracles, but declares no keys_per_query";
    for (const std::string& name : entry_.info.bounded_by) {
      const std::string wrong = against(name, keys, *own, p, in, to_string(given));
      if (!wrong.empty()) return wrong;
    }
    return "";
  }
  Index compared() const { return compared_; }

 private:
  std::string against(const std::string& name, double keys, const Shown& own, const Problem& p,
                      const QKV& in, const std::string& given) {
    const MethodEntry* oracle = Registry::instance().find_method(name);
    if (oracle == nullptr || !oracle->info.oracle || !oracle->info.at_budget)
      return fmt::format("names {} in bounded_by, which is no oracle that has a budget", name);
    const auto bound = make_method(name, oracle->info.at_budget(keys));
    if (!unsupported_reason(*oracle, *bound, p, Pass::forward).empty()) return "";
    const auto nearest = shown(*bound, p, in, {.seed = seed_});
    if (!nearest) return fmt::format("names {} in bounded_by, which shows no matrix", name);
    const bool rows = bound->bounds_in() == MatrixDistance::row_tv;
    if (rows && !(own.row_sum_error <= kRowSumRounding))
      return fmt::format("is bounded by {}, but a row of its weights is off one by {:.3g} ({}, {})",
                         name, own.row_sum_error, p.str(), given);
    const double mine = rows ? own.distance.row_tv : own.distance.relative,
                 least = rows ? nearest->distance.row_tv : nearest->distance.relative;
    ++compared_;
    if (mine >= least - kRounding) return "";
    return fmt::format("{} is {:.6g}, below the {:.6g} of {} at {:g} keys per query ({}, {})",
                       subquad::name(bound->bounds_in()), mine, least, name, keys, p.str(), given);
  }

  const MethodEntry& entry_;
  Seed seed_;
  Index compared_ = 0;
};

}  // namespace

BoundCheck check_bounds(const MethodEntry& entry, Seed seed) {
  Comparison comparison(entry, seed);
  for (const Settings& given : trial_settings(entry))
    for (const bool causal : {false, true})
      for (const float spread : {0.5f, 1.f, 4.f}) {
        const Problem p{.heads = 2, .n = 64, .n_kv = 64, .d_k = 12, .d_v = 8, .causal = causal};
        const std::string violation = comparison.run(given, p, spread);
        if (!violation.empty()) return {violation, comparison.compared()};
      }
  return {"", comparison.compared()};
}

}  // namespace subquad
