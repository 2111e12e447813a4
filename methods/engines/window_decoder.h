// Token-by-token softmax attention over a cache of the last `window` tokens and the first `sinks`
// tokens. With window = capacity it is the full key-value cache of dense attention.
#pragma once

#include <memory>

#include "harness/core/method.h"

namespace subquad {

// The cache is allocated here; steps and prefill copy into it and allocate nothing. Feeding more
// than config.capacity tokens throws InternalError.
std::unique_ptr<Decoder> make_window_decoder(const DecodeConfig& config, Index window, Index sinks);
// Bytes that such a decoder allocates: cache of `slots` tokens, scores and partial sums of a step.
double window_decoder_bytes(Index heads, Index slots, Index d_k, Index d_v);

}  // namespace subquad
