// Attention. Rows of prompts: attention_tiles.cuh. Below, a row that is decoded, for up to eight query heads that
// share a kv head, over one chunk of its context.
//
// Transposed products, so that neither operand needs shared memory: scores S = K Q^T (M = keys, N = heads) and
// output O = V^T P^T (M = the head's 64 values, N = heads). A warp takes 32 keys at a time. Inside such a group,
// the keys are dealt to the rows of the two score tiles so that P^T, transposed eight by eight, is the fragment that
// goes with eight neighbouring keys of V^T per lane: tile s, row r < 8 is key 8 (r / 2) + 4 s + r % 2, row r + 8
// the key two further.
//
// Keys [pages, kv_heads, page_size, 64], values [pages, kv_heads, 64, page_size]. Chunks lie at fixed positions of
// the context, warps take fixed groups of a chunk, and partial results are added in order: a row's bits depend on
// its own context only. The block that arrives last for a (row, kv head) adds the chunks and the sink, once.
// Grid: (rows, kv heads x head tiles, chunks).
#include "cuda/attention_tiles.cuh"
#include "cuda/backend.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"
#include "cuda/workspace.h"

namespace gptoss::GPTOSS_GPU {
namespace {

using workspace::chunk_begin, workspace::chunk_of;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kHeads = workspace::kHeadTile;
constexpr int kKeys = 32;  // of a warp's step
constexpr float kLog2e = 1.4426950408889634f;

// Softmax in progress, for a tile of heads. Scores are in units of log2: weight = exp2(score - max).
struct State {
  float max[kHeads];
  float sum[kHeads];
  float output[kHeads][kHeadDim];
};

static_assert(sizeof(State) == workspace::kAttentionState);

struct KernelParams {
  PagedAttentionParams op;
  int group;          // query heads of a kv head
  int head_tiles;     // tiles of eight that hold them
  State* partial;     // [rows, kv heads x head tiles, chunks]
  uint32_t* arrived;  // [rows, kv heads x head tiles], zero between launches
};

__device__ __forceinline__ int key_of(int tile, int row) {
  return 8 * (row % 8 / 2) + 4 * tile + 2 * (row / 8) + row % 2;
}

// One page's memory for this kv head.
__device__ __forceinline__ const bf16* page_of(const void* pages, const PagedAttentionParams& p, const int32_t* table,
                                               int kv_head, int key) {
  const size_t page = static_cast<size_t>(table[key / p.cache.page_size]);
  return static_cast<const bf16*>(pages) + (page * p.cache.kv_heads + kv_head) * kHeadDim * p.cache.page_size;
}

__device__ __forceinline__ float heads_max(float v) {
#pragma unroll
  for (int bits = 4; bits < kWarpSize; bits *= 2) v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, bits));
  return v;
}
__device__ __forceinline__ float heads_sum(float v) {
#pragma unroll
  for (int bits = 4; bits < kWarpSize; bits *= 2) v += __shfl_xor_sync(kAllLanes, v, bits);
  return v;
}

__device__ __forceinline__ uint32_t keep(uint32_t pair, bool low, bool high) {
  return pair & ((low ? 0x0000ffffu : 0u) | (high ? 0xffff0000u : 0u));
}

// Merges states in order into out, one thread a value: threads 0 .. 63 hold a value each of every head.
__device__ __forceinline__ void merge(const State* states, int count, int d, int h, float& max, float& sum,
                                      float& out) {
  max = -INFINITY, sum = 0.0f, out = 0.0f;
  for (int i = 0; i < count; ++i) {
    const float next = fmaxf(max, states[i].max[h]);
    const float old_scale = max == -INFINITY ? 0.0f : exp2f(max - next);
    const float new_scale = states[i].max[h] == -INFINITY ? 0.0f : exp2f(states[i].max[h] - next);
    sum = sum * old_scale + states[i].sum[h] * new_scale;
    out = out * old_scale + states[i].output[h][d] * new_scale;
    max = next;
  }
}

