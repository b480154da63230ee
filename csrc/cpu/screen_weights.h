// lm_head in six bits a number, which bounds logits (cpu/screen.h): 32 neighbours along the input share one bf16 scale,
// value = (code - 32) * scale, code 1 to 63. 26 bytes for 32 values.
//
// Rows are filled up and cut into steps as those of q8_weights.h. A step of n blocks is 24 n bytes, six pieces of 4 n:
// each of the first four has the lower four bits of even elements, and above them those of odd elements, in the order
// in which q8_weights.h has their bytes; the last two have upper bits, two each of those of two such pieces: even
// elements, odd ones, even and odd ones of the second, from the lowest bits on.
#pragma once

#include <cstddef>

#include "cpu/q8_weights.h"

namespace gptoss::cpu {

static constexpr int kScreenBlockBytes = kMxfp4Block * 6 / 8, kScreenZero = 32;

static inline size_t screen_row_bytes(int width) { return q8_row_scales(width) * kScreenBlockBytes; }

}  // namespace gptoss::cpu
