// The weights of the tiled GEMM: how those of 128 rows and 64 columns, a stage, get to shared memory and from there
// into the fragments of mma and wgmma.
//
// `copy` brings a warp's part by cp.async, every lane its pieces; `copy_bulk`, on sm_90a, by two bulk copies that lane
// 0 asks for, each of a run that is contiguous in kernel form. All lanes of all warps call them. Rows of tiles that the
// matrix lacks are zeros in the first way and whatever was there in the second: weights of a row meet the sums of that
// row alone, and these sums are nobody's. `place` is where in a stage a warp's part begins, in either way.
#pragma once

#include "cuda/bulk.cuh"
#include "cuda/layout.h"
#include "cuda/mxfp4.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"
#include "model/ops.h"

namespace gptoss::GPTOSS_GPU::gemm {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kRows = 128, kHalfRows = 64;
constexpr int kColumns = 64;  // of a stage
constexpr int kUnit = 16;     // bytes of a copy

// The first of this warp's 16 rows in half h of the block.
__device__ __forceinline__ int first_row(int h) { return kHalfRows * h + 16 * warp_id(); }

// bf16 weights. A warp's part of a stage: of each half of the block [chunk of 32 columns] tiles of 1 KiB.
struct DenseWeights {
  int chunks;                     // of 32 columns
  const unsigned char* tiles[2];  // of each half, this lane's place in the first tile of the warp's rows; null: no rows

  // Two blocks share an SM, of 49 KiB each where it has 100, of 96 KiB on Hopper.
  static constexpr int kStages = 2, kWgmmaStages = 3;
  static constexpr int kStageBytes = 4 * layout::kTileBytes;  // of a warp
  static constexpr float kScale = 1.0f;

  template <bool kBulk>
  static __device__ __forceinline__ int place() {
    return warp_id() * kStageBytes;
  }

  // Rows of `tile_row` and on for half h.
  __device__ __forceinline__ void set(int h, const Linear& layer, int tile_row) {
    chunks = layer.in / layout::kDenseColumns;
    const auto* first = reinterpret_cast<const unsigned char*>(layer.weight);
    tiles[h] = tile_row < layout::tiles(layer.out, layout::kDenseRows)
                   ? first + size_t(tile_row) * chunks * layout::kTileBytes + kUnit * lane_id()
                   : nullptr;
  }

  // This lane's pieces of columns 64 `chunk` and on.
  __device__ __forceinline__ void copy(unsigned char* to, int chunk) const {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = 2 * chunk + half;
        const bool there = tiles[h] != nullptr && column < chunks;
        const unsigned char* from = there ? tiles[h] + size_t(column) * layout::kTileBytes : tiles[0];
        unsigned char* place = to + (2 * h + half) * layout::kTileBytes + kUnit * lane_id();
        ptx::copy_async(place, from, there);
        ptx::copy_async(place + 512, from + (there ? 512 : 0), there);
      }
  }

  // The same, two neighbouring tiles at once; `landed` counts the bytes.
  __device__ __forceinline__ void copy_bulk(unsigned char* to, int chunk, ptx::Mbarrier* landed) const {
    const bool whole = 2 * chunk + 1 < chunks;
    if (lane_id() == 0) {
      const int bytes = whole ? 2 * layout::kTileBytes : layout::kTileBytes;
      ptx::mbarrier_expect(landed, bytes * ((tiles[0] != nullptr) + (tiles[1] != nullptr)));
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (tiles[h])
          ptx::copy_bulk(to + 2 * h * layout::kTileBytes, tiles[h] + 2 * size_t(chunk) * layout::kTileBytes, bytes,
                         landed);
    }
    if (whole) return;
    // 32 columns that the matrix lacks meet tokens that are zeros, but zero times what lies here may be NaN.
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<uint4*>(to + (2 * h + 1) * layout::kTileBytes + 512 * i + kUnit * lane_id()) =
            make_uint4(0, 0, 0, 0);
  }

  // What is read of a chunk before its first half: nothing, each half has bytes of its own.
  struct Packed {
    const unsigned char* stage;
  };
  template <bool kBulk>
  static __device__ __forceinline__ Packed read(const unsigned char* stage) {
    return {stage};
  }

  // The A fragments of 32 columns: [half of the block][step of 16 columns].
  static __device__ __forceinline__ void fragments(const Packed& packed, int half, uint32_t (&a)[2][2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const unsigned char* tile = packed.stage + (2 * h + half) * layout::kTileBytes + kUnit * lane_id();
      const uint4 upper = *reinterpret_cast<const uint4*>(tile), lower = *reinterpret_cast<const uint4*>(tile + 512);
      a[h][0][0] = upper.x, a[h][0][1] = lower.x, a[h][0][2] = upper.y, a[h][0][3] = lower.y;
      a[h][1][0] = upper.z, a[h][1][1] = lower.z, a[h][1][2] = upper.w, a[h][1][3] = lower.w;
    }
  }
};

// One expert's MXFP4 weights. A warp's part of a stage: of each half 512 bytes of codes, half a tile, and the tile's 64
// scales. Bulk copies bring whole tiles for the two warps that share them: of each half 1 KiB of codes, 64 scales.
struct Mxfp4Weights {
  const uint8_t* codes[2];   // of each half, this lane's place in the first tile of the warp's rows; null: no rows
  const uint8_t* scales[2];  // likewise, of lanes 0 to 3

