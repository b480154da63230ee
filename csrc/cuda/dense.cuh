// The dense bf16 GEMM: 16 rows of a matrix times up to 8 kTiles tokens, one block.
//
// As in mxfp4.cuh: weights are the M operand and go from device memory into registers once, tokens are the N
// operand, and a block's warps share the columns, their sums added in the order of the warps.
#pragma once

#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU::dense {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRows = layout::kDenseRows;
constexpr int kTokenTile = 8;
constexpr int kDepth = 4;  // chunks whose loads are in flight together

// Two neighbouring activations as a pair of bf16.
__device__ __forceinline__ uint32_t load_pair(const bf16* from) { return *reinterpret_cast<const uint32_t*>(from); }
__device__ __forceinline__ uint32_t load_pair(const float* from) {
  const float2 v = *reinterpret_cast<const float2*>(from);
  return ptx::pack_bf16(v.x, v.y);
}

// A lane's weights of kDepth chunks of a tile row: chunks first, first + kWarps, ...
struct Loads {
  const uint8_t* tiles;
  int chunks;
  uint4 weight[kDepth][2];

  __device__ __forceinline__ Loads(const bf16* tiled, int in, int tile_row) : chunks(in / layout::kDenseColumns) {
    tiles = reinterpret_cast<const uint8_t*>(tiled) + size_t(tile_row) * chunks * layout::kTileBytes + 16 * lane_id();
  }
  __device__ __forceinline__ void start(int first) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int chunk = first + d * kWarps;
      if (chunk >= chunks) continue;
      weight[d][0] = ptx::load_stream(tiles + size_t(chunk) * layout::kTileBytes);
      weight[d][1] = ptx::load_stream(tiles + size_t(chunk) * layout::kTileBytes + 512);
    }
  }
};

// Adds this warp's chunks of 32 columns to acc[n]: rows of the tile times tokens 8 n .. 8 n + 7. `token[n]` is the
// row of the activations that this lane's column of tile n holds, or null. The first loads have been started.
template <typename X, int kTiles>
__device__ __forceinline__ void accumulate(Loads& loads, const X* const (&token)[kTiles], float (&acc)[kTiles][4]) {
  const int t = lane_id() % 4, chunks = loads.chunks;
  auto& weight = loads.weight;
  for (int first = warp_id(); first < chunks; first += kDepth * kWarps) {
    if (first != warp_id()) loads.start(first);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int chunk = first + d * kWarps;
      if (chunk >= chunks) break;
      const uint32_t a[2][4] = {{weight[d][0].x, weight[d][1].x, weight[d][0].y, weight[d][1].y},
                                {weight[d][0].z, weight[d][1].z, weight[d][0].w, weight[d][1].w}};
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        uint32_t b[2][2] = {};
        if (token[n])
#pragma unroll
          for (int i = 0; i < 4; ++i)
            b[i / 2][i % 2] = load_pair(token[n] + chunk * layout::kDenseColumns + layout::fragment_column(t, i));
        ptx::mma(acc[n], a[0], b[0]);
        ptx::mma(acc[n], a[1], b[1]);
      }
    }
  }
}

template <int kTiles>
constexpr size_t sum_bytes() {
  return sizeof(float) * kWarps * kRows * (kTokenTile * kTiles + 1);
}

// Adds the warps' tiles in order: afterwards sums[row * (8 kTiles + 1) + token] is the block's result.
template <int kTiles>
__device__ __forceinline__ void add_warps(const float (&acc)[kTiles][4], float* sums) {
  constexpr int kStride = kTokenTile * kTiles + 1;
  const int lane = lane_id(), t = lane % 4, g = lane / 4;
  float* mine = sums + warp_id() * kRows * kStride;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) mine[(g + 8 * (i / 2)) * kStride + 8 * n + 2 * t + i % 2] = acc[n][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kStride; i += kThreads) {
    float total = sums[i];
    for (int warp = 1; warp < kWarps; ++warp) total += sums[warp * kRows * kStride + i];
    sums[i] = total;
  }
  __syncthreads();
}

// The whole product of one block: rows of the tile row of `loads`, whose first weights are on their way, and tokens
// [first, first + 8 kTiles) of `rows`.
template <int kTiles, typename X>
__device__ __forceinline__ float* multiply(Loads& loads, int in, const X* x, int first, int rows) {
  const X* token[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int row = first + kTokenTile * n + lane_id() / 4;
    token[n] = row < rows ? x + size_t(row) * in : nullptr;
  }
  float acc[kTiles][4] = {};
  accumulate(loads, token, acc);
  auto* sums = shared_memory<float>();
  add_warps(acc, sums);
  return sums;
}

// The same from the start. It waits for the previous kernel once the first weights, which no kernel writes, are on
// their way.
template <int kTiles, typename X>
__device__ __forceinline__ float* multiply(const bf16* tiled, int in, int tile_row, const X* x, int first, int rows) {
  Loads loads(tiled, in, tile_row);
  loads.start(warp_id());
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  return multiply<kTiles>(loads, in, x, first, rows);
}

// How many tiles of eight tokens a block takes at once, for a step of `rows` rows.
constexpr int tiles_for(int rows) { return rows <= 8 ? 1 : rows <= 16 ? 2 : rows <= 32 ? 4 : 8; }

// Calls f with std::integral_constant-like tag of tiles_for(rows).
template <int kTiles>
struct Tiles {
  static constexpr int value = kTiles;
};
template <typename F>
void with_tiles(int rows, F&& f) {
  switch (tiles_for(rows)) {
    case 1:
      return f(Tiles<1>{});
    case 2:
      return f(Tiles<2>{});
    case 4:
      return f(Tiles<4>{});
    default:
      return f(Tiles<8>{});
  }
}

}  // namespace gptoss::GPTOSS_GPU::dense
