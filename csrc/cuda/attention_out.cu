// residual += W x + b. Grid: (row tiles, groups of tokens).
#include "cuda/backend.h"
#include "cuda/dense.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

template <int kTiles>
__global__ void __launch_bounds__(dense::kThreads) attention_out_kernel(AttentionOutParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  constexpr int kTokens = dense::kTokenTile * kTiles;
  const int tile_row = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * kTokens;
  const Linear& w = p.projection;
  const float* sums = dense::multiply<kTiles>(w.weight, w.in, tile_row, p.input, first, p.rows);
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * dense::kRows; i += dense::kThreads) {
    const int n = i / dense::kRows, r = i % dense::kRows;
    const int token = first + n, row = tile_row * dense::kRows + r;
    if (token < p.rows && row < w.out)
      p.residual[size_t(token) * w.out + row] += sums[r * (kTokens + 1) + n] + to_float(w.bias[row]);
  }
}

}  // namespace

void GpuBackend::attention_out(const AttentionOutParams& p) {
  dense::with_tiles(p.rows, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const dim3 grid(layout::tiles(p.projection.out, dense::kRows), layout::tiles(p.rows, dense::kTokenTile * kTiles));
    launch({"attention_out", grid, dense::kThreads, dense::sum_bytes<kTiles>(), stream_}, attention_out_kernel<kTiles>,
           p);
  });
}

}  // namespace gptoss::GPTOSS_GPU
