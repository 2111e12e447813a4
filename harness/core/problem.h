// The sizes of one attention call, and the passes that can be measured.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "harness/core/types.h"

namespace subquad {

// What is measured. `backward` is the backward call alone (its forward ran before, untimed);
// `forward_backward` times both together.
enum class Pass { forward, backward, forward_backward, decode, train, fit };

inline constexpr Pass kAllPasses[] = {Pass::forward, Pass::backward, Pass::forward_backward,
                                      Pass::decode,  Pass::train,    Pass::fit};

std::string_view name(Pass pass);
std::optional<Pass> pass_from_name(std::string_view text);

// q [batch, heads, n, d_k], k [batch, heads, n_kv, d_k], v [batch, heads, n_kv, d_v] -> out
// [batch, heads, n, d_v]. Causal with n != n_kv follows the decoding convention: the last query
// sees every key, query i sees keys j <= i + n_kv - n; causal needs n_kv >= n.
struct Problem {
  Index batch = 1;
  Index heads = 1;
  Index n = 0;     // queries
  Index n_kv = 0;  // keys
  Index d_k = 64;  // width of q and k
  Index d_v = 64;  // width of v
  bool causal = false;
  double scale = 0;  // factor on the logits; 0 means 1 / sqrt(d_k)

  double logit_scale() const;
  Index causal_offset() const { return n_kv - n; }
  // Keys that query i may see: all, or the first i + n_kv - n + 1.
  Index visible(Index i) const { return causal ? i + n_kv - n + 1 : n_kv; }
  // Sum over queries of visible(i): the entries of the attention matrix of one head.
  double visible_entries() const;
  std::string str() const;
  bool operator==(const Problem&) const = default;
};

// Why the sizes make no sense (with the limits that hold), or "" when they do.
std::string invalid_reason(const Problem& problem);

}  // namespace subquad
