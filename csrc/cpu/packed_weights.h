// Dense matrices in twelve bits a number without losing one, on request (dense_dtype "packed"). A bf16's upper byte is
// its sign and its exponent without the last bit, and nearly all numbers of a trained matrix have one of eight
// neighbours there: with the sign a code of four bits. The lower byte stays as it is.
//
// A row is a sequence of blocks of 128 numbers: 128 lower bytes, then 64 bytes of two codes each. Where the width asks
// for it, half a block ends the row: 64 lower bytes, then 64 for the codes. Half a block with a number that has no code
// is marked: its codes mean the row's own sixteen upper bytes. A row that would need more of them is read where the
// checkpoint has it, as one of 64 halves is that are all marked. Within a block, numbers lie as the kernels' registers
// take them (S::unpack).
#pragma once

#include <cstddef>

#include "model/ops.h"

namespace gptoss::cpu {

inline constexpr int kPackedBlock = 128;
inline constexpr int kPackedHalf = kPackedBlock / 2;
inline constexpr int kPackedBlockBytes = kPackedBlock + kPackedHalf;
inline constexpr int kPackedNeighbours = 8;               // a code's upper bytes, sign aside
inline constexpr int kMaxPackedWidth = 64 * kPackedHalf;  // a row's marks are the bits of one word
inline constexpr int kUpperBytes = 16;

static inline bool can_pack(int width) { return width % kPackedHalf == 0 && width <= kMaxPackedWidth; }
static inline size_t packed_row_bytes(int width) {
  return size_t(width / kPackedBlock) * kPackedBlockBytes + (width % kPackedBlock ? 2 * kPackedHalf : 0);
}

// Place in its group of lane i of the group's register v.
static constexpr int packed_place(int v, int i) { return 16 * (i / 4) + 8 * (v / 2) + 2 * (i % 4) + v % 2; }

// The sixteen of halves that are not marked.
static inline void common_upper_bytes(int first, uint8_t* to) {
  for (int code = 0; code < kUpperBytes; ++code)
    to[code] = static_cast<uint8_t>((code & 8) << 4 | (first + (code & 7)));
}

// What a row has beside its blocks.
struct PackedRow {
  uint64_t marks = 0;  // bit i: numbers 64 i and on are a marked half
  uint8_t upper[kUpperBytes] = {};
};
static_assert(sizeof(PackedRow) == 24);               // plan() counts it: dense_forms.py
inline constexpr uint64_t kStoredRow = ~uint64_t{0};  // as marks: read from the checkpoint

// The first of the neighbours that leave the fewest numbers without a code, or -1 where those would be too many. Looks
// at some rows of a large matrix.
int first_upper_byte(const Linear&);

}  // namespace gptoss::cpu