__global__ void __launch_bounds__(kThreads) paged_attention_kernel(KernelParams params) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const PagedAttentionParams& p = params.op;
  const int row = static_cast<int>(blockIdx.x), chunk = static_cast<int>(blockIdx.z);
  const int kv_head = static_cast<int>(blockIdx.y) / params.head_tiles;
  const int first_head = static_cast<int>(blockIdx.y) % params.head_tiles * kHeads;  // within the group
  const int position = p.batch.position[row];
  const int oldest = p.window == 0 ? 0 : max(0, position - p.window + 1);
  const int first_chunk = chunk_of(oldest), chunks = chunk_of(position) - first_chunk + 1;
  if (chunk >= chunks) return;
  const int begin = chunk_begin(first_chunk + chunk), end = chunk_begin(first_chunk + chunk + 1);
  const int32_t* table = p.cache.table + size_t(p.batch.sequence[row]) * p.cache.table_stride;
  const int lane = lane_id(), t = lane % 4, g = lane / 4;

  // The query fragments: head g, columns 8 t .. 8 t + 7 of each half of 32.
  uint32_t q[2][4] = {};
  const int head = first_head + g;
  if (head < params.group) {
    const float* from = p.queries + (size_t(row) * p.heads + size_t(kv_head) * params.group + head) * kHeadDim;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 v = *reinterpret_cast<const float2*>(from + 32 * half + 8 * t + 2 * i);
        q[half][i] = ptx::pack_bf16(v.x, v.y);
      }
  }

  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of heads 2 t and 2 t + 1
  float out[4][4] = {};                                    // values 16 m + g and + 8, heads 2 t and 2 t + 1
  for (int base = begin + kKeys * warp_id(); base < end && base <= position; base += kKeys * kWarps) {
    if (base + kKeys <= oldest) continue;
    float score[2][4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int upper = base + key_of(s, g), lower = base + key_of(s, g + 8);
      const bool upper_seen = upper >= oldest && upper <= position, lower_seen = lower >= oldest && lower <= position;
      const bf16* upper_key =
          upper_seen ? page_of(p.cache.keys, p, table, kv_head, upper) + size_t(upper % p.cache.page_size) * kHeadDim
                     : nullptr;
      const bf16* lower_key =
          lower_seen ? page_of(p.cache.keys, p, table, kv_head, lower) + size_t(lower % p.cache.page_size) * kHeadDim
                     : nullptr;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int d = 32 * half + 8 * t;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const uint4 ku = upper_seen ? *reinterpret_cast<const uint4*>(upper_key + d) : zero;
        const uint4 kl = lower_seen ? *reinterpret_cast<const uint4*>(lower_key + d) : zero;
        const uint32_t a[2][4] = {{ku.x, kl.x, ku.y, kl.y}, {ku.z, kl.z, ku.w, kl.w}};
        const uint32_t b[2][2] = {{q[half][0], q[half][1]}, {q[half][2], q[half][3]}};
        ptx::mma(score[s], a[0], b[0]);
        ptx::mma(score[s], a[1], b[1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool seen = i < 2 ? upper_seen : lower_seen;
        score[s][i] = seen ? score[s][i] * (0.125f * kLog2e) : -INFINITY;
      }
    }

    // New maxima; at least one key of the group is visible.
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float here = fmaxf(fmaxf(score[0][j], score[0][2 + j]), fmaxf(score[1][j], score[1][2 + j]));
      const float next = fmaxf(largest[j], heads_max(here));
      const float scale = largest[j] == -INFINITY ? 0.0f : exp2f(largest[j] - next);
      largest[j] = next;
      sum[j] *= scale;
#pragma unroll
      for (int m = 0; m < 4; ++m) out[m][j] *= scale, out[m][2 + j] *= scale;
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& weight = score[s][2 * i + j];
          weight = weight == -INFINITY ? 0.0f : exp2f(weight - next);
          sum[j] += weight;
        }
    }

    uint32_t weights[2][2];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int i = 0; i < 2; ++i) weights[s][i] = ptx::transpose(ptx::pack_bf16(score[s][2 * i], score[s][2 * i + 1]));

    // This lane's eight keys of V^T. What lies outside the visible range may be anything, NaN too: zeros instead.
    const int key = base + 8 * t;
    const bool any = key + 7 >= oldest && key <= position;
    const bool whole = base >= oldest && base + kKeys - 1 <= position;
    const bf16* values =
        any ? page_of(p.cache.values, p, table, kv_head, min(max(key, oldest), position)) + key % p.cache.page_size
            : nullptr;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      uint4 v[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        v[i] = any ? *reinterpret_cast<const uint4*>(values + size_t(16 * m + 8 * i + g) * p.cache.page_size)
                   : make_uint4(0, 0, 0, 0);
        if (!whole) {
          const auto seen = [&](int k) { return key + k >= oldest && key + k <= position; };
          v[i] = make_uint4(keep(v[i].x, seen(0), seen(1)), keep(v[i].y, seen(2), seen(3)),
                            keep(v[i].z, seen(4), seen(5)), keep(v[i].w, seen(6), seen(7)));
        }
      }
      const uint32_t a[2][4] = {{v[0].x, v[1].x, v[0].y, v[1].y}, {v[0].z, v[1].z, v[0].w, v[1].w}};
      ptx::mma(out[m], a[0], weights[0]);
      ptx::mma(out[m], a[1], weights[1]);
    }
  }

  // The warps' states, merged in their order.
  auto* states = shared_memory<State>();
  State& mine = states[warp_id()];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float total = heads_sum(sum[j]);
    if (g == 0) mine.max[2 * t + j] = largest[j], mine.sum[2 * t + j] = total;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) mine.output[2 * t + j][16 * m + 8 * i + g] = out[m][2 * i + j];
  }
  __syncthreads();
  const size_t slot = size_t(row) * gridDim.y + blockIdx.y;
  State* parts = params.partial + slot * gridDim.z;
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * kHeadDim; i += kThreads) {
    float max, sum_here, value;
    const int h = i / kHeadDim, d = i % kHeadDim;
    merge(states, kWarps, d, h, max, sum_here, value);
    parts[chunk].output[h][d] = value;
    if (d == 0) parts[chunk].max[h] = max, parts[chunk].sum[h] = sum_here;
  }

  // The last chunk to arrive adds all of them, and the sink, a logit without a value.
  __threadfence();
  __syncthreads();
  auto* last = shared_memory<uint32_t>();
  if (threadIdx.x == 0) *last = atomicAdd(&params.arrived[slot], 1u) == static_cast<uint32_t>(chunks) - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  if (threadIdx.x == 0) atomicExch(&params.arrived[slot], 0u);
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * kHeadDim; i += kThreads) {
    const int h = i / kHeadDim, d = i % kHeadDim;
    if (first_head + h >= params.group) continue;
    float max, total, value;
    merge(parts, chunks, d, h, max, total, value);
    const int query_head = kv_head * params.group + first_head + h;
    const float sink = to_float(p.sinks[query_head]) * kLog2e;
    const float highest = fmaxf(max, sink);
    const float scale = exp2f(max - highest);
    p.output[(size_t(row) * p.heads + query_head) * kHeadDim + d] =
        value * scale / (total * scale + exp2f(sink - highest));
  }
}

}  // namespace

