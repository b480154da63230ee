// The tiled GEMM of prompts: 32 kWarps rows of a matrix times up to 8 kTiles tokens, one block.
//
// As in the decoding kernels the weights are the M operand of mma.m16n8k16 and tokens the N operand, but a block
// goes through all columns with one accumulator, and its warps share the tokens: warp w holds rows 32 w .. 32 w + 31
// of the block for all tokens. Columns come 64 at a time through kStages buffers in shared memory, filled by
// cp.async: weights in kernel form, each lane's pieces copied and read by that lane alone; tokens as rows of 128
// bytes, whose 16-byte units are exchanged in odd rows so that a warp's reads meet all banks.
//
// An output's additions run over the columns in order, whatever the tile: its bits do not depend on the tokens
// beside it.
#pragma once

#include "cuda/layout.h"
#include "cuda/mxfp4.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"
#include "model/ops.h"

namespace gptoss::GPTOSS_GPU::gemm {

constexpr int kColumns = 64;  // of a stage
constexpr int kStages = 3;
constexpr int kWarpRows = 32;
constexpr int kUnit = 16;     // bytes of a copy
constexpr int kRowUnits = 8;  // of a token's 64 columns
constexpr int kRowBytes = kRowUnits * kUnit;

// Place of a token's 16-byte unit: units that lanes read together lie in different banks.
__device__ __forceinline__ int swizzled(int token, int unit) { return unit ^ (token & 1 ? 5 : 0); }

// bf16 weights. A warp's stage: [row tile of 16][chunk of 32 columns] tiles of 1 KiB.
struct DenseWeights {
  const bf16* tiled;
  int out, in;

  static constexpr int kStageBytes = 4 * layout::kTileBytes;  // of a warp
  static constexpr float kScale = 1.0f;

  // Where a lane's columns of one half of the stage lie among the token's units.
  static __device__ __forceinline__ int unit(int half, int t) { return 4 * half + t; }

  // This lane's pieces of the warp's 32 rows, from row tile 2 `rows`, of columns 64 `chunk` and on.
  __device__ __forceinline__ void copy(unsigned char* to, int rows, int chunk) const {
    const int lane = lane_id(), chunks = in / layout::kDenseColumns;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int tile_row = 2 * rows + h, column = 2 * chunk + half;
        const bool there = tile_row < layout::tiles(out, layout::kDenseRows) && column < chunks;
        const auto* from = reinterpret_cast<const unsigned char*>(tiled) +
                           (there ? (size_t(tile_row) * chunks + column) * layout::kTileBytes + kUnit * lane : 0);
        unsigned char* place = to + (2 * h + half) * layout::kTileBytes + kUnit * lane;
        ptx::copy_async(place, from, there);
        ptx::copy_async(place + 512, from + (there ? 512 : 0), there);
      }
  }

  // The A fragments of half a stage: [row tile][step of 16 columns].
  static __device__ __forceinline__ void fragments(const unsigned char* stage, int half, uint32_t (&a)[2][2][4]) {
    const int lane = lane_id();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const unsigned char* tile = stage + (2 * h + half) * layout::kTileBytes + kUnit * lane;
      const uint4 upper = *reinterpret_cast<const uint4*>(tile), lower = *reinterpret_cast<const uint4*>(tile + 512);
      a[h][0][0] = upper.x, a[h][0][1] = lower.x, a[h][0][2] = upper.y, a[h][0][3] = lower.y;
      a[h][1][0] = upper.z, a[h][1][1] = lower.z, a[h][1][2] = upper.w, a[h][1][3] = lower.w;
    }
  }
};

// One expert's MXFP4 weights. A warp's stage: a tile of 1 KiB of codes and its 64 scales.
struct Mxfp4Weights {
  const uint8_t* codes;
  const uint8_t* scales;
  int out, in;

  static constexpr int kStageBytes = layout::kTileBytes + layout::kTileScales;
  static constexpr float kScale = mxfp4::kUnshift;

  static __device__ __forceinline__ int unit(int half, int t) { return 2 * t + half; }

  __device__ __forceinline__ void copy(unsigned char* to, int rows, int chunk) const {
    const int lane = lane_id(), chunks = layout::tiles(in, layout::kMxfp4Columns);
    const bool there = rows < layout::tiles(out, layout::kMxfp4Rows);
    const size_t tile = there ? size_t(rows) * chunks + chunk : 0;
    const uint8_t* from = codes + tile * layout::kTileBytes + kUnit * lane;
    ptx::copy_async(to + kUnit * lane, from, there);
    ptx::copy_async(to + kUnit * lane + 512, from + 512, there);
    if (lane < layout::kTileScales / kUnit)
      ptx::copy_async(to + layout::kTileBytes + kUnit * lane, scales + tile * layout::kTileScales + kUnit * lane,
                      there);
  }

