// h = SwiGLU(W_e x + b_e). A block computes 32 rows of gate_up, 16 outputs, for one expert's tokens.
// Grid: (row tiles, experts that can have tokens).
#include "cuda/backend.h"
#include "cuda/launch.h"
#include "cuda/mxfp4.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

struct UpKernelParams {
  const bf16* input;  // [rows, in]
  ExpertGroups groups;
  ExpertLinear layer;  // kernel form
  float limit;
  int chosen;
  bf16* output;  // [rows * chosen, out / 2]
};

// kTiles tiles of eight tokens at a time.
template <int kTiles>
__global__ void __launch_bounds__(mxfp4::kThreads) moe_up_kernel(UpKernelParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int expert = mxfp4::nth_active(p.groups.start, p.layer.experts, static_cast<int>(blockIdx.y));
  if (expert < 0) return;
  const int first = p.groups.start[expert], end = p.groups.start[expert + 1];
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

  for (int from = first; from < end; from += kTokens) {
    const bf16* token[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int place = from + mxfp4::kTokenTile * n + lane / 4;
      token[n] = place < end ? p.input + size_t(p.groups.order[place] / p.chosen) * p.layer.in : nullptr;
    }
    float acc[2][kTiles][4] = {};
    mxfp4::accumulate(matrix, tile_row, token, acc);
    mxfp4::add_warps(acc, sums);

    // One thread makes one output of one token from its gate row and its up row.
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * mxfp4::kRows / 2; i += mxfp4::kThreads) {
      const int pair = i % (mxfp4::kRows / 2), n = i / (mxfp4::kRows / 2);
      const int row = tile_row * mxfp4::kRows + 2 * pair;
      if (from + n >= end || row >= p.layer.out) continue;
      const float* sum = sums + 2 * pair * (kTokens + 1) + n;
      const float gate_in = sum[0] + to_float(bias[row]), up_in = sum[kTokens + 1] + to_float(bias[row + 1]);
      // NaN must stay NaN, which fminf would drop.
      const float gate = gate_in > p.limit ? p.limit : gate_in;
      const float up = up_in > p.limit ? p.limit : up_in < -p.limit ? -p.limit : up_in;
      const float h = gate / (1.0f + expf(-1.702f * gate)) * (up + 1.0f);
      p.output[size_t(p.groups.order[from + n]) * inner + row / 2] = to_bf16(h);
    }
    __syncthreads();  // before the next tokens' sums
  }
}

template <int kTiles>
void run(const UpKernelParams& p, dim3 grid, Stream stream) {
  launch({"moe_up", grid, mxfp4::kThreads, mxfp4::sum_bytes<kTiles>(), stream}, moe_up_kernel<kTiles>, p);
}

}  // namespace

void GpuBackend::moe_up(const MoeUpParams& p) {
  const UpKernelParams params{p.input.b16, p.groups, p.gate_up, p.limit, p.chosen, p.output.b16};
  const int assignments = p.rows * p.chosen;
  const dim3 grid(layout::tiles(p.gate_up.out, layout::kMxfp4Rows), std::min(p.gate_up.experts, assignments));
  if (p.rows <= 8) return run<1>(params, grid, stream_);
  if (p.rows <= 16) return run<2>(params, grid, stream_);
  run<4>(params, grid, stream_);
}

}  // namespace gptoss::GPTOSS_GPU
