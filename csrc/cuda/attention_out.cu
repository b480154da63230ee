// residual += W x + b. Grid of either product: (row tiles, groups of tokens).
#include "cuda/backend.h"
#include "cuda/dense.cuh"
#include "cuda/gemm.cuh"
#include "cuda/lora.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

// `input` [decode_rows, in]: the op's own, or its rows in bf16 in the order of decoded rows.
template <int kTiles, typename X>
__global__ void __launch_bounds__(dense::kThreads) attention_out_kernel(AttentionOutParams p, const X* input) {
  constexpr int kTokens = dense::kTokenTile * kTiles;
  const int tile_row = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * kTokens;
  const Linear& w = p.projection;
  float* sums = dense::multiply<kTiles>(w.weight, w.in, tile_row, input, first, p.decode_rows);
  add_lora(
      p.lora, sums, dense::kRows, kTokens + 1, p.decode_rows - first < kTokens ? p.decode_rows - first : kTokens, w.out,
      [&](int n) { return LoraPlace{first + n, first + n, 0}; }, [&](int r) { return tile_row * dense::kRows + r; });
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * dense::kRows; i += dense::kThreads) {
    const int n = i / dense::kRows, r = i % dense::kRows;
    const int token = first + n, row = tile_row * dense::kRows + r;
    if (token < p.decode_rows && row < w.out)
      p.residual[size_t(token) * w.out + row] += sums[r * (kTokens + 1) + n] + to_float(w.bias[row]);
  }
}

// Every block reads all rows. Up to so many are rounded to bf16 as they are read, which saves a kernel; more are
// rounded once. The bits are the same.
constexpr int kRoundHereRows = 8;

constexpr int kRoundThreads = 256;
template <int kTiles>
using PromptShape = gemm::Shape<gemm::DenseWeights, kTiles>;

// A pair of values a thread, the first `decoded` of them in the order of decoded rows.
__global__ void __launch_bounds__(kRoundThreads)
    round_kernel(const float* from, size_t pairs, size_t decoded, bf16* to) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const size_t i = size_t(blockIdx.x) * kRoundThreads + threadIdx.x;
  if (i >= pairs) return;
  const float2 v = reinterpret_cast<const float2*>(from)[i];
  reinterpret_cast<uint32_t*>(to)[i < decoded ? layout::decoded_pair(i) : i] = ptx::pack_bf16(v.x, v.y);
}

// Prompts: rows in bf16, then the tiled GEMM.
template <int kTiles>
__global__ void __launch_bounds__(gemm::kThreads) prompt_out_kernel(AttentionOutParams p, const bf16* input) {
  if constexpr (!gemm::is_used<kTiles>()) return;
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const Linear& w = p.projection;
  const int first = p.decode_rows + static_cast<int>(blockIdx.y) * PromptShape<kTiles>::kTokens;
  const int block_row = static_cast<int>(blockIdx.x), t = lane_id() % 4, g = lane_id() / 4;
  gemm::Sums<kTiles> sums = {};
  gemm::DenseWeights weights{};
  for (int h = 0; h < 2; ++h) weights.set(h, w, (block_row * gemm::kRows + gemm::first_row(h)) / layout::kDenseRows);
  gemm::multiply<kTiles>(
      weights, gemm::halves_of(w.out, block_row), w.in, input,
      [&](int i) { return first + i < p.rows ? first + i - p.decode_rows : -1; }, sums);
  gemm::add_adapters<kTiles>(p.lora, sums, block_row, w.out, min(PromptShape<kTiles>::kTokens, p.rows - first),
                             [&](int n) { return LoraPlace{first + n, first + n, 0}; });
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = first + 8 * n + 2 * t + i % 2;
        const int row = block_row * gemm::kRows + gemm::first_row(h) + 8 * (i / 2) + g;
        if (token < p.rows && row < w.out)
          p.residual[size_t(token) * w.out + row] += sums[h][n][i] + to_float(w.bias[row]);
      }
}

}  // namespace

void GpuBackend::attention_out(const AttentionOutParams& p) {
  const int prompt_rows = p.rows - p.decode_rows;
  // Rows from this one on are rounded: all, or those of prompts.
  const int rounded_from = p.decode_rows > kRoundHereRows ? 0 : p.decode_rows, rounded = p.rows - rounded_from;
  const size_t width = p.projection.in;
  const bf16* input = nullptr;  // row p.decode_rows
  if (rounded > 0) {
    const size_t pairs = rounded * width / 2, decoded = (p.decode_rows - rounded_from) * width / 2;
    auto* to = partial_.reserve<bf16>(workspace::attention_out(rounded, p.projection.in), stream_);
    launch({"attention_out", dim3(static_cast<unsigned>((pairs + kRoundThreads - 1) / kRoundThreads)), kRoundThreads, 0,
            stream_},
           round_kernel, p.input + rounded_from * width, pairs, decoded, to);
    input = to + 2 * decoded;
  }
  if (prompt_rows > 0) {
    gemm::check_size("attention_out", prompt_rows, p.projection.in);
    gemm::with_tiles(uses_wgmma(), prompt_rows, 1, [&](auto tiles) {
      constexpr int kTiles = decltype(tiles)::value;
      using S = PromptShape<kTiles>;
      const dim3 grid(layout::tiles(p.projection.out, gemm::kRows), layout::tiles(prompt_rows, S::kTokens));
      launch({"attention_out", grid, gemm::kThreads, S::bytes(uses_wgmma()), stream_}, prompt_out_kernel<kTiles>, p,
             input);
    });
  }
  if (p.decode_rows == 0) return;
  dense::with_tiles(p.decode_rows, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const dim3 grid(layout::tiles(p.projection.out, dense::kRows),
                    layout::tiles(p.decode_rows, dense::kTokenTile * kTiles));
    const Launch to{"attention_out", grid, dense::kThreads, dense::sum_bytes<kTiles>(), stream_};
    if constexpr (dense::kTokenTile * kTiles <= kRoundHereRows)
      launch(to, attention_out_kernel<kTiles, float>, p, p.input);
    else
      launch(to, attention_out_kernel<kTiles, bf16>, p, input - p.decode_rows * width);
  });
}

}  // namespace gptoss::GPTOSS_GPU
