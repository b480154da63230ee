// The tiled GEMM of prompts: 128 rows of a matrix times up to 8 kTiles tokens, one block of four warps.
//
// As in the decoding kernels the weights are the M operand and tokens the N operand, but a block goes through all
// columns with one accumulator, and its warps share the tokens: warp w holds rows 64 h + 16 w .. 64 h + 16 w + 15 of
// the block, h = 0 and 1, for all tokens. Columns come 64 at a time through a few stages of shared memory: weights in
// kernel form (gemm_weights.cuh), tokens as rows of 128 bytes in the 128-byte swizzle, which ldmatrix and wgmma both
// read without bank conflicts.
//
// Two main loops do the same sums: mma.sync, whose stages cp.async fills, and on sm_90a wgmma, whose tensor cores read
// decoded weights from registers and tokens from shared memory while the warps decode the next weights, which bulk
// copies bring. Tokens stay with cp.async there: an expert's are rows gathered from all over, which tiles of a tensor
// map can be from sm_100 on only. A matrix whose rows end in the first half of a block, as 2880 = 22 x 128 + 64 do,
// costs that half only.
//
// An output's additions run over the columns in order, whatever the tile: its bits do not depend on the tokens
// beside it.
#pragma once

#include "core/error.h"
#include "cuda/bulk.cuh"
#include "cuda/dense.cuh"
#include "cuda/gemm_weights.cuh"
#include "cuda/layout.h"
#include "cuda/lora.cuh"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"
#include "cuda/wgmma.cuh"
#include "model/ops.h"

namespace gptoss::GPTOSS_GPU::gemm {

constexpr int kRowUnits = 8;  // of a token's 64 columns
constexpr int kRowBytes = kRowUnits * kUnit;

// Place of a token's 16-byte unit (PTX ISA, "128B swizzle").
__device__ __forceinline__ int swizzled(int token, int unit) { return unit ^ token % 8; }

// Token tiles of a block, where there are few tokens, some, or many. More than some leave mma.sync too few registers;
// wgmma wants many, but for an expert that has few tokens a tile of them would be mostly empty.
constexpr int kFewTiles = 4, kSomeTiles = 8, kManyTiles = 16;

// How many halves of the block have rows of a matrix with `out` of them.
__device__ __forceinline__ int halves_of(int out, int block_row) { return block_row * kRows + kHalfRows < out ? 2 : 1; }

// Shared memory of a block: the stages, each the tokens (at a multiple of 1024 bytes) and then the warps' weights;
// then an mbarrier a stage.
template <typename Weights, int kTiles>
struct Shape {
  static constexpr int kTokens = 8 * kTiles;
  static constexpr int kTokenBytes = kTokens * kRowBytes;
  static constexpr int kStageBytes = (kTokenBytes + kWarps * Weights::kStageBytes + 1023) / 1024 * 1024;
  static constexpr size_t bytes(bool wgmma) {
    return (wgmma ? Weights::kWgmmaStages : Weights::kStages) * (kStageBytes + sizeof(ptx::Mbarrier));
  }
};

// Half h of the block's rows and token tile n: lane 4 g + t holds rows g (0, 1) and g + 8 (2, 3) of first_row(h),
// tokens 2 t and 2 t + 1.
template <int kTiles>
using Sums = float[2][kTiles][4];

// A block's way through the columns, of one main loop or the other.
template <typename Weights, int kTiles, bool kWgmma>
struct Pipeline {
  using S = Shape<Weights, kTiles>;
  static constexpr int kStages = kWgmma ? Weights::kWgmmaStages : Weights::kStages;
  static constexpr int kCopies = S::kTokens * kRowUnits / kThreads;  // of tokens, a thread and stage

  const Weights& weights;
  int in, chunks;
  const bf16* x;
  unsigned char* memory;
  // This thread copies one unit of each of its tokens, which lies at place[k] in x in the first chunk; or zeros.
  int unit, place_in_stage;
  uint32_t place[kCopies];  // in units
  static constexpr uint32_t kZeros = 0xffffffffu;

  template <typename RowOf>
  __device__ __forceinline__ Pipeline(const Weights& w, int columns, const bf16* tokens_of, RowOf&& row_of)
      : weights(w),
        in(columns),
        chunks(layout::tiles(columns, kColumns)),
        x(tokens_of),
        memory(shared_memory<unsigned char>()) {
    const int thread = static_cast<int>(threadIdx.x), token = thread / kRowUnits;
    unit = thread % kRowUnits;
    place_in_stage = token * kRowBytes + kUnit * swizzled(token, unit);
#pragma unroll
    for (int k = 0; k < kCopies; ++k) {
      const int row = row_of(token + k * (kThreads / kRowUnits));
      place[k] = row < 0 ? kZeros : static_cast<uint32_t>(row) * static_cast<uint32_t>(in / 8) + unit;
    }
  }

