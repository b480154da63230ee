// The grouped MXFP4 GEMM: 32 rows of one expert's matrix times the tokens that chose it.
//
// The weights are the M operand of mma.m16n8k16 and come from device memory straight into registers, each byte
// read once by one warp; tokens are the N operand, eight to a tile. A block's warps share the columns: warp w
// takes chunks w, w + kWarps, ... and the partial sums are added in the order of the warps. So an output's
// additions have one order, whatever the number of tokens beside it.
#pragma once

#include "cuda/dense.cuh"
#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU::mxfp4 {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRows = layout::kMxfp4Rows;
constexpr int kTokenTile = 8;
// Chunks of a warp whose weights are in flight, and blocks of an SM: all that the sums leave registers for.
template <int kTiles>
constexpr int kDepth = kTiles <= 2 ? 3 : 2;
template <int kTiles>
constexpr int kBlocks = kTiles == 1 ? 3 : 2;

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

// A lane's codes and scales of some chunks of a tile row, a ring: slot d holds chunk w + (d + a multiple of kSlots)
// kWarps.
template <int kTiles>
struct Loads {
  static constexpr int kSlots = kDepth<kTiles>;
  const uint8_t* codes;
  const uint2* scales;
  int chunks;
  uint4 code[kSlots][2];
  uint2 scale[kSlots];  // of both blocks; a byte for each of rows g, g + 8, g + 16, g + 24

  __device__ __forceinline__ Loads(const Matrix& m, int tile_row) : chunks(layout::tiles(m.in, layout::kMxfp4Columns)) {
    const int lane = lane_id(), g = lane / 4;
    const size_t tile = size_t(tile_row) * chunks;
    codes = m.codes + tile * layout::kTileBytes + 16 * lane;
    scales = reinterpret_cast<const uint2*>(m.scales + tile * layout::kTileScales) + g;
  }
  __device__ __forceinline__ void load(int slot, int chunk) {
    if (chunk >= chunks) return;
    code[slot][0] = ptx::load_stream(codes + size_t(chunk) * layout::kTileBytes);
    code[slot][1] = ptx::load_stream(codes + size_t(chunk) * layout::kTileBytes + 512);
    scale[slot] = scales[chunk * (layout::kTileScales / 8)];
  }
  __device__ __forceinline__ void start() {
#pragma unroll
    for (int d = 0; d < kSlots; ++d) load(d, warp_id() + d * kWarps);
  }
};

// This lane's activations of a block of 32 columns, its pairs of each token tile.
template <int kTiles>
struct Columns {
  uint32_t pair[kTiles][4];

  // `token[n]` is where the row that this lane's column of tile n holds begins in x.
  __device__ __forceinline__ void load(const bf16* x, const uint32_t (&token)[kTiles], int column) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        pair[n][i] =
            *reinterpret_cast<const uint32_t*>(x + token[n] + column + layout::fragment_column(lane_id() % 4, i));
  }
};

// Adds this warp's chunks to acc[h][n]: the mma result tile of rows 16 h .. 16 h + 15 and tokens 8 n .. 8 n + 7.
// `token` as above. The first loads have been started. A slot of the ring is filled again as soon as its weights are
// spent, and activations come a block of columns ahead.
template <int kTiles>
__device__ __forceinline__ void accumulate(Loads<kTiles>& loads, int in, const bf16* x, const uint32_t (&token)[kTiles],
                                           float (&acc)[2][kTiles][4]) {
  const int chunks = loads.chunks;
  Columns<kTiles> next;
  next.load(x, token, min(warp_id(), chunks - 1) * layout::kMxfp4Columns);
  for (int first = warp_id(); first < chunks; first += loads.kSlots * kWarps) {
#pragma unroll
    for (int d = 0; d < loads.kSlots; ++d) {
      const int chunk = first + d * kWarps;
      if (chunk >= chunks) break;
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const int column = chunk * layout::kMxfp4Columns + block * kMxfp4Block;
        if (column >= in) break;  // the last chunk may be a half
        const Columns<kTiles> now = next;
        // A block past the end may be any: nobody uses it.
        next.load(x, token,
                  min(block == 0 ? column + kMxfp4Block : column + kWarps * layout::kMxfp4Columns - kMxfp4Block,
                      in - kMxfp4Block));
        const uint32_t scales = block == 0 ? loads.scale[d].x : loads.scale[d].y;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint4& code = loads.code[d][h];
          const uint32_t upper = word_of(code, block), lower = word_of(code, 2 + block);
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
              const uint32_t b[2] = {now.pair[n][2 * step], now.pair[n][2 * step + 1]};
              ptx::mma(acc[h][n], a, b);
            }
          }
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

// How many tiles of eight tokens a block takes at once where `rows` rows choose so many experts each: an expert's share
// of the assignments with some to spare. What does not fit comes in a second turn; tiles left empty are multiplied all
// the same. The bits do not depend on it.
constexpr int tiles_for(int rows, int chosen, int experts) {
  const int assignments = rows * chosen;
  if (rows <= 8 || assignments <= 4 * experts) return 1;
  return rows <= 16 || assignments <= 12 * experts ? 2 : 4;
}
template <typename F>
void with_tiles(int rows, int chosen, int experts, F&& f) {
  switch (tiles_for(rows, chosen, experts)) {
    case 1:
      return f(dense::Tiles<1>{});
    case 2:
      return f(dense::Tiles<2>{});
    default:
      return f(dense::Tiles<4>{});
  }
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
