// The norm, a kernel of its own but for very few rows; then q, k and v in one product whose epilogue adds the bias,
// rotates, and writes queries and cache. q and k are in rotary row order: rows r and r + 8 of a tile of 16 rotate
// together. Grid of either product: (row tiles of q, then k, then v; groups of tokens). The cache: keys [pages,
// kv_heads, page_size, 64], values [pages, kv_heads, 64, page_size].
#include "cuda/backend.h"
#include "cuda/dense.cuh"
#include "cuda/gemm.cuh"
#include "cuda/lora.cuh"
#include "cuda/norm.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

struct InKernelParams {
  AttentionInParams op;
  const bf16* normed;  // [rows, hidden], decoded ones in their order
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

constexpr int kHeadTiles = kHeadDim / dense::kRows;

// A row tile of 16, counted through q, k and v.
struct Tile {
  Part part;
  const Linear& layer;
  int row;  // tile row of the layer
};

__device__ __forceinline__ Tile tile_of(const AttentionInParams& p, int tile_row) {
  const int q_tiles = p.q.out / dense::kRows, k_tiles = p.k.out / dense::kRows;
  if (tile_row < q_tiles) return {Part::query, p.q, tile_row};
  if (tile_row < q_tiles + k_tiles) return {Part::key, p.k, tile_row - q_tiles};
  return {Part::value, p.v, tile_row - q_tiles - k_tiles};
}

__device__ __forceinline__ const Lora& lora_of(const AttentionInParams& p, const Tile& at) {
  return at.part == Part::query ? p.q_lora : at.part == Part::key ? p.k_lora : p.v_lora;
}

// The output that row r of a tile is.
__device__ __forceinline__ int output_of(const Tile& at, int r) {
  const int head = at.row / kHeadTiles, tile = at.row % kHeadTiles;
  return head * kHeadDim + (at.part == Part::value ? 16 * tile + r : 8 * tile + r % 8 + 32 * (r / 8));
}

// Of decoded rows, the first of which is `first`.
__device__ __forceinline__ void add_adapters(const AttentionInParams& p, const Tile& at, float* sums, int stride,
                                             int first, int tokens) {
  add_lora(
      lora_of(p, at), sums, dense::kRows, stride, tokens, at.layer.out,
      [&](int n) { return LoraPlace{first + n, first + n, 0}; }, [&](int r) { return output_of(at, r); });
}

// Adds the bias to rows r and r + 8 of a tile, rotates them, and writes them where they belong.
__device__ __forceinline__ void finish(const AttentionInParams& p, const Tile& at, int r, int row, float a, float b) {
  const int head = at.row / kHeadTiles, tile = at.row % kHeadTiles;
  const int low = at.part == Part::value ? 16 * tile + r : 8 * tile + r;
  const int high = low + (at.part == Part::value ? 8 : 32);
  a += to_float(at.layer.bias[head * kHeadDim + low]);
  b += to_float(at.layer.bias[head * kHeadDim + high]);
  if (at.part != Part::value) {
    float sine, cosine;
    sincosf(static_cast<float>(p.batch.position[row]) * p.inv_freq[low], &sine, &cosine);
    const float c = cosine * p.rope_scale, s = sine * p.rope_scale;
    const float first_half = a;
    a = first_half * c - b * s;
    b = b * c + first_half * s;
  }
  if (at.part == Part::query) {
    float* to = p.queries + (size_t(row) * (p.q.out / kHeadDim) + head) * kHeadDim;
    to[low] = a;
    to[high] = b;
  } else {
    *cache_entry(p, at.part, row, head, low) = to_bf16(a);
    *cache_entry(p, at.part, row, head, high) = to_bf16(b);
  }
}

// With so few rows every block norms them for itself while its first weights are on their way: that is less than a
// kernel costs. The bits are those of rmsnorm.cu.
constexpr int kNormHereRows = 2;
static_assert(norm::kThreads == dense::kThreads && norm::kScratchBytes <= dense::sum_bytes<1>());

__global__ void __launch_bounds__(dense::kThreads) norm_attention_in_kernel(AttentionInParams p) {
  constexpr int kTokens = dense::kTokenTile;
  const int rows = p.batch.decode_rows, width = p.q.in;
  const Tile at = tile_of(p, static_cast<int>(blockIdx.x));
  dense::Loads<1> loads(at.layer.weight, width, at.row);
  loads.start();
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  auto* scratch = shared_memory<float>();
  auto* normed = reinterpret_cast<bf16*>(shared_memory<unsigned char>() + dense::sum_bytes<1>());
  for (int row = 0; row < rows; ++row)
    norm::apply(p.residual + size_t(row) * width, width, p.norm_weight, p.norm_eps, scratch, true,
                normed + row * width);
  __syncthreads();
  float* sums = dense::multiply<1>(loads, width, normed, 0, rows);
  add_adapters(p, at, sums, kTokens + 1, 0, rows);
  const int n = static_cast<int>(threadIdx.x) / 8, r = static_cast<int>(threadIdx.x) % 8;
  if (n < rows) finish(p, at, r, n, sums[r * (kTokens + 1) + n], sums[(r + 8) * (kTokens + 1) + n]);
}

template <int kTiles>
__global__ void __launch_bounds__(dense::kThreads) attention_in_kernel(InKernelParams params) {
  const AttentionInParams& p = params.op;
  constexpr int kTokens = dense::kTokenTile * kTiles;
  const int rows = p.batch.decode_rows, first = static_cast<int>(blockIdx.y) * kTokens;
  const Tile at = tile_of(p, static_cast<int>(blockIdx.x));
  float* sums = dense::multiply<kTiles>(at.layer.weight, at.layer.in, at.row, params.normed, first, rows);
  add_adapters(p, at, sums, kTokens + 1, first, rows - first < kTokens ? rows - first : kTokens);
  // A thread takes two rows of the tile, 8 apart, of one token.
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * dense::kRows / 2; i += dense::kThreads) {
    const int n = i / 8, r = i % 8;
    if (first + n < rows) finish(p, at, r, first + n, sums[r * (kTokens + 1) + n], sums[(r + 8) * (kTokens + 1) + n]);
  }
}

