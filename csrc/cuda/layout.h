// Kernel form: weights in the order in which a warp reads them. Lossless, and `*_to_checkpoint` is the inverse.
//
// A lane holds what the mma fragment of 16 columns names, so that the tokens need no order of their own: with lane =
// 4 g + t, columns 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of each 16.
//
// Dense (bf16), tiles of 16 rows x 32 columns, 1 KiB each, [out / 16][in / 32]:
//   16 bytes at 512 h + 16 lane = row g + 8 h, the lane's columns of the first 16, then of the second.
// MXFP4, tiles of 32 rows x 64 columns, [experts][out / 32][in / 64]:
//   codes, 1 KiB: word b of the 8 bytes at 512 h + 16 lane + 8 k = row 16 h + 8 k + g, the lane's columns of block b of
//   32. Codes 0, 2, 4, 6 of the 8 are the nibbles of the low half from the top down, 1, 3, 5, 7 those of the high
//   half: two neighbours are 16 bits apart, and a shift and a mask make them a pair of bf16;
//   scales, 64 bytes: byte 4 (2 g + b) + k = row g + 8 k, block b of the tile.
// Rows and columns that a matrix lacks are zeros. `Rotary` rows: inside each head of 64, row i and row i + 32, which
// rotate together, share a lane: tile j of a head holds rows 8 j .. 8 j + 7 and 32 + 8 j .. 32 + 8 j + 7.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace gptoss::layout {

enum class RowOrder { plain, rotary };

constexpr int kDenseRows = 16, kDenseColumns = 32;
constexpr int kMxfp4Rows = 32, kMxfp4Columns = 64;
constexpr int kTileBytes = 1024;                                       // of either kind
constexpr int kTileScales = kMxfp4Rows * kMxfp4Columns / kMxfp4Block;  // bytes

constexpr int tiles(int length, int tile) { return (length + tile - 1) / tile; }

// Row of the matrix that a row of the tiled form holds.
constexpr int source_row(int row, RowOrder order) {
  if (order == RowOrder::plain) return row;
  const int in_head = row % 64, tile = in_head / 16, place = in_head % 16;
  return row - in_head + 8 * tile + (place < 8 ? place : 32 + place - 8);
}

// Column of the `i`th pair that lane 4 g + t holds of a stretch of columns.
constexpr int fragment_column(int t, int i) { return 16 * (i / 2) + 2 * t + 8 * (i % 2); }

// Where decoded rows that are made for a dense product keep a pair of columns, so that a lane's four pairs of 32
// columns are 16 neighbouring bytes: fragment_column above, turned round.
constexpr size_t decoded_pair(size_t pair) { return pair / 16 * 16 + pair % 4 * 4 + pair % 16 / 4; }

// A pair of codes, one byte of the checkpoint, in its word of the tiled form: pair i of 4.
constexpr uint32_t place_pair(uint32_t byte, int i) { return (byte & 15u) << (12 - 4 * i) | byte >> 4 << (28 - 4 * i); }
constexpr uint32_t take_pair(uint32_t word, int i) {
  return (word >> (12 - 4 * i) & 15u) | (word >> (28 - 4 * i) & 15u) << 4;
}

constexpr size_t dense_bytes(int out, int in) {
  return size_t(tiles(out, kDenseRows)) * tiles(in, kDenseColumns) * kTileBytes;
}
constexpr size_t mxfp4_code_bytes(int out, int in) {
  return size_t(tiles(out, kMxfp4Rows)) * tiles(in, kMxfp4Columns) * kTileBytes;
}
constexpr size_t mxfp4_scale_bytes(int out, int in) {
  return size_t(tiles(out, kMxfp4Rows)) * tiles(in, kMxfp4Columns) * kTileScales;
}

// weight [out, in] <-> tiled. `in` is a multiple of 32.
// On the host, the reference for the kernels of prepare.cu, which do the same on the device:
void dense_to_kernel(const bf16* weight, int out, int in, RowOrder order, bf16* tiled);
void dense_to_checkpoint(const bf16* tiled, int out, int in, RowOrder order, bf16* weight);

// blocks [out, in / 32, 16] of one expert <-> tiled codes; scales [out, in / 32] <-> tiled scales.
void codes_to_kernel(const uint8_t* blocks, int out, int in, uint8_t* codes);
void codes_to_checkpoint(const uint8_t* codes, int out, int in, uint8_t* blocks);
void scales_to_kernel(const uint8_t* scales, int out, int in, uint8_t* tiled);
void scales_to_checkpoint(const uint8_t* tiled, int out, int in, uint8_t* scales);

}  // namespace gptoss::layout
