// Dense matrices in twelve bits a number without losing one, on request (dense_dtype "packed"): nearly all weights of a
// trained matrix have one of 16 neighbouring exponents. Sign and mantissa of a bf16 make a byte; what its exponent is
// above the matrix's lowest makes four bits, its code.
//
// A row is a sequence of blocks of 128 numbers: 128 such bytes, then 64 with two codes each. Where the width asks for
// it, half a block ends the row: 64 bytes, then 64 for the codes. A block with another exponent in it is marked, and
// read where the checkpoint has it. Within a block, numbers lie as the kernels' registers take them (S::unpack).
#pragma once

#include <cstddef>

#include "model/ops.h"

namespace gptoss::cpu {

inline constexpr int kPackedBlock = 128;
inline constexpr int kPackedHalf = kPackedBlock / 2;
inline constexpr int kPackedBlockBytes = kPackedBlock + kPackedHalf;
inline constexpr int kPackedCodes = 16;
inline constexpr int kMaxPackedWidth = 64 * kPackedBlock;  // a row's marks are the bits of one word

static inline bool can_pack(int width) { return width % kPackedHalf == 0 && width <= kMaxPackedWidth; }
static inline size_t packed_row_bytes(int width) {
  return size_t(width / kPackedBlock) * kPackedBlockBytes + (width % kPackedBlock ? 2 * kPackedHalf : 0);
}

// The exponent of code 0 that leaves the fewest numbers out, or -1 where that would be too many: marked blocks are
// read from two places. Looks at some rows of a large matrix.
int lowest_exponent(const Linear&);

}  // namespace gptoss::cpu