  // Two blocks share an SM, of 39 KiB each where it has 100, of 84 KiB on Hopper.
  static constexpr int kStages = 3, kWgmmaStages = 4;
  static constexpr int kHalfBytes = layout::kTileBytes / 2 + layout::kTileScales;
  static constexpr int kBulkHalfBytes = layout::kTileBytes + layout::kTileScales;
  static constexpr int kStageBytes = 2 * kHalfBytes;
  static constexpr float kScale = mxfp4::kUnshift;

  __device__ __forceinline__ Mxfp4Weights(const ExpertLinear& layer, int expert, int block_row) {
    const int chunks = layout::tiles(layer.in, layout::kMxfp4Columns), lane = lane_id();
    const uint8_t* first = layer.blocks + expert * layout::mxfp4_code_bytes(layer.out, layer.in);
    const uint8_t* first_scale = layer.scales + expert * layout::mxfp4_scale_bytes(layer.out, layer.in);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int tile_row = (block_row * kRows + first_row(h)) / layout::kMxfp4Rows;
      const bool there = tile_row < layout::tiles(layer.out, layout::kMxfp4Rows);
      const size_t tile = size_t(tile_row) * chunks;
      codes[h] = there ? first + tile * layout::kTileBytes + 512 * (warp_id() % 2) + kUnit * lane : nullptr;
      scales[h] = there ? first_scale + tile * layout::kTileScales + kUnit * (lane % 4) : nullptr;
    }
  }

  static __device__ __forceinline__ int odd() { return warp_id() % 2; }
  template <bool kBulk>
  static __device__ __forceinline__ int place() {
    return kBulk ? warp_id() / 2 * (2 * kBulkHalfBytes) + 512 * odd() : warp_id() * kStageBytes;
  }

  __device__ __forceinline__ void copy(unsigned char* to, int chunk) const {
    const int lane = lane_id();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool there = codes[h] != nullptr;
      unsigned char* place = to + h * kHalfBytes + kUnit * lane;
      ptx::copy_async(place, there ? codes[h] + size_t(chunk) * layout::kTileBytes : codes[0], there);
      if (lane < layout::kTileScales / kUnit)
        ptx::copy_async(place + 512, there ? scales[h] + size_t(chunk) * layout::kTileScales : scales[0], there);
    }
  }

  // The even warp brings the tile's codes, the odd one its scales, which lie where the odd warp's codes end.
  __device__ __forceinline__ void copy_bulk(unsigned char* to, int chunk, ptx::Mbarrier* landed) const {
    if (lane_id() != 0) return;
    const int bytes = odd() ? layout::kTileScales : layout::kTileBytes;
    ptx::mbarrier_expect(landed, bytes * ((codes[0] != nullptr) + (codes[1] != nullptr)));
#pragma unroll
    for (int h = 0; h < 2; ++h)
      if (codes[h])
        ptx::copy_bulk(to + h * kBulkHalfBytes + 512 * odd(), (odd() ? scales[h] : codes[h]) + size_t(chunk) * bytes,
                       bytes, landed);
  }

  // A lane's codes and scales of both halves of a chunk. They share 16 bytes of a lane, which are read at once: a word
  // of each would meet every bank four times.
  struct Packed {
    uint4 code[2];   // of each half of the block: of 16 bytes, the first 8 are row g's codes, the others row g + 8's
    uint2 scale[2];  // of each half of the chunk: two low bytes for rows g and g + 8
  };
  template <bool kBulk>
  static __device__ __forceinline__ Packed read(const unsigned char* stage) {
    const int scales_at = kBulk ? layout::kTileBytes - 512 * odd() : 512;
    Packed packed;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const unsigned char* from = stage + h * (kBulk ? kBulkHalfBytes : kHalfBytes);
      packed.code[h] = reinterpret_cast<const uint4*>(from)[lane_id()];
      const uint2 both = reinterpret_cast<const uint2*>(from + scales_at)[lane_id() / 4];
      packed.scale[h] = make_uint2(both.x >> (16 * odd()), both.y >> (16 * odd()));
    }
    return packed;
  }

  static __device__ __forceinline__ void fragments(const Packed& packed, int half, uint32_t (&a)[2][2][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint32_t scale = half == 0 ? packed.scale[h].x : packed.scale[h].y;
      const uint32_t upper = mxfp4::word_of(packed.code[h], half), lower = mxfp4::word_of(packed.code[h], 2 + half);
      const uint32_t upper_scale = mxfp4::multiplier(scale & 255u), lower_scale = mxfp4::multiplier(scale >> 8 & 255u);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        a[h][step][0] = ptx::multiply_bf16(mxfp4::decode_pair(upper, 2 * step), upper_scale);
        a[h][step][1] = ptx::multiply_bf16(mxfp4::decode_pair(lower, 2 * step), lower_scale);
        a[h][step][2] = ptx::multiply_bf16(mxfp4::decode_pair(upper, 2 * step + 1), upper_scale);
        a[h][step][3] = ptx::multiply_bf16(mxfp4::decode_pair(lower, 2 * step + 1), lower_scale);
      }
    }
  }
};

}  // namespace gptoss::GPTOSS_GPU::gemm