void GpuBackend::paged_attention(const PagedAttentionParams& p) {
  CHECK(p.cache.dtype == DType::bf16, "the cache holds float32, expected bf16: the GPU's numerics are 'fast'");
  const int group = p.heads / p.cache.kv_heads, head_tiles = layout::tiles(group, kHeads);
  CHECK(group <= attention_tiles::kRows, group, " query heads share a kv head, the GPU kernels take at most ",
        attention_tiles::kRows, "; use device='cpu'");
  const int decoded = p.batch.decode_rows, prompt_rows = p.batch.rows - decoded;
  if (prompt_rows > 0) {
    const int positions = attention_tiles::kRows / group;
    const dim3 grid(prompt_rows / positions + p.batch.sequences - decoded, p.cache.kv_heads);
    launch({"paged_attention", grid, attention_tiles::kThreads, attention_tiles::kSharedBytes, stream_},
           attention_tiles::prompt_attention_kernel, p);
  }
  if (decoded == 0) return;
  // The longest context the page table can hold; blocks beyond a row's own context leave at once.
  const int reach = p.cache.table_stride * p.cache.page_size;
  const int chunks = workspace::most_chunks(reach, p.window);
  const int tiles = p.cache.kv_heads * head_tiles;
  const KernelParams params{p, group, head_tiles,
                            partial_.reserve<State>(workspace::attention(decoded, tiles, chunks), stream_),
                            counters_.reserve<uint32_t>(sizeof(uint32_t) * decoded * tiles, stream_)};
  launch({"paged_attention", dim3(decoded, tiles, chunks), kThreads, kWarps * sizeof(State), stream_},
         paged_attention_kernel, params);
}

}  // namespace gptoss::GPTOSS_GPU