// Prompts. Of the three matrices as one, a warp's 16 rows of a half lie in one of them.
template <int kTiles>
using PromptShape = gemm::Shape<gemm::DenseWeights, kTiles>;

// Left alone, the compiler saves registers where there are few tiles, until it spills.
template <int kTiles>
__global__ void __launch_bounds__(gemm::kThreads, kTiles == gemm::kFewTiles ? 2 : 0)
    prompt_in_kernel(InKernelParams params) {
  if constexpr (!gemm::is_used<kTiles>()) return;
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const AttentionInParams& p = params.op;
  const int first = p.batch.decode_rows + static_cast<int>(blockIdx.y) * PromptShape<kTiles>::kTokens;
  const int block_row = static_cast<int>(blockIdx.x);
  gemm::Sums<kTiles> sums = {};
  gemm::DenseWeights weights{};
  for (int h = 0; h < 2; ++h) {
    const Tile at = tile_of(p, (block_row * gemm::kRows + gemm::first_row(h)) / dense::kRows);
    weights.set(h, at.layer, at.row);
  }
  gemm::multiply<kTiles>(
      weights, gemm::halves_of(p.q.out + p.k.out + p.v.out, block_row), p.q.in, params.normed,
      [&](int i) { return first + i < p.batch.rows ? first + i : -1; }, sums);

  // Neighbouring threads write neighbouring places: of queries and keys in a head, of values in a page.
  constexpr int kTokens = PromptShape<kTiles>::kTokens, kStride = gemm::kSumStride<kTiles>;
  const int tokens = min(kTokens, p.batch.rows - first);
  float* laid = gemm::lay_out<kTiles>(sums);
#pragma unroll 1
  for (int h = 0; h < 2; ++h) {  // a head each
    const Tile head = tile_of(p, (block_row * gemm::kRows + h * gemm::kHalfRows) / dense::kRows);
    if (head.row >= head.layer.out / dense::kRows) continue;
    float* own = laid + h * gemm::kHalfRows * kStride;
#pragma unroll 1
    for (int i = 0; i < kHeadTiles; ++i)
      add_adapters(p, {head.part, head.layer, head.row + i}, own + i * dense::kRows * kStride, kStride, first, tokens);
    const int pairs = kHeadDim / 2;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < pairs * kTokens; i += gemm::kThreads) {
      const bool along_tokens = head.part == Part::value;
      const int n = along_tokens ? i % kTokens : i / pairs, pair = along_tokens ? i / kTokens : i % pairs;
      if (n >= tokens) continue;
      const Tile at{head.part, head.layer, head.row + pair / 8};
      const float* sum = own + (pair / 8 * dense::kRows + pair % 8) * kStride + n;
      finish(p, at, pair % 8, first + n, sum[0], sum[8 * kStride]);
    }
  }
}

}  // namespace

void GpuBackend::attention_in(const AttentionInParams& p) {
  CHECK(p.cache.dtype == DType::bf16, "the cache holds float32, expected bf16: the GPU's numerics are 'fast'");
  auto* normed = reinterpret_cast<bf16*>(p.normed);
  const int rows = p.batch.rows;
  const int out = p.q.out + p.k.out + p.v.out, decoded = p.batch.decode_rows;
  if (rows == decoded && rows <= kNormHereRows) {
    const size_t shared = dense::sum_bytes<1>() + sizeof(bf16) * rows * p.q.in;
    launch({"attention_in", dim3(out / dense::kRows), dense::kThreads, shared, stream_}, norm_attention_in_kernel, p);
    return;
  }
  rmsnorm("attention_in", p.residual, nullptr, rows, p.q.in, p.norm_weight, p.norm_eps, decoded, normed);
  if (rows > decoded) {
    gemm::check_size("attention_in", rows, p.q.in);
    gemm::with_tiles(uses_wgmma(), rows - decoded, 1, [&](auto tiles) {
      constexpr int kTiles = decltype(tiles)::value;
      using S = PromptShape<kTiles>;
      const dim3 grid(layout::tiles(out, gemm::kRows), layout::tiles(rows - decoded, S::kTokens));
      launch({"attention_in", grid, gemm::kThreads, S::bytes(uses_wgmma()), stream_}, prompt_in_kernel<kTiles>,
             InKernelParams{p, normed});
    });
  }
  if (decoded == 0) return;
  dense::with_tiles(decoded, [&](auto tiles) {
    constexpr int kTiles = decltype(tiles)::value;
    const dim3 grid(out / dense::kRows, layout::tiles(decoded, dense::kTokenTile * kTiles));
    launch({"attention_in", grid, dense::kThreads, dense::sum_bytes<kTiles>(), stream_}, attention_in_kernel<kTiles>,
           InKernelParams{p, normed});
  });
}

}  // namespace gptoss::GPTOSS_GPU
