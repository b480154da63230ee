// Dense matrices in signed bytes, on request (dense_dtype "q8"): 32 neighbours along the input share one bf16 scale,
// value = q8 * scale. 34 bytes for 32 values instead of the 64 that the checkpoint has.
//
// A row's blocks are filled up with zeros to a multiple of four. They lie in steps of S::q8_blocks, the last one
// shorter, each step as the kernels' registers take it (QuantizeFor::quantize_weights): four even elements of all its
// blocks, then four odd ones, four times.
#pragma once

#include <cstddef>

#include "core/types.h"
#include "model/ops.h"

namespace gptoss::cpu {

static inline size_t q8_row_scales(int width) { return size_t(width / kMxfp4Block + 3) / 4 * 4; }
static inline size_t q8_row_bytes(int width) { return q8_row_scales(width) * kMxfp4Block; }

}  // namespace gptoss::cpu
