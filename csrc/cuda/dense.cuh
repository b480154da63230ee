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
// Chunks of a warp whose weights are in flight: as many as the sums leave registers for, with two blocks an SM.
template <int kTiles>
constexpr int kDepth = kTiles <= 2   ? 4
                       : kTiles == 4 ? 3
                                     : 2;

// This lane's activations of 32 columns, the fragments of both steps: from a row of bf16 in the order of decoded rows
// (layout::decoded_pair), or from one of floats in its own.
__device__ __forceinline__ uint4 load_columns(const bf16* row, int chunk) {
  return *reinterpret_cast<const uint4*>(row + chunk * layout::kDenseColumns + 8 * (lane_id() % 4));
}
__device__ __forceinline__ uint4 load_columns(const float* row, int chunk) {
  float2 v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    v[i] = *reinterpret_cast<const float2*>(row + chunk * layout::kDenseColumns +
                                            layout::fragment_column(lane_id() % 4, i));
  return make_uint4(ptx::pack_bf16(v[0].x, v[0].y), ptx::pack_bf16(v[1].x, v[1].y), ptx::pack_bf16(v[2].x, v[2].y),
                    ptx::pack_bf16(v[3].x, v[3].y));
}

// A lane's weights of some chunks of a tile row, a ring: slot d holds chunk w + (d + a multiple of kSlots) kWarps.
template <int kTiles>
struct Loads {
  static constexpr int kSlots = kDepth<kTiles>;
  const uint8_t* tiles;
  int chunks;
  uint4 weight[kSlots][2];

  __device__ __forceinline__ Loads(const bf16* tiled, int in, int tile_row) : chunks(in / layout::kDenseColumns) {
    tiles = reinterpret_cast<const uint8_t*>(tiled) + size_t(tile_row) * chunks * layout::kTileBytes + 16 * lane_id();
  }
  __device__ __forceinline__ void load(int slot, int chunk) {
    if (chunk >= chunks) return;
    weight[slot][0] = ptx::load_stream(tiles + size_t(chunk) * layout::kTileBytes);
    weight[slot][1] = ptx::load_stream(tiles + size_t(chunk) * layout::kTileBytes + 512);
  }
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int d = 0; d < kSlots; ++d) load(d, warp_id() + d * kWarps);
  }
};

// Adds this warp's chunks of 32 columns to acc[n]: rows of the tile times tokens 8 n .. 8 n + 7. `token[n]` is where
// the row that this lane's column of tile n holds begins in x. The first loads have been started. A slot of the ring is
// filled again as soon as its weights are spent, and activations come ahead, four token tiles at a time.
template <typename X, int kTiles>
__device__ __forceinline__ void accumulate(Loads<kTiles>& loads, const X* x, const uint32_t (&token)[kTiles],
                                           float (&acc)[kTiles][4]) {
  constexpr int kGroup = kTiles < 4 ? kTiles : 4;
  const int chunks = loads.chunks;
  uint4 next[kGroup];
  const auto fetch = [&](int chunk, int tile) {
#pragma unroll
    for (int n = 0; n < kGroup; ++n) next[n] = load_columns(x + token[tile + n], chunk);
  };
  fetch(min(warp_id(), chunks - 1), 0);
  for (int first = warp_id(); first < chunks; first += loads.kSlots * kWarps) {
#pragma unroll
    for (int d = 0; d < loads.kSlots; ++d) {
      const int chunk = first + d * kWarps;
      if (chunk >= chunks) break;
      const auto& w = loads.weight[d];
      const uint32_t a[2][4] = {{w[0].x, w[1].x, w[0].y, w[1].y}, {w[0].z, w[1].z, w[0].w, w[1].w}};
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += kGroup) {
        uint4 now[kGroup];
#pragma unroll
        for (int n = 0; n < kGroup; ++n) now[n] = next[n];
        // After the last chunk it comes once more, for nobody.
        const bool last = tile + kGroup == kTiles;
        fetch(last ? min(chunk + kWarps, chunks - 1) : chunk, last ? 0 : tile + kGroup);
#pragma unroll
        for (int n = 0; n < kGroup; ++n) {
          const uint32_t b[2][2] = {{now[n].x, now[n].y}, {now[n].z, now[n].w}};
          ptx::mma(acc[tile + n], a[0], b[0]);
          ptx::mma(acc[tile + n], a[1], b[1]);
        }
      }
      loads.load(d, chunk + loads.kSlots * kWarps);
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
__device__ __forceinline__ float* multiply(Loads<kTiles>& loads, int in, const X* x, int first, int rows) {
  uint32_t token[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    // A column without a token gets another's numbers, which nobody reads.
    token[n] = static_cast<uint32_t>(min(first + kTokenTile * n + lane_id() / 4, rows - 1) * in);
  }
  float acc[kTiles][4] = {};
  accumulate(loads, x, token, acc);
  auto* sums = shared_memory<float>();
  add_warps(acc, sums);
  return sums;
}

// The same from the start. It waits for the previous kernel once the first weights, which no kernel writes, are on
// their way.
template <int kTiles, typename X>
__device__ __forceinline__ float* multiply(const bf16* tiled, int in, int tile_row, const X* x, int first, int rows) {
  Loads<kTiles> loads(tiled, in, tile_row);
  loads.start();
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
