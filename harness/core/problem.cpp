#include "harness/core/problem.h"

#include <fmt/core.h>

#include <cmath>

namespace subquad {

std::string_view name(Pass pass) {
  switch (pass) {
    case Pass::forward:
      return "forward";
    case Pass::backward:
      return "backward";
    case Pass::forward_backward:
      return "forward_backward";
    case Pass::decode:
      return "decode";
    case Pass::train:
      return "train";
    case Pass::fit:
      return "fit";
  }
  return "?";
}

std::optional<Pass> pass_from_name(std::string_view text) {
  for (Pass pass : kAllPasses)
    if (name(pass) == text) return pass;
  return std::nullopt;
}

double Problem::logit_scale() const {
  return scale != 0 ? scale : 1.0 / std::sqrt(static_cast<double>(d_k));
}

double Problem::visible_entries() const {
  const double rows = static_cast<double>(n), keys = static_cast<double>(n_kv);
  if (!causal) return rows * keys;
  const double first = keys - rows + 1;  // keys of query 0
  return rows * (first + keys) / 2;
}

std::string Problem::str() const {
  return fmt::format("batch={} heads={} n={} n_kv={} d_k={} d_v={} {} scale={:.6g}", batch, heads,
                     n, n_kv, d_k, d_v, causal ? "causal" : "bidirectional", logit_scale());
}

std::string invalid_reason(const Problem& p) {
  constexpr Index kMaxLength = Index{1} << 24;
  constexpr double kMaxElements = 1LL << 33;  // 32 GiB of float32 in one tensor
  const auto outside = [](const char* what, Index value, Index low, Index high) {
    return value < low || value > high
               ? fmt::format("{}={} is outside [{}, {}]", what, value, low, high)
               : std::string();
  };
  for (const std::string& reason :
       {outside("batch", p.batch, 1, 1 << 16), outside("heads", p.heads, 1, 1 << 12),
        outside("n", p.n, 1, kMaxLength), outside("n_kv", p.n_kv, 1, kMaxLength),
        outside("d_k", p.d_k, 1, 4096), outside("d_v", p.d_v, 1, 4096)})
    if (!reason.empty()) return reason;
  const double elements = static_cast<double>(p.batch) * static_cast<double>(p.heads) *
                          static_cast<double>(std::max(p.n, p.n_kv)) *
                          static_cast<double>(std::max(p.d_k, p.d_v));
  if (elements > kMaxElements)
    return fmt::format("batch * heads * n * d = {:.3g} elements, at most {:.3g} are allowed",
                       elements, kMaxElements);
  if (p.causal && p.n_kv < p.n)
    return fmt::format("causal attention needs n_kv >= n, got n_kv={} and n={}", p.n_kv, p.n);
  if (!std::isfinite(p.scale)) return "scale is not finite";
  return "";
}

}  // namespace subquad