  static __device__ __forceinline__ void fragments(const unsigned char* stage, int half, uint32_t (&a)[2][2][4]) {
    const int lane = lane_id(), g = lane / 4, t = lane % 4;
    const uint32_t scale = reinterpret_cast<const uint32_t*>(stage + layout::kTileBytes)[2 * g + t / 2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Of 16 bytes, the first 8 are row g's codes, the others row g + 8's.
      const auto* words = reinterpret_cast<const uint32_t*>(stage + 512 * h + kUnit * lane);
      const uint32_t upper = words[half], lower = words[2 + half];
      const uint32_t upper_scale = mxfp4::multiplier(scale >> (16 * h) & 255u);
      const uint32_t lower_scale = mxfp4::multiplier(scale >> (16 * h + 8) & 255u);
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

// Shared memory of a block: the stages, each the warps' weights and then the tokens, and the tokens' rows.
template <typename Weights, int kWarps, int kTiles>
struct Shape {
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kTokens = 8 * kTiles;
  static constexpr int kWeightBytes = kWarps * Weights::kStageBytes;
  static constexpr int kStageBytes = kWeightBytes + kTokens * kRowBytes;
  static constexpr size_t kBytes = size_t(kStages) * kStageBytes + kTokens * sizeof(int);
};

// Row tile h (16 rows) and token tile n: lane 4 g + t holds rows g (0, 1) and g + 8 (2, 3), tokens 2 t and 2 t + 1.
template <int kTiles>
using Sums = float[2][kTiles][4];

// acc = rows [32 kWarps `block_row`, ...) of the matrix times kTokens rows of x [., in]: `row_of(i)` is the row of
// token i, or -1 where there is none. All threads call it; shared memory is free for them afterwards.
template <typename Weights, int kWarps, int kTiles, typename RowOf>
__device__ __forceinline__ void multiply(const Weights& w, int block_row, const bf16* x, RowOf&& row_of,
                                         Sums<kTiles>& acc) {
  using S = Shape<Weights, kWarps, kTiles>;
  auto* memory = shared_memory<unsigned char>();
  auto* rows = reinterpret_cast<int*>(memory + kStages * S::kStageBytes);
  const int thread = static_cast<int>(threadIdx.x), lane = lane_id(), t = lane % 4, g = lane / 4;
  for (int i = thread; i < S::kTokens; i += S::kThreads) rows[i] = row_of(i);
  __syncthreads();

  const int chunks = layout::tiles(w.in, kColumns);
  const auto stage_of = [&](int chunk) { return memory + chunk % kStages * S::kStageBytes; };
  const auto fetch = [&](int chunk) {
    if (chunk < chunks) {
      unsigned char* stage = stage_of(chunk);
      w.copy(stage + warp_id() * Weights::kStageBytes, kWarps * block_row + warp_id(), chunk);
      for (int i = thread; i < S::kTokens * kRowUnits; i += S::kThreads) {
        const int token = i / kRowUnits, unit = i % kRowUnits, column = chunk * kColumns + 8 * unit;
        const bool there = rows[token] >= 0 && column < w.in;
        ptx::copy_async(stage + S::kWeightBytes + token * kRowBytes + kUnit * swizzled(token, unit),
                        x + (there ? size_t(rows[token]) * w.in + column : 0), there);
      }
    }
    ptx::commit_copies();  // an empty group at the end, so that the waits below count alike
  };
#pragma unroll
  for (int chunk = 0; chunk < kStages - 1; ++chunk) fetch(chunk);

  for (int chunk = 0; chunk < chunks; ++chunk) {
    ptx::wait_copies<kStages - 2>();
    __syncthreads();  // everybody's part of this chunk is here, and everybody is done with the chunk before
    fetch(chunk + kStages - 1);
    const unsigned char* stage = stage_of(chunk);
    const unsigned char* tokens = stage + S::kWeightBytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][2][4];
      Weights::fragments(stage + warp_id() * Weights::kStageBytes, half, a);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int token = 8 * n + g;
        const uint4 v = *reinterpret_cast<const uint4*>(tokens + token * kRowBytes +
                                                        kUnit * swizzled(token, Weights::unit(half, t)));
        const uint32_t b[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          ptx::mma(acc[h][n], a[h][0], b[0]);
          ptx::mma(acc[h][n], a[h][1], b[1]);
        }
      }
    }
  }
  ptx::wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[h][n][i] *= Weights::kScale;
}

// An expert's tokens of the prompts' part, and which tile of them a block takes.
struct ExpertTile {
  int expert;  // -1: none
  int first;   // place in the order of assignments
  int end;
};

// Of [first, end), which an expert's ascending assignments fill, the first place that is not below `limit`.
__device__ __forceinline__ int first_from(const int32_t* order, int first, int end, int limit) {
  if (limit == 0) return first;
  while (first < end) {
    const int middle = (first + end) / 2;
    if (order[middle] < limit)
      first = middle + 1;
    else
      end = middle;
  }
  return first;
}

// The `nth` tile of `tokens` assignments each, counted through the experts; assignments below `skip` belong to rows
// that are decoded. All lanes of a warp call it.
__device__ __forceinline__ ExpertTile nth_tile(const ExpertGroups& groups, int experts, int skip, int tokens, int nth) {
  for (int base = 0; base < experts; base += kWarpSize) {
    const int e = base + lane_id();
    int first = 0, end = 0;
    if (e < experts) {
      end = groups.start[e + 1];
      first = first_from(groups.order, groups.start[e], end, skip);
    }
    const int own = layout::tiles(end - first, tokens);
    int before = own;  // of the lanes up to this one
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, before, distance);
      if (lane_id() >= distance) before += other;
    }
    const uint32_t reached = __ballot_sync(kAllLanes, before > nth);
    if (reached != 0) {
      const int lane = __ffs(static_cast<int>(reached)) - 1;
      const int tile = nth - __shfl_sync(kAllLanes, before - own, lane);
      const int from = __shfl_sync(kAllLanes, first, lane) + tile * tokens;
      return {base + lane, from, __shfl_sync(kAllLanes, end, lane)};
    }
    nth -= __shfl_sync(kAllLanes, before, kWarpSize - 1);
  }
  return {-1, 0, 0};
}

// Whether tiles of 128 tokens are filled well enough, or tiles of 32 are better.
constexpr bool wants_wide_tiles(int assignments, int experts) { return assignments >= 48 * experts; }

// The most tiles that `assignments` can make among `experts`.
constexpr int most_tiles(int assignments, int experts, int tokens) {
  return assignments / tokens + (assignments < experts ? assignments : experts);
}

}  // namespace gptoss::GPTOSS_GPU::gemm
