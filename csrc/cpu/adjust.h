// What a row's settings make of its logits before a token is drawn.
#pragma once

#include <vector>

#include "cpu/token_row.h"
#include "model/ops.h"

namespace gptoss::cpu {

// Whether they are changed at all.
bool adjusts(const SampleRow&);

// Tokens whose logits become others, ascending; without those that a mask forbids.
std::vector<int32_t> adjusted_tokens(const SampleParams&, const SampleRow&);

// Mask, logit bias and penalties, in place. What is allowed stays finite.
void adjust(const SampleParams&, const SampleRow&, float* logits);

}  // namespace gptoss::cpu
