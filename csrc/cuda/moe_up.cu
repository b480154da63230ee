// h = SwiGLU(W_e x + b_e). Decoding: a block computes 32 rows of gate_up, 16 outputs, for one expert's tokens.
// Grid: (row tiles, experts that can have tokens). Prompts: the tiled GEMM, 128 rows, 64 outputs.
// Grid: (row tiles, tiles of tokens, counted through the experts).
#include "cuda/backend.h"
#include "cuda/gemm.cuh"
#include "cuda/launch.h"
#include "cuda/lora.cuh"
#include "cuda/mxfp4.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

struct UpKernelParams {
  const bf16* input;  // [rows, in]
  ExpertGroups groups;
  ExpertLinear layer;  // kernel form
  float limit;
  int chosen;
  int decoded;   // assignments of rows that are decoded: those below this number
  bool mixed;    // there are others too
  bf16* output;  // [rows * chosen, out / 2]
  Lora lora;
};

__device__ __forceinline__ bf16 swiglu(float gate_in, float up_in, float limit) {
  // NaN must stay NaN, which fminf would drop.
  const float gate = gate_in > limit ? limit : gate_in;
  const float up = up_in > limit ? limit : up_in < -limit ? -limit : up_in;
  return to_bf16(gate / (1.0f + expf(-1.702f * gate)) * (up + 1.0f));
}

// kTiles tiles of eight tokens at a time.
template <int kTiles>
__global__ void __launch_bounds__(mxfp4::kThreads, mxfp4::kBlocks<kTiles>) moe_up_kernel(UpKernelParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int expert = mxfp4::nth_active(p.groups.start, p.layer.experts, static_cast<int>(blockIdx.y));
  if (expert < 0) return;
  const int first = p.groups.start[expert];
  const int end = p.mixed ? gemm::first_from(p.groups.order, first, p.groups.start[expert + 1], p.decoded)
                          : p.groups.start[expert + 1];
  if (first == end) return;  // its tokens are all of prompts
  const int tile_row = static_cast<int>(blockIdx.x), lane = lane_id();
  const mxfp4::Matrix matrix{
      p.layer.blocks + expert * layout::mxfp4_code_bytes(p.layer.out, p.layer.in),
      p.layer.scales + expert * layout::mxfp4_scale_bytes(p.layer.out, p.layer.in),
      p.layer.in,
  };
  const bf16* bias = p.layer.bias + size_t(expert) * p.layer.out;
  const int inner = p.layer.out / 2;
  constexpr int kTokens = mxfp4::kTokenTile * kTiles;
  auto* sums = shared_memory<float>();
  mxfp4::Loads<kTiles> loads(matrix, tile_row);
  loads.start();

  for (int from = first; from < end; from += kTokens) {
    uint32_t token[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      // A column without a token gets another's numbers, which nobody reads.
      const int place = min(from + mxfp4::kTokenTile * n + lane / 4, end - 1);
      token[n] = static_cast<uint32_t>(p.groups.order[place] / p.chosen * p.layer.in);
    }
    float acc[2][kTiles][4] = {};
    mxfp4::accumulate(loads, matrix.in, p.input, token, acc);
    if (from + kTokens < end) loads.start();  // for the next tokens
    mxfp4::add_warps(acc, sums);
    add_lora(
        p.lora, sums, mxfp4::kRows, kTokens + 1, end - from < kTokens ? end - from : kTokens, p.layer.out,
        [&](int n) {
          const int assignment = p.groups.order[from + n];
          return LoraPlace{assignment / p.chosen, assignment, expert};
        },
        [&](int r) { return tile_row * mxfp4::kRows + r; });

    // One thread makes one output of one token from its gate row and its up row.
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * mxfp4::kRows / 2; i += mxfp4::kThreads) {
      const int pair = i % (mxfp4::kRows / 2), n = i / (mxfp4::kRows / 2);
      const int row = tile_row * mxfp4::kRows + 2 * pair;
      if (from + n >= end || row >= p.layer.out) continue;
      const float* sum = sums + 2 * pair * (kTokens + 1) + n;
      const float gate_in = sum[0] + to_float(bias[row]), up_in = sum[kTokens + 1] + to_float(bias[row + 1]);
      p.output[size_t(p.groups.order[from + n]) * inner + row / 2] = swiglu(gate_in, up_in, p.limit);
    }
    __syncthreads();  // before the next tokens' sums
  }
}

template <int kTiles>
using PromptShape = gemm::Shape<gemm::Mxfp4Weights, kTiles>;