  __device__ __forceinline__ unsigned char* tokens(int chunk) const {
    return memory + chunk % kStages * S::kStageBytes;
  }
  __device__ __forceinline__ unsigned char* warp_weights(int chunk) const {
    return tokens(chunk) + S::kTokenBytes + Weights::template place<kWgmma>();
  }
  // Its phases are the chunks of the stage; a phase ends when the chunk's weights are there.
  __device__ __forceinline__ ptx::Mbarrier* landed(int chunk) const {
    return reinterpret_cast<ptx::Mbarrier*>(memory + kStages * S::kStageBytes) + chunk % kStages;
  }

  // Starts copying a chunk; an empty group after the last, so that waits count alike.
  __device__ __forceinline__ void fetch(int chunk) const {
    if (chunk < chunks) {
      if constexpr (kWgmma)
        weights.copy_bulk(warp_weights(chunk), chunk, landed(chunk));
      else
        weights.copy(warp_weights(chunk), chunk);
      unsigned char* to = tokens(chunk) + place_in_stage;
      const bool inside = chunk * kColumns + 8 * unit < in;
#pragma unroll
      for (int k = 0; k < kCopies; ++k) {
        const bool there = inside && place[k] != kZeros;
        ptx::copy_async(to + k * (kThreads / kRowUnits * kRowBytes),
                        there ? x + size_t{8} * place[k] + chunk * kColumns : x, there);
      }
    }
    ptx::commit_copies();
  }

  // Adds one chunk to the sums by mma.sync.
  template <int kHalves>
  __device__ __forceinline__ void add(int chunk, Sums<kTiles>& sums) const {
    const int lane = lane_id();
    const auto packed = Weights::template read<false>(warp_weights(chunk));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[2][2][4];
      Weights::fragments(packed, half, a);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int token = 8 * n + lane % 8;
        uint32_t b[4];  // 8 columns each
        ptx::load_matrices(b, tokens(chunk) + token * kRowBytes + kUnit * swizzled(token, 4 * half + lane / 8));
        const uint32_t steps[2][2] = {{b[0], b[1]}, {b[2], b[3]}};
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          ptx::mma(sums[h][n], a[h][0], steps[0]);
          ptx::mma(sums[h][n], a[h][1], steps[1]);
        }
      }
    }
  }

  template <int kHalves>
  __device__ __forceinline__ void run(Sums<kTiles>& sums) const {
    for (int chunk = 0; chunk < kStages - 1; ++chunk) fetch(chunk);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::wait_copies<kStages - 2>();
      __syncthreads();  // everybody's part of this chunk is here, and everybody is done with the one before
      fetch(chunk + kStages - 1);
      add<kHalves>(chunk, sums);
    }
  }

  // wgmma multiplies one half of a chunk while the other is decoded: the two have registers of their own, because it
  // reads them until it is waited for. It reads the chunk before until the middle of this one, so one chunk fewer is on
  // its way than above.
  //
  // The fence before the barrier does two things (PTX ISA, "Async proxy" and "Proxy-preserved base causality order"):
  // the tokens that cp.async wrote by the generic proxy come before wgmma reads them by the asynchronous one, and the
  // weights of chunk - 2 that this thread has read come before bulk copies overwrite them. What bulk copies bring needs
  // none: their completion is a fence by itself, seen by whoever waits on the mbarrier. Nobody misses a phase, because
  // the next one of a stage begins after a barrier that all reach past their wait.
  template <int kHalves>
  __device__ __forceinline__ void run_wgmma(Sums<kTiles>& sums) const {
    if (threadIdx.x == 0)
      for (int stage = 0; stage < kStages; ++stage) ptx::mbarrier_init(landed(stage), kWarps);
    ptx::fence_async_proxy();
    __syncthreads();
    for (int chunk = 0; chunk < kStages - 2; ++chunk) fetch(chunk);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      ptx::wait_copies<kStages - 3>();
      ptx::fence_async_proxy();
      __syncthreads();  // everybody's tokens of this chunk are here, and everybody is done with chunk - 2
      fetch(chunk + kStages - 2);
      ptx::mbarrier_wait(landed(chunk), chunk / kStages % 2);
      const auto packed = Weights::template read<true>(warp_weights(chunk));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[2][2][4];
        Weights::fragments(packed, half, a);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
          for (int h = 0; h < kHalves; ++h)
            ptx::wgmma(sums[h], a[h][step], ptx::matrix_descriptor(tokens(chunk), 32 * (2 * half + step)));
        ptx::wgmma_commit();
        ptx::wgmma_wait<1>();
      }
    }
    ptx::wgmma_wait<0>();
  }
};

