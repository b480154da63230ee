// logits[i] = lm_head RMSNorm(residual[logit_rows[i]]): the norm of the wanted rows, then one product.
// Grid of the product: (row tiles, groups of tokens).
#include "cuda/backend.h"
#include "cuda/dense.cuh"
#include "cuda/lora.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

template <int kTiles>
__global__ void __launch_bounds__(dense::kThreads)
    unembed_kernel(const bf16* normed, int count, Linear lm_head, float* logits, Lora lora, const int32_t* rows) {
  constexpr int kTokens = dense::kTokenTile * kTiles;
  const int tile_row = static_cast<int>(blockIdx.x), first = static_cast<int>(blockIdx.y) * kTokens;
  float* sums = dense::multiply<kTiles>(lm_head.weight, lm_head.in, tile_row, normed, first, count);
  add_lora(
      lora, sums, dense::kRows, kTokens + 1, count - first < kTokens ? count - first : kTokens, lm_head.out,
      [&](int n) { return LoraPlace{rows[first + n], first + n, 0}; },
      [&](int r) { return tile_row * dense::kRows + r; });
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * dense::kRows; i += dense::kThreads) {
    const int n = i / dense::kRows, r = i % dense::kRows;
    const int token = first + n, row = tile_row * dense::kRows + r;
    if (token < count && row < lm_head.out) logits[size_t(token) * lm_head.out + row] = sums[r * (kTokens + 1) + n];
  }
}

}  // namespace

void GpuBackend::unembed(const UnembedParams& p) {
  if (p.count == 0) return;
  auto* normed = reinterpret_cast<bf16*>(p.normed);
  rmsnorm("unembed", p.residual, p.logit_rows, p.count, p.lm_head.in, p.norm_weight, p.norm_eps, p.count, normed);
  dense::with_tiles(p.count, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const dim3 grid(layout::tiles(p.lm_head.out, dense::kRows), layout::tiles(p.count, dense::kTokenTile * kTiles));
    launch({"unembed", grid, dense::kThreads, dense::sum_bytes<kTiles>(), stream_}, unembed_kernel<kTiles>,
           static_cast<const bf16*>(normed), p.count, p.lm_head, p.logits, p.lora, p.logit_rows);
  });
}

}  // namespace gptoss::GPTOSS_GPU
