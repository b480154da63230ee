#include "cuda/layout.h"

#include <cstring>

namespace gptoss::layout {
namespace {

// Calls visit(row, column, offset): 8 values of the matrix from (row, column) on, 16 bytes of the tiled form.
template <typename Visit>
void each_dense_piece(int out, int in, RowOrder order, Visit visit) {
  const int across = tiles(in, kDenseColumns);
  for (int tile_row = 0; tile_row < tiles(out, kDenseRows); ++tile_row)
    for (int chunk = 0; chunk < across; ++chunk)
      for (int h = 0; h < 2; ++h)
        for (int lane = 0; lane < 32; ++lane)
          visit(source_row(tile_row * kDenseRows + lane / 4 + 8 * h, order), chunk * kDenseColumns + 8 * (lane % 4),
                (size_t(tile_row) * across + chunk) * kTileBytes + 512 * h + 16 * lane);
}

// The same for MXFP4: 16 codes from (row, column) on, 8 bytes of the tiled form.
template <typename Visit>
void each_mxfp4_piece(int out, int in, Visit visit) {
  const int across = tiles(in, kMxfp4Columns);
  for (int tile_row = 0; tile_row < tiles(out, kMxfp4Rows); ++tile_row)
    for (int chunk = 0; chunk < across; ++chunk)
      for (int h = 0; h < 2; ++h)
        for (int lane = 0; lane < 32; ++lane)
          for (int k = 0; k < 2; ++k)
            visit(tile_row * kMxfp4Rows + 16 * h + 8 * k + lane / 4, chunk * kMxfp4Columns + 16 * (lane % 4),
                  (size_t(tile_row) * across + chunk) * kTileBytes + 512 * h + 16 * lane + 8 * k);
}

// Where the scale of (row, block of 32 columns) lies.
size_t scale_offset(int row, int block, int in) {
  const size_t tile = size_t(row / kMxfp4Rows) * tiles(in, kMxfp4Columns) + block / 2;
  const int place = row % kMxfp4Rows;
  return tile * kTileScales + 4 * (2 * (place % 8) + block % 2) + place / 8;
}

// Bit position of code i of 8 in a word of the tiled form; in the checkpoint it is 4 i.
constexpr int tiled_bit(int i) { return (i % 2 ? 28 : 12) - 4 * (i / 2); }

uint32_t word_to_kernel(uint32_t word) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) result |= (word >> (4 * i) & 15u) << tiled_bit(i);
  return result;
}

uint32_t word_to_checkpoint(uint32_t word) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i) result |= (word >> tiled_bit(i) & 15u) << (4 * i);
  return result;
}

}  // namespace

void dense_to_kernel(const bf16* weight, int out, int in, RowOrder order, bf16* tiled) {
  std::memset(tiled, 0, dense_bytes(out, in));
  each_dense_piece(out, in, order, [&](int row, int column, size_t offset) {
    if (row < out) std::memcpy(tiled + offset / sizeof(bf16), weight + size_t(row) * in + column, 16);
  });
}

void dense_to_checkpoint(const bf16* tiled, int out, int in, RowOrder order, bf16* weight) {
  each_dense_piece(out, in, order, [&](int row, int column, size_t offset) {
    if (row < out) std::memcpy(weight + size_t(row) * in + column, tiled + offset / sizeof(bf16), 16);
  });
}

void mxfp4_to_kernel(const uint8_t* blocks, const uint8_t* scales, int out, int in, uint8_t* codes, uint8_t* tiled) {
  const int row_blocks = in / kMxfp4Block;
  std::memset(codes, 0, mxfp4_code_bytes(out, in));
  std::memset(tiled, 127, mxfp4_scale_bytes(out, in));  // of what is missing: 1
  each_mxfp4_piece(out, in, [&](int row, int column, size_t offset) {
    if (row >= out || column >= in) return;
    uint32_t words[2];
    std::memcpy(words, blocks + (size_t(row) * in + column) / 2, 8);
    for (uint32_t& word : words) word = word_to_kernel(word);
    std::memcpy(codes + offset, words, 8);
  });
  for (int row = 0; row < out; ++row)
    for (int block = 0; block < row_blocks; ++block)
      tiled[scale_offset(row, block, in)] = scales[size_t(row) * row_blocks + block];
}

void mxfp4_to_checkpoint(const uint8_t* codes, const uint8_t* tiled, int out, int in, uint8_t* blocks,
                         uint8_t* scales) {
  const int row_blocks = in / kMxfp4Block;
  each_mxfp4_piece(out, in, [&](int row, int column, size_t offset) {
    if (row >= out || column >= in) return;
    uint32_t words[2];
    std::memcpy(words, codes + offset, 8);
    for (uint32_t& word : words) word = word_to_checkpoint(word);
    std::memcpy(blocks + (size_t(row) * in + column) / 2, words, 8);
  });
  for (int row = 0; row < out; ++row)
    for (int block = 0; block < row_blocks; ++block)
      scales[size_t(row) * row_blocks + block] = tiled[scale_offset(row, block, in)];
}

}  // namespace gptoss::layout
