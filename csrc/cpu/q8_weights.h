// Dense matrices in signed bytes, on request (dense_dtype "q8"): 32 neighbours along the input share one bf16 scale,
// value = q8 * scale. 34 bytes for 32 values instead of the 64 that the checkpoint has.
//
// A row is cut into groups of four blocks, the last one filled up with zeros. A group's 128 bytes are the even elements
// of its four blocks, 16 bytes each, then the odd ones, which is how the 8-bit activations lie beside MXFP4 codes.
#pragma once

#include <cstddef>

#include "core/types.h"
#include "model/ops.h"

namespace gptoss::cpu {

inline constexpr int kGroupBlocks = 4;
inline constexpr int kGroupBytes = kGroupBlocks * kMxfp4Block;

static inline int groups_of(int width) { return (width / kMxfp4Block + kGroupBlocks - 1) / kGroupBlocks; }
static inline size_t q8_row_bytes(int width) { return size_t(groups_of(width)) * kGroupBytes; }
static inline size_t q8_row_scales(int width) { return size_t(groups_of(width)) * kGroupBlocks; }

}  // namespace gptoss::cpu