// Whether kernels of so many tiles are ever launched on the architecture being compiled for.
template <int kTiles>
__device__ __forceinline__ constexpr bool is_used() {
  return ptx::has_wgmma_code() || kTiles != kManyTiles;
}

// The block's sums in shared memory, a row of tokens for each of its rows: for what would be too much code for every
// one of a thread's sums. All threads call it.
template <int kTiles>
constexpr int kSumStride = 8 * kTiles + 1;
template <int kTiles>
__device__ __forceinline__ float* lay_out(const Sums<kTiles>& sums) {
  auto* laid = shared_memory<float>() + lane_id() / 4 * kSumStride<kTiles> + 2 * (lane_id() % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        laid[(first_row(h) + 8 * (i / 2)) * kSumStride<kTiles> + 8 * n + i % 2] = sums[h][n][i];
  __syncthreads();
  return shared_memory<float>();
}

// Adds what the adapters of the block's first `tokens` tokens give to its sums, token n being `place_of(n)`'s.
template <int kTiles, typename PlaceOf>
__device__ __forceinline__ void add_adapters(const Lora& lora, Sums<kTiles>& sums, int block_row, int out, int tokens,
                                             PlaceOf&& place_of) {
  if (!lora.matrices) return;
  add_lora(lora, lay_out<kTiles>(sums), kRows, kSumStride<kTiles>, tokens, out, place_of,
           [&](int r) { return block_row * kRows + r; });
  const auto* laid = shared_memory<float>() + lane_id() / 4 * kSumStride<kTiles> + 2 * (lane_id() % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[h][n][i] = laid[(first_row(h) + 8 * (i / 2)) * kSumStride<kTiles> + 8 * n + i % 2];
  __syncthreads();
}

// sums = the block's rows of the matrix times kTokens rows of x [., in]: `row_of(i)` is the row of token i, or -1 where
// there is none. All threads call it; the stages are free for them afterwards.
template <int kTiles, typename Weights, typename RowOf>
__device__ __forceinline__ void multiply(const Weights& weights, int halves, int in, const bf16* x, RowOf&& row_of,
                                         Sums<kTiles>& sums) {
  static_assert(Shape<Weights, kTiles>::bytes(kTiles == kManyTiles) >= sizeof(float) * kRows * kSumStride<kTiles>,
                "the sums find room where the stages were");
  if constexpr (ptx::has_wgmma_code())
    if (ptx::has_wgmma()) {
      const Pipeline<Weights, kTiles, true> pipeline(weights, in, x, row_of);
      halves == 2 ? pipeline.template run_wgmma<2>(sums) : pipeline.template run_wgmma<1>(sums);
    }
  if constexpr (ptx::has_mma_code() && kTiles != kManyTiles)
    if (!ptx::has_wgmma()) {
      const Pipeline<Weights, kTiles, false> pipeline(weights, in, x, row_of);
      halves == 2 ? pipeline.template run<2>(sums) : pipeline.template run<1>(sums);
    }
  ptx::wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[h][n][i] *= Weights::kScale;
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

// Calls f with a tag of the token tiles to take: fewer when the more would mostly be empty. Below three tiles of 64 an
// expert, or a matrix, half a tile of 128 for nothing costs more than decoding the weights once for 64 tokens.
template <typename F>
void with_tiles(bool wgmma, int tokens, int groups, F&& f) {
  if (tokens < 48 * groups) return f(dense::Tiles<kFewTiles>{});
  if (wgmma && tokens >= 192 * groups) return f(dense::Tiles<kManyTiles>{});
  f(dense::Tiles<kSomeTiles>{});
}

// Places of tokens are counted in 16-byte units by 32 bits.
inline void check_size(const char* op, int rows, int width) {
  CHECK(int64_t{rows} * width / 8 < UINT32_MAX, op, ": ", rows, " rows of ", width,
        " are more than the GPU kernels count", "; lower max_num_batched_tokens");
}

// The most tiles that `assignments` can make among `experts`.
constexpr int most_tiles(int assignments, int experts, int tokens) {
  return assignments / tokens + (assignments < experts ? assignments : experts);
}

}  // namespace gptoss::GPTOSS_GPU::gemm