// Left alone, the compiler saves registers where there are few tiles, until it spills.
template <int kTiles>
__global__ void __launch_bounds__(gemm::kThreads, kTiles == gemm::kFewTiles ? 2 : 0)
    prompt_up_kernel(UpKernelParams p) {
  using S = PromptShape<kTiles>;
  if constexpr (!gemm::is_used<kTiles>()) return;
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const auto tile = gemm::nth_tile(p.groups, p.layer.experts, p.decoded, S::kTokens, static_cast<int>(blockIdx.y));
  if (tile.expert < 0) return;
  const int block_row = static_cast<int>(blockIdx.x), t = lane_id() % 4, g = lane_id() / 4;
  const gemm::Mxfp4Weights weights(p.layer, tile.expert, block_row);
  gemm::Sums<kTiles> sums = {};
  gemm::multiply<kTiles>(
      weights, gemm::halves_of(p.layer.out, block_row), p.layer.in, p.input,
      [&](int i) { return tile.first + i < tile.end ? p.groups.order[tile.first + i] / p.chosen : -1; }, sums);
  gemm::add_adapters<kTiles>(p.lora, sums, block_row, p.layer.out, min(S::kTokens, tile.end - tile.first), [&](int n) {
    const int assignment = p.groups.order[tile.first + n];
    return LoraPlace{assignment / p.chosen, assignment, tile.expert};
  });

  // Gate rows are even and up rows odd, so neighbours in g have one each: of two tokens, the even lane takes the
  // first and the odd lane the second. The results are gathered in shared memory to leave in whole rows.
  constexpr int kOutputs = gemm::kRows / 2, kStride = kOutputs + 8;
  auto* gathered = shared_memory<bf16>();
  const bf16* bias = p.layer.bias + size_t(tile.expert) * p.layer.out;
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = gemm::first_row(h) + 8 * high + g / 2 * 2;  // gate's, of the block's
      const int whole = block_row * gemm::kRows + row;
      const bool there = whole < p.layer.out;
      const float gate_bias = there ? to_float(bias[whole]) : 0.0f, up_bias = there ? to_float(bias[whole + 1]) : 0.0f;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float first = sums[h][n][2 * high], second = sums[h][n][2 * high + 1];
        const float other = __shfl_xor_sync(kAllLanes, g % 2 == 0 ? second : first, 4);
        const float gate = (g % 2 == 0 ? first : other) + gate_bias, up = (g % 2 == 0 ? other : second) + up_bias;
        const int token = 8 * n + 2 * t + g % 2;
        gathered[token * kStride + row / 2] = swiglu(gate, up, p.limit);
      }
    }
  __syncthreads();
  const int inner = p.layer.out / 2;
  for (int i = static_cast<int>(threadIdx.x); i < S::kTokens * kOutputs / 8; i += gemm::kThreads) {
    const int token = i / (kOutputs / 8), unit = i % (kOutputs / 8), column = block_row * kOutputs + 8 * unit;
    if (tile.first + token < tile.end && column < inner)
      *reinterpret_cast<uint4*>(p.output + size_t(p.groups.order[tile.first + token]) * inner + column) =
          *reinterpret_cast<const uint4*>(gathered + token * kStride + 8 * unit);
  }
}

template <int kTiles>
void run_prompt(const UpKernelParams& p, int assignments, bool wgmma, Stream stream) {
  using S = PromptShape<kTiles>;
  const dim3 grid(layout::tiles(p.layer.out, gemm::kRows), gemm::most_tiles(assignments, p.layer.experts, S::kTokens));
  launch({"moe_up", grid, gemm::kThreads, S::bytes(wgmma), stream}, prompt_up_kernel<kTiles>, p);
}

}  // namespace

void GpuBackend::moe_up(const MoeUpParams& p) {
  const int assignments = p.rows * p.chosen, decoded = p.decode_rows * p.chosen;
  const bool mixed = decoded > 0 && decoded < assignments;
  const UpKernelParams params{p.input.b16, p.groups, p.gate_up,    p.limit, p.chosen,
                              decoded,     mixed,    p.output.b16, p.lora};
  if (decoded < assignments) {
    gemm::check_size("moe_up", p.rows, p.gate_up.in);
    gemm::with_tiles(uses_wgmma(), assignments - decoded, p.gate_up.experts, [&](auto tiles) {
      run_prompt<decltype(tiles)::value>(params, assignments - decoded, uses_wgmma(), stream_);
    });
  }
  if (decoded == 0) return;
  const dim3 grid(layout::tiles(p.gate_up.out, layout::kMxfp4Rows), std::min(p.gate_up.experts, assignments));
  mxfp4::with_tiles(p.decode_rows, p.chosen, p.gate_up.experts, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    launch({"moe_up", grid, mxfp4::kThreads, mxfp4::sum_bytes<kTiles>(), stream_}, moe_up_kernel<kTiles>, params);
  });
}

}  // namespace gptoss::GPTOSS_GPU
