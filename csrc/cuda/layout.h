// Kernel form: weights in the order in which a warp reads them. Lossless, and `*_to_checkpoint` is the inverse.
//
// A dot product may add its columns in any order as long as both factors agree. So a lane does not hold the
// columns that the mma fragment names, but neighbouring ones, loaded 16 bytes at a time; lane = 4 g + t.
//
// Dense (bf16), tiles of 16 rows x 32 columns, 1 KiB each, [out / 16][in / 32]:
//   16 bytes at 512 h + 16 lane = row g + 8 h, columns 8 t .. 8 t + 7.
// MXFP4, tiles of 32 rows x 64 columns, [experts][out / 32][in / 64]:
//   codes, 1 KiB: 8 bytes at 512 h + 16 lane + 8 k = row 16 h + 8 k + g, columns 16 t .. 16 t + 15; in each word
//   of 8 codes, codes 0, 2, 4, 6 are the nibbles of the low half from the top down, 1, 3, 5, 7 those of the high
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
void dense_to_kernel(const bf16* weight, int out, int in, RowOrder order, bf16* tiled);
void dense_to_checkpoint(const bf16* tiled, int out, int in, RowOrder order, bf16* weight);

// blocks [out, in / 32, 16], scales [out, in / 32] of one expert <-> codes and scales, tiled.
void mxfp4_to_kernel(const uint8_t* blocks, const uint8_t* scales, int out, int in, uint8_t* codes, uint8_t* tiled);
void mxfp4_to_checkpoint(const uint8_t* codes, const uint8_t* tiled, int out, int in, uint8_t* blocks, uint8_t* scales);

}  // namespace gptoss::layout
