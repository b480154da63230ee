// The norm, then q, k and v in one product whose epilogue adds the bias, rotates, and writes queries and cache.
// q and k are in rotary row order: rows r and r + 8 of a tile of 16 rotate together.
// Grid of the product: (row tiles of q, then k, then v; groups of tokens).
// The cache: keys [pages, kv_heads, page_size, 64], values [pages, kv_heads, 64, page_size].
#include "cuda/backend.h"
#include "cuda/dense.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

struct InKernelParams {
  AttentionInParams op;
  const bf16* normed;  // [rows, hidden]
};

// One of the three projections, and a tile of it.
enum class Part { query, key, value };

__device__ __forceinline__ bf16* cache_entry(const AttentionInParams& p, Part part, int row, int kv_head, int d) {
  const KvLayer& c = p.cache;
  const int position = p.batch.position[row];
  const int page = c.table[size_t(p.batch.sequence[row]) * c.table_stride + position / c.page_size];
  const int slot = position % c.page_size;
  const size_t head = (size_t(page) * c.kv_heads + kv_head) * kHeadDim * c.page_size;
  return part == Part::key ? static_cast<bf16*>(c.keys) + head + size_t(slot) * kHeadDim + d
                           : static_cast<bf16*>(c.values) + head + size_t(d) * c.page_size + slot;
}

template <int kTiles>
__global__ void __launch_bounds__(dense::kThreads) attention_in_kernel(InKernelParams params) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const AttentionInParams& p = params.op;
  constexpr int kTokens = dense::kTokenTile * kTiles;
  const int rows = p.batch.rows, first = static_cast<int>(blockIdx.y) * kTokens;
  const int q_tiles = p.q.out / dense::kRows, k_tiles = p.k.out / dense::kRows;
  const int block = static_cast<int>(blockIdx.x);
  const Part part = block < q_tiles ? Part::query : block < q_tiles + k_tiles ? Part::key : Part::value;
  const Linear& w = part == Part::query ? p.q : part == Part::key ? p.k : p.v;
  const int tile_row = part == Part::query ? block : part == Part::key ? block - q_tiles : block - q_tiles - k_tiles;
  const float* sums = dense::multiply<kTiles>(w.weight, w.in, tile_row, params.normed, first, rows);

  const int head = tile_row / 4, tile = tile_row % 4;
  const int heads = p.q.out / kHeadDim;
  // A thread takes two rows of the tile, 8 apart, of one token.
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * dense::kRows / 2; i += dense::kThreads) {
    const int n = i / 8, r = i % 8, row = first + n;
    if (row >= rows) continue;
    const int low = part == Part::value ? 16 * tile + r : 8 * tile + r;
    const int high = low + (part == Part::value ? 8 : 32);
    float a = sums[r * (kTokens + 1) + n] + to_float(w.bias[head * kHeadDim + low]);
    float b = sums[(r + 8) * (kTokens + 1) + n] + to_float(w.bias[head * kHeadDim + high]);
    if (part != Part::value) {
      float sine, cosine;
      sincosf(static_cast<float>(p.batch.position[row]) * p.inv_freq[low], &sine, &cosine);
      const float c = cosine * p.rope_scale, s = sine * p.rope_scale;
      const float first_half = a;
      a = first_half * c - b * s;
      b = b * c + first_half * s;
    }
    if (part == Part::query) {
      float* to = p.queries + (size_t(row) * heads + head) * kHeadDim;
      to[low] = a;
      to[high] = b;
    } else {
      *cache_entry(p, part, row, head, low) = to_bf16(a);
      *cache_entry(p, part, row, head, high) = to_bf16(b);
    }
  }
}

}  // namespace

void GpuBackend::attention_in(const AttentionInParams& p) {
  CHECK(p.cache.dtype == DType::bf16, "the cache holds float32, expected bf16: the GPU's numerics are 'fast'");
  auto* normed = reinterpret_cast<bf16*>(p.normed);
  const int rows = p.batch.rows;
  rmsnorm("attention_in", p.residual, nullptr, rows, p.q.in, p.norm_weight, p.norm_eps, normed);
  dense::with_tiles(rows, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const dim3 grid((p.q.out + p.k.out + p.v.out) / dense::kRows, layout::tiles(rows, dense::kTokenTile * kTiles));
    launch({"attention_in", grid, dense::kThreads, dense::sum_bytes<kTiles>(), stream_}, attention_in_kernel<kTiles>,
           InKernelParams{p, normed});
  });
}

}  // namespace gptoss::GPTOSS_GPU
