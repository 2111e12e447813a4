// Token-by-token Conv-Basis attention for segmentations that do not look ahead.
#pragma once

#include <memory>

#include "harness/core/method.h"
#include "methods/engines/conv_segments.h"

namespace subquad {

// Every step lengthens the profile of each segment by one logit (O(k d_k)) and averages all values
// (O(n d_v)): only the score part of a step is saved. The paper gives no decoding.
std::unique_ptr<Decoder> make_conv_decoder(const DecodeConfig& config, const SegmentRule& rule);
// What the decoder of this problem allocates.
double conv_decoder_bytes(const Problem& problem, const SegmentRule& rule);

}  // namespace subquad
