#include "cuda/layout.h"

#include <cstring>

namespace gptoss::layout {
namespace {

// Calls visit(row, column, offset): a pair of values of the matrix, and its place among those of the tiled form.
template <typename Visit>
void each_dense_pair(int out, int in, RowOrder order, Visit visit) {
  const int across = tiles(in, kDenseColumns);
  for (int tile_row = 0; tile_row < tiles(out, kDenseRows); ++tile_row)
    for (int chunk = 0; chunk < across; ++chunk)
      for (int h = 0; h < 2; ++h)
        for (int lane = 0; lane < 32; ++lane)
          for (int i = 0; i < 4; ++i)
            visit(source_row(tile_row * kDenseRows + lane / 4 + 8 * h, order),
                  chunk * kDenseColumns + fragment_column(lane % 4, i),
                  ((size_t(tile_row) * across + chunk) * kTileBytes + 512 * h + 16 * lane + 4 * i) / sizeof(bf16));
}

// The same for MXFP4: four pairs of codes in block `block` of `row`, as one word of the tiled form.
template <typename Visit>
void each_mxfp4_word(int out, int in, Visit visit) {
  const int across = tiles(in, kMxfp4Columns);
  for (int tile_row = 0; tile_row < tiles(out, kMxfp4Rows); ++tile_row)
    for (int chunk = 0; chunk < across; ++chunk)
      for (int h = 0; h < 2; ++h)
        for (int lane = 0; lane < 32; ++lane)
          for (int k = 0; k < 2; ++k)
            for (int b = 0; b < 2; ++b)
              visit(tile_row * kMxfp4Rows + 16 * h + 8 * k + lane / 4, 2 * chunk + b, lane % 4,
                    (size_t(tile_row) * across + chunk) * kTileBytes + 512 * h + 16 * lane + 8 * k + 4 * b);
}

// Where the scale of (row, block of 32 columns) lies.
size_t scale_offset(int row, int block, int in) {
  const size_t tile = size_t(row / kMxfp4Rows) * tiles(in, kMxfp4Columns) + block / 2;
  const int place = row % kMxfp4Rows;
  return tile * kTileScales + 4 * (2 * (place % 8) + block % 2) + place / 8;
}

}  // namespace

void dense_to_kernel(const bf16* weight, int out, int in, RowOrder order, bf16* tiled) {
  std::memset(tiled, 0, dense_bytes(out, in));
  each_dense_pair(out, in, order, [&](int row, int column, size_t place) {
    if (row < out) std::memcpy(tiled + place, weight + size_t(row) * in + column, 2 * sizeof(bf16));
  });
}

void dense_to_checkpoint(const bf16* tiled, int out, int in, RowOrder order, bf16* weight) {
  each_dense_pair(out, in, order, [&](int row, int column, size_t place) {
    if (row < out) std::memcpy(weight + size_t(row) * in + column, tiled + place, 2 * sizeof(bf16));
  });
}

void codes_to_kernel(const uint8_t* blocks, int out, int in, uint8_t* codes) {
  const int row_blocks = in / kMxfp4Block;
  std::memset(codes, 0, mxfp4_code_bytes(out, in));
  each_mxfp4_word(out, in, [&](int row, int block, int t, size_t place) {
    if (row >= out || block >= row_blocks) return;
    const uint8_t* from = blocks + (size_t(row) * row_blocks + block) * kMxfp4BlockBytes;
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= place_pair(from[fragment_column(t, i) / 2], i);
    std::memcpy(codes + place, &word, sizeof(word));
  });
}

void codes_to_checkpoint(const uint8_t* codes, int out, int in, uint8_t* blocks) {
  const int row_blocks = in / kMxfp4Block;
  each_mxfp4_word(out, in, [&](int row, int block, int t, size_t place) {
    if (row >= out || block >= row_blocks) return;
    uint32_t word;
    std::memcpy(&word, codes + place, sizeof(word));
    uint8_t* to = blocks + (size_t(row) * row_blocks + block) * kMxfp4BlockBytes;
    for (int i = 0; i < 4; ++i) to[fragment_column(t, i) / 2] = static_cast<uint8_t>(take_pair(word, i));
  });
}

void scales_to_kernel(const uint8_t* scales, int out, int in, uint8_t* tiled) {
  const int row_blocks = in / kMxfp4Block;
  std::memset(tiled, 127, mxfp4_scale_bytes(out, in));  // of what is missing: 1
  for (int row = 0; row < out; ++row)
    for (int block = 0; block < row_blocks; ++block)
      tiled[scale_offset(row, block, in)] = scales[size_t(row) * row_blocks + block];
}

void scales_to_checkpoint(const uint8_t* tiled, int out, int in, uint8_t* scales) {
  const int row_blocks = in / kMxfp4Block;
  for (int row = 0; row < out; ++row)
    for (int block = 0; block < row_blocks; ++block)
      scales[size_t(row) * row_blocks + block] = tiled[scale_offset(row, block, in)];
}

}  // namespace gptoss::layout
