// The grouped MXFP4 GEMM: 32 rows of one expert's matrix times the tokens that chose it.
//
// The weights are the M operand of mma.m16n8k16 and come from device memory straight into registers, each byte
// read once by one warp; tokens are the N operand, eight to a tile. A block's warps share the columns: warp w
// takes chunks w, w + kWarps, ... and the partial sums are added in the order of the warps. So an output's
// additions have one order, whatever the number of tokens beside it.
#pragma once

#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU::mxfp4 {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRows = layout::kMxfp4Rows;
constexpr int kTokenTile = 8;
constexpr int kDepth = 3;  // chunks whose loads are in flight together

// Decoded weights are 2^32 times too small, so that scales up to 160 (6 * 2^33) fit the bf16 multiplier below;
// the sums are put right at the end.
constexpr float kUnshift = 4294967296.0f;
constexpr int kLargestScale = 160;

// An expert's matrix in kernel form.
struct Matrix {
  const uint8_t* codes;   // [out / 32][in / 64] tiles of 1 KiB
  const uint8_t* scales;  // [out / 32][in / 64] tiles of 64 bytes
  int in;
};

// Pair `p` of a word of 8 codes as bf16, 2^126 times too small: e2m1's exponent and mantissa bits dropped into
// the low end of bf16's exponent and the top of its mantissa; e2m1's subnormal 0.5 is a subnormal there as well.
__device__ __forceinline__ uint32_t decode_pair(uint32_t word, int p) {
  const uint32_t w = word << (4 * p);
  return (w & 0x80008000u) | (w >> 6 & 0x01c001c0u);
}

// 2^(scale - 127) * 2^126 / 2^32, twice.
__device__ __forceinline__ uint32_t multiplier(uint32_t scale) { return ((scale + 94u) << 7) * 0x00010001u; }

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// A lane's codes and scales of kDepth chunks of a tile row: chunks first, first + kWarps, ...
struct Loads {
  const uint8_t* codes;
  const uint2* scales;
  int chunks;
  uint4 code[kDepth][2];
  uint2 scale[kDepth];  // of both blocks; a byte for each of rows g, g + 8, g + 16, g + 24

  __device__ __forceinline__ Loads(const Matrix& m, int tile_row) : chunks(layout::tiles(m.in, layout::kMxfp4Columns)) {
    const int lane = lane_id(), g = lane / 4;
    const size_t tile = size_t(tile_row) * chunks;
    codes = m.codes + tile * layout::kTileBytes + 16 * lane;
    scales = reinterpret_cast<const uint2*>(m.scales + tile * layout::kTileScales) + g;
  }
  __device__ __forceinline__ void start(int first) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int chunk = first + d * kWarps;
      if (chunk >= chunks) continue;
      code[d][0] = ptx::load_stream(codes + size_t(chunk) * layout::kTileBytes);
      code[d][1] = ptx::load_stream(codes + size_t(chunk) * layout::kTileBytes + 512);
      scale[d] = scales[chunk * (layout::kTileScales / 8)];
    }
  }
};

// Adds this warp's chunks to acc[h][n]: the mma result tile of rows 16 h .. 16 h + 15 and tokens 8 n .. 8 n + 7.
// `token[n]` is the row of the activations that this lane's column of tile n holds, or null. `started`: the first
// loads are under way.
template <int kTiles>
__device__ __forceinline__ void accumulate(Loads& loads, bool started, int in, const bf16* const (&token)[kTiles],
                                           float (&acc)[2][kTiles][4]) {
  const int t = lane_id() % 4, chunks = loads.chunks;
  auto& code = loads.code;
  auto& scale = loads.scale;
  for (int first = warp_id(); first < chunks; first += kDepth * kWarps) {
    if (!started || first != warp_id()) loads.start(first);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int chunk = first + d * kWarps;
      if (chunk >= chunks) break;
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const int column = chunk * layout::kMxfp4Columns + block * kMxfp4Block;
        uint32_t x[kTiles][4];
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            x[n][i] = token[n] && column < in
                          ? *reinterpret_cast<const uint32_t*>(token[n] + column + layout::fragment_column(t, i))
                          : 0u;
        const uint32_t scales = block == 0 ? scale[d].x : scale[d].y;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t upper = word_of(code[d][h], block), lower = word_of(code[d][h], 2 + block);
          const uint32_t upper_scale = multiplier(scales >> (16 * h) & 255u);
          const uint32_t lower_scale = multiplier(scales >> (16 * h + 8) & 255u);
#pragma unroll
          for (int step = 0; step < 2; ++step) {  // 16 of the 32 columns
            const uint32_t a[4] = {
                ptx::multiply_bf16(decode_pair(upper, 2 * step), upper_scale),
                ptx::multiply_bf16(decode_pair(lower, 2 * step), lower_scale),
                ptx::multiply_bf16(decode_pair(upper, 2 * step + 1), upper_scale),
                ptx::multiply_bf16(decode_pair(lower, 2 * step + 1), lower_scale),
            };
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              const uint32_t b[2] = {x[n][2 * step], x[n][2 * step + 1]};
              ptx::mma(acc[h][n], a, b);
            }
          }
        }
      }
    }
  }
}

template <int kTiles>
constexpr size_t sum_bytes() {
  return sizeof(float) * kWarps * kRows * (kTokenTile * kTiles + 1);
}

// Adds the warps' tiles in order. Afterwards sums[row * (8 kTiles + 1) + token] holds the block's result in all
// threads' sight; `sums` has sum_bytes<kTiles>() bytes. The odd row length keeps a column's rows in different banks.
template <int kTiles>
__device__ __forceinline__ void add_warps(const float (&acc)[2][kTiles][4], float* sums) {
  constexpr int kStride = kTokenTile * kTiles + 1;
  const int lane = lane_id(), t = lane % 4, g = lane / 4;
  float* mine = sums + warp_id() * kRows * kStride;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) mine[(16 * h + g + 8 * (i / 2)) * kStride + 8 * n + 2 * t + i % 2] = acc[h][n][i];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kStride; i += kThreads) {
    float total = sums[i];
    for (int warp = 1; warp < kWarps; ++warp) total += sums[warp * kRows * kStride + i];
    sums[i] = total * kUnshift;
  }
  __syncthreads();
}

// The `nth` expert that has tokens, or -1; every lane of every warp gets it. start [experts + 1].
__device__ __forceinline__ int nth_active(const int32_t* start, int experts, int nth) {
  for (int first = 0; first < experts; first += kWarpSize) {
    const int e = first + lane_id();
    uint32_t active = __ballot_sync(kAllLanes, e < experts && start[e + 1] > start[e]);
    if (nth < __popc(active)) {
      for (; nth > 0; --nth) active &= active - 1;
      return first + __ffs(static_cast<int>(active)) - 1;
    }
    nth -= __popc(active);
  }
  return -1;
}

}  // namespace gptoss::GPTOSS_GPU::mxfp4
