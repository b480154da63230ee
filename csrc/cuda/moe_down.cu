// residual[r] += sum over r's experts of routing_weight (W_e h + b_e), in ascending order of expert.
//
// Decoding: a block computes 32 rows for one expert's assignments and writes them to `partial`; the block that
// arrives last at its row tile adds what all experts left there, row by row in one fixed order. Grid: (row tiles,
// experts that can have tokens). Prompts: the tiled GEMM, then a kernel that adds.
#include "cuda/backend.h"
#include "cuda/gemm.cuh"
#include "cuda/launch.h"
#include "cuda/lora.cuh"
#include "cuda/mxfp4.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

struct DownKernelParams {
  const bf16* input;  // [rows * chosen, in], by assignment
  ExpertGroups groups;
  ExpertLinear layer;           // kernel form
  const float* routing_weight;  // [rows * chosen]
  int chosen;
  int rows;             // that are decoded: the first ones
  bool mixed;           // there are others too
  float* partial;       // [row tiles][rows * chosen][32]
  int32_t* owner;       // [row tiles][rows * chosen] the assignment's expert
  uint32_t* arrived;    // [row tiles], zero between launches
  float* residual;      // [rows, out]
  const int32_t* slot;  // see MoeDownParams
  const float* steering;
  Lora lora;
};

template <int kTiles>
__global__ void __launch_bounds__(mxfp4::kThreads, mxfp4::kBlocks<kTiles>) moe_down_kernel(DownKernelParams p) {
  const int tile_row = static_cast<int>(blockIdx.x), lane = lane_id();
  const int assignments = p.rows * p.chosen;
  constexpr int kTokens = mxfp4::kTokenTile * kTiles;
  auto* sums = shared_memory<float>();

  // moe_gate has ended before moe_up's blocks let this kernel start, so the groups may be read before the wait, and
  // the first weights be on their way.
  const int expert = mxfp4::nth_active(p.groups.start, p.layer.experts, static_cast<int>(blockIdx.y));
  if (expert < 0) {
    ptx::wait_for_previous_kernel();
    ptx::let_next_kernel_start();
  } else {
    const int first = p.groups.start[expert];
    const int end = p.mixed ? gemm::first_from(p.groups.order, first, p.groups.start[expert + 1], assignments)
                            : p.groups.start[expert + 1];
    const mxfp4::Matrix matrix{
        p.layer.blocks + expert * layout::mxfp4_code_bytes(p.layer.out, p.layer.in),
        p.layer.scales + expert * layout::mxfp4_scale_bytes(p.layer.out, p.layer.in),
        p.layer.in,
    };
    mxfp4::Loads<kTiles> loads(matrix, tile_row);
    loads.start();
    ptx::wait_for_previous_kernel();
    ptx::let_next_kernel_start();
    for (int from = first; from < end; from += kTokens) {
      uint32_t token[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        // A column without a token gets another's numbers, which nobody reads.
        const int place = min(from + mxfp4::kTokenTile * n + lane / 4, end - 1);
        token[n] = static_cast<uint32_t>(p.groups.order[place] * p.layer.in);
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
      for (int i = static_cast<int>(threadIdx.x); i < kTokens * mxfp4::kRows; i += mxfp4::kThreads) {
        const int n = i / mxfp4::kRows, r = i % mxfp4::kRows, row = tile_row * mxfp4::kRows + r;
        if (from + n >= end || row >= p.layer.out) continue;
        const int assignment = p.groups.order[from + n];
        const size_t part = size_t(tile_row) * assignments + assignment;
        if (r == 0) p.owner[part] = expert;
        p.partial[part * mxfp4::kRows + r] =
            p.routing_weight[assignment] *
            (sums[r * (kTokens + 1) + n] + to_float(p.layer.bias[size_t(expert) * p.layer.out + row]));
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
  const float* partial = p.partial + size_t(tile_row) * assignments * mxfp4::kRows;
  const int32_t* owner = p.owner + size_t(tile_row) * assignments;
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
    float result = p.residual[size_t(row) * p.layer.out + out] + total;
    if (p.steering && p.slot[row] >= 0) result += p.steering[size_t(p.slot[row]) * p.layer.out + out];
    p.residual[size_t(row) * p.layer.out + out] = result;
  }
}

constexpr int kSumThreads = 256;
template <int kTiles>
using PromptShape = gemm::Shape<gemm::Mxfp4Weights, kTiles>;

struct PromptDownParams {
  MoeDownParams op;
  float* partial;  // [assignments of prompts, out], already weighted
  int32_t* owner;  // [assignments of prompts] their experts
};

template <int kTiles>
__global__ void __launch_bounds__(gemm::kThreads, kTiles == gemm::kSomeTiles ? 3 : 2)
    prompt_down_kernel(PromptDownParams params) {
  using S = PromptShape<kTiles>;
  if constexpr (!gemm::is_used<kTiles>()) return;
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const MoeDownParams& p = params.op;
  const int skip = p.decode_rows * p.chosen;
  const auto tile = gemm::nth_tile(p.groups, p.down.experts, skip, S::kTokens, static_cast<int>(blockIdx.y));
  if (tile.expert < 0) return;
  const int block_row = static_cast<int>(blockIdx.x), t = lane_id() % 4, g = lane_id() / 4;
  const gemm::Mxfp4Weights weights(p.down, tile.expert, block_row);
  gemm::Sums<kTiles> sums = {};
  gemm::multiply<kTiles>(
      weights, gemm::halves_of(p.down.out, block_row), p.down.in, p.input.b16,
      [&](int i) { return tile.first + i < tile.end ? p.groups.order[tile.first + i] : -1; }, sums);
  gemm::add_adapters<kTiles>(p.lora, sums, block_row, p.down.out, min(S::kTokens, tile.end - tile.first), [&](int n) {
    const int assignment = p.groups.order[tile.first + n];
    return LoraPlace{assignment / p.chosen, assignment, tile.expert};
  });

  const bf16* bias = p.down.bias + size_t(tile.expert) * p.down.out;
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int place = tile.first + 8 * n + 2 * t + e;
      if (place >= tile.end) continue;
      const int assignment = p.groups.order[place];
      const float weight = p.routing_weight[assignment];
      if (block_row == 0 && warp_id() == 0 && g == 0) params.owner[assignment - skip] = tile.expert;
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int row = block_row * gemm::kRows + gemm::first_row(h) + 8 * high + g;
          if (row < p.down.out)
            params.partial[size_t(assignment - skip) * p.down.out + row] =
                weight * (sums[h][n][2 * high + e] + to_float(bias[row]));
        }
    }
}

// Adds a row's assignments in ascending order of their experts. One block a row.
__global__ void __launch_bounds__(kSumThreads) prompt_sum_kernel(PromptDownParams params) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const MoeDownParams& p = params.op;
  const int row = static_cast<int>(blockIdx.x), out = p.down.out;
  const float* partial = params.partial + size_t(row) * p.chosen * out;
  const int32_t* owner = params.owner + size_t(row) * p.chosen;
  float* residual = p.residual + size_t(p.decode_rows + row) * out;
  const float* steering = p.steering_of(p.decode_rows + row);
  for (int i = static_cast<int>(threadIdx.x); i < out; i += kSumThreads) {
    float total = 0.0f;
    for (int turn = 0, last = -1; turn < p.chosen; ++turn) {
      int next = -1;  // the slot of the smallest expert not yet added
      for (int slot = 0; slot < p.chosen; ++slot)
        if (owner[slot] > last && (next < 0 || owner[slot] < owner[next])) next = slot;
      last = owner[next];
      total += partial[size_t(next) * out + i];
    }
    residual[i] = steering ? residual[i] + total + steering[i] : residual[i] + total;
  }
}

