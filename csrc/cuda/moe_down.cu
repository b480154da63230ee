// residual[r] += sum over r's experts of routing_weight (W_e h + b_e), in ascending order of expert.
//
// A block computes 32 rows for one expert's assignments and writes them to `partial`; the block that arrives last
// at its row tile adds what all experts left there, row by row in one fixed order. Grid: (row tiles, experts that
// can have tokens).
#include "cuda/backend.h"
#include "cuda/launch.h"
#include "cuda/mxfp4.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

struct DownKernelParams {
  const bf16* input;  // [rows * chosen, in], by assignment
  ExpertGroups groups;
  ExpertLinear layer;           // kernel form
  const float* routing_weight;  // [rows * chosen]
  int chosen;
  int rows;
  float* partial;     // [row tiles][rows * chosen][32]
  int32_t* owner;     // [row tiles][rows * chosen] the assignment's expert
  uint32_t* arrived;  // [row tiles], zero between launches
  float* residual;    // [rows, out]
};

template <int kTiles>
__global__ void __launch_bounds__(mxfp4::kThreads) moe_down_kernel(DownKernelParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int tile_row = static_cast<int>(blockIdx.x), lane = lane_id();
  const int assignments = p.rows * p.chosen;
  constexpr int kTokens = mxfp4::kTokenTile * kTiles;
  auto* sums = shared_memory<float>();
  float* partial = p.partial + size_t(tile_row) * assignments * mxfp4::kRows;
  int32_t* owner = p.owner + size_t(tile_row) * assignments;

  const int expert = mxfp4::nth_active(p.groups.start, p.layer.experts, static_cast<int>(blockIdx.y));
  if (expert >= 0) {
    const int first = p.groups.start[expert], end = p.groups.start[expert + 1];
    const mxfp4::Matrix matrix{
        p.layer.blocks + expert * layout::mxfp4_code_bytes(p.layer.out, p.layer.in),
        p.layer.scales + expert * layout::mxfp4_scale_bytes(p.layer.out, p.layer.in),
        p.layer.in,
    };
    const bf16* bias = p.layer.bias + size_t(expert) * p.layer.out;
    for (int from = first; from < end; from += kTokens) {
      const bf16* token[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const int place = from + mxfp4::kTokenTile * n + lane / 4;
        token[n] = place < end ? p.input + size_t(p.groups.order[place]) * p.layer.in : nullptr;
      }
      float acc[2][kTiles][4] = {};
      mxfp4::accumulate(matrix, tile_row, token, acc);
      mxfp4::add_warps(acc, sums);
      for (int i = static_cast<int>(threadIdx.x); i < kTokens * mxfp4::kRows; i += mxfp4::kThreads) {
        const int n = i / mxfp4::kRows, r = i % mxfp4::kRows, row = tile_row * mxfp4::kRows + r;
        if (from + n >= end || row >= p.layer.out) continue;
        const int assignment = p.groups.order[from + n];
        if (r == 0) owner[assignment] = expert;
        partial[size_t(assignment) * mxfp4::kRows + r] =
            p.routing_weight[assignment] * (sums[r * (kTokens + 1) + n] + to_float(bias[row]));
      }
      __syncthreads();  // before the next tokens' sums
    }
  }

  // Whoever comes last at this tile adds up.
  __threadfence();
  __syncthreads();
  auto* last = shared_memory<uint32_t>();
  if (threadIdx.x == 0) *last = atomicAdd(&p.arrived[tile_row], 1u) == gridDim.y - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  if (threadIdx.x == 0) atomicExch(&p.arrived[tile_row], 0u);

  // A warp adds one row's assignments: lane r of 32 holds output row r of the tile.
  const int out = tile_row * mxfp4::kRows + lane;
  for (int row = warp_id(); row < p.rows; row += mxfp4::kWarps) {
    if (out >= p.layer.out) continue;
    float total = 0.0f;
    for (int turn = 0, last_expert = -1; turn < p.chosen; ++turn) {
      int next = -1;  // the slot of the smallest expert not yet added
      for (int slot = 0; slot < p.chosen; ++slot) {
        const int expert_here = owner[row * p.chosen + slot];
        if (expert_here > last_expert && (next < 0 || expert_here < owner[row * p.chosen + next])) next = slot;
      }
      last_expert = owner[row * p.chosen + next];
      total += partial[size_t(row * p.chosen + next) * mxfp4::kRows + lane];
    }
    p.residual[size_t(row) * p.layer.out + out] += total;
  }
}

template <int kTiles>
void run(const DownKernelParams& p, dim3 grid, Stream stream) {
  launch({"moe_down", grid, mxfp4::kThreads, mxfp4::sum_bytes<kTiles>(), stream}, moe_down_kernel<kTiles>, p);
}

}  // namespace

void GpuBackend::moe_down(const MoeDownParams& p) {
  const int assignments = p.rows * p.chosen, tile_rows = layout::tiles(p.down.out, layout::kMxfp4Rows);
  const size_t partial_size = size_t(tile_rows) * assignments * layout::kMxfp4Rows;
  auto* partial = partial_.reserve<float>(partial_size + size_t(tile_rows) * assignments, stream_);
  const DownKernelParams params{
      p.input.b16,
      p.groups,
      p.down,
      p.routing_weight,
      p.chosen,
      p.rows,
      partial,
      reinterpret_cast<int32_t*>(partial + partial_size),
      counters_.reserve<uint32_t>(tile_rows, stream_),
      p.residual,
  };
  const dim3 grid(tile_rows, std::min(p.down.experts, assignments));
  if (p.rows <= 8) return run<1>(params, grid, stream_);
  if (p.rows <= 16) return run<2>(params, grid, stream_);
  run<4>(params, grid, stream_);
}

}  // namespace gptoss::GPTOSS_GPU
