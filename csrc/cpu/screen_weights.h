// lm_head in six bits a number, which bounds logits (cpu/screen.h): 32 neighbours along the input share one bf16 scale,
// value = (byte - 128) * scale. 26 bytes for 32 values.
//
// Of four numbers three are a byte each, and the fourth, a multiple of four, has its upper six bits in their lowest
// two: those of the first come third and fourth from below, of the second fifth and sixth, of the third seventh and
// eighth. The fourth is rounded first, and each of the others to the nearest byte that ends in its two bits: every
// fourth byte does, so that all four have as many values to choose from, and three need no unpacking.
//
// Rows are filled up and cut into steps as those of q8_weights.h, of n blocks and eight pieces of 4 n numbers: four
// even elements of all blocks, then the four odd ones between them, four times. The fourth and the eighth piece are
// those without a byte, so that a step is six times 4 n bytes.
//
// Nothing but the scale makes a block of zeros one: its bytes are 128, and its fourth numbers read as -128.
#pragma once

#include <cstddef>

#include "cpu/q8_weights.h"

namespace gptoss::cpu {

static constexpr int kScreenBlockBytes = kMxfp4Block * 6 / 8;

static inline size_t screen_row_bytes(int width) { return q8_row_scales(width) * kScreenBlockBytes; }

}  // namespace gptoss::cpu