template <int kTiles>
void run_prompt(const PromptDownParams& p, int assignments, bool wgmma, Stream stream) {
  using S = PromptShape<kTiles>;
  const ExpertLinear& layer = p.op.down;
  const dim3 grid(layout::tiles(layer.out, gemm::kRows), gemm::most_tiles(assignments, layer.experts, S::kTokens));
  launch({"moe_down", grid, gemm::kThreads, S::bytes(wgmma), stream}, prompt_down_kernel<kTiles>, p);
  launch({"moe_down", dim3(p.op.rows - p.op.decode_rows), kSumThreads, 0, stream}, prompt_sum_kernel, p);
}

}  // namespace

void GpuBackend::moe_down(const MoeDownParams& p) {
  const int assignments = p.decode_rows * p.chosen, tile_rows = layout::tiles(p.down.out, layout::kMxfp4Rows);
  const int prompt_assignments = (p.rows - p.decode_rows) * p.chosen;
  if (prompt_assignments > 0) {
    const size_t size = size_t(prompt_assignments) * p.down.out;
    auto* partial = partial_.reserve<float>(workspace::moe_down_prompt(p.down.out, prompt_assignments), stream_);
    const PromptDownParams params{p, partial, reinterpret_cast<int32_t*>(partial + size)};
    gemm::check_size("moe_down", p.rows * p.chosen, p.down.in);
    gemm::with_tiles(uses_wgmma(), prompt_assignments, p.down.experts, [&](auto tiles) {
      run_prompt<decltype(tiles)::value>(params, prompt_assignments, uses_wgmma(), stream_);
    });
  }
  if (assignments == 0) return;
  const size_t partial_size = size_t(tile_rows) * assignments * layout::kMxfp4Rows;
  auto* partial = partial_.reserve<float>(workspace::moe_down_decoded(p.down.out, assignments), stream_);
  const DownKernelParams params{
      p.input.b16,
      p.groups,
      p.down,
      p.routing_weight,
      p.chosen,
      p.decode_rows,
      prompt_assignments > 0,
      partial,
      reinterpret_cast<int32_t*>(partial + partial_size),
      counters_.reserve<uint32_t>(sizeof(uint32_t) * tile_rows, stream_),
      p.residual,
      p.slot,
      p.slot ? p.steering : nullptr,
      p.lora,
  };
  const dim3 grid(tile_rows, std::min(p.down.experts, assignments + prompt_assignments));
  mxfp4::with_tiles(p.decode_rows, p.chosen, p.down.experts, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    launch({"moe_down", grid, mxfp4::kThreads, mxfp4::sum_bytes<kTiles>(), stream_}, moe_down_kernel<kTiles>, params);
  });
}

}  // namespace gptoss::GPTOSS_GPU
