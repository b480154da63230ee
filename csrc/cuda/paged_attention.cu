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

// Where 16 neighbouring keys lie, which are always in one page.
struct Place {
  int page, slot;
};

__device__ __forceinline__ Place place_of(const PagedAttentionParams& p, const int32_t* table, int key) {
  return {table[key / p.cache.page_size], key % p.cache.page_size};
}

// A lane's part of the keys and values of a step: all of it is on its way before any is used.
struct Step {
  uint4 key[2][2][2];  // [score tile][row g, row g + 8][half of the head]
  uint4 value[4][2];   // [tile of 16 values][value g, value g + 8], the lane's eight keys of each

  // `place` is of the lane's 16 keys, the step's first for the lower half of the warp.
  __device__ __forceinline__ void load_keys(const PagedAttentionParams& p, int kv_head, Place place) {
    const int lane = lane_id(), t = lane % 4, g = lane / 4;
    const size_t row = (size_t(place.page) * p.cache.kv_heads + kv_head) * p.cache.page_size + place.slot;
    const bf16* from = static_cast<const bf16*>(p.cache.keys) + (row + key_of(0, g) % 16) * kHeadDim + 8 * t;
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          key[s][lower][half] = *reinterpret_cast<const uint4*>(from + (4 * s + 2 * lower) * kHeadDim + 32 * half);
  }
  // Likewise of the lane's eight values: the step's first 16 are those of t = 0 and 1.
  __device__ __forceinline__ void load_values(const PagedAttentionParams& p, int kv_head, Place place) {
    const int lane = lane_id(), t = lane % 4, g = lane / 4;
    const size_t head = size_t(place.page) * p.cache.kv_heads + kv_head;
    const bf16* from =
        static_cast<const bf16*>(p.cache.values) + (head * kHeadDim + g) * p.cache.page_size + place.slot + 8 * (t % 2);
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        value[m][i] = *reinterpret_cast<const uint4*>(from + size_t(16 * m + 8 * i) * p.cache.page_size);
  }
};

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

// What a maximum's sum and output count for, beside the highest maximum of all; nothing if it saw no key.
__device__ __forceinline__ float weight_of(float max, float highest) {
  return max == -INFINITY ? 0.0f : ptx::exp2(max - highest);
}

__device__ __forceinline__ void add_scaled(float4& to, float weight, const float4& v) {
  to.x += weight * v.x, to.y += weight * v.y, to.z += weight * v.z, to.w += weight * v.w;
}

// A warp's state in shared memory: heads lie apart so that a store of it meets every bank once.
struct WarpState {
  float max[kHeads];
  float sum[kHeads];
  float output[kHeads][kHeadDim + 4];
};

// The threads of a block merge in parts of a head: four outputs each.
constexpr int kParts = kThreads / kHeads;
static_assert(4 * kParts == kHeadDim && kWarpSize % kParts == 0);

__host__ __device__ constexpr size_t shared_bytes(int chunks) {
  const size_t weights = sizeof(float) * kHeads * chunks;
  return weights > kWarps * sizeof(WarpState) ? weights : kWarps * sizeof(WarpState);
}

__global__ void __launch_bounds__(kThreads, 4) paged_attention_kernel(KernelParams params) {
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
  const int begin = chunk_begin(first_chunk + chunk);
  const int end = min(chunk_begin(first_chunk + chunk + 1), position + 1);
  const int32_t* table = p.cache.table + size_t(p.batch.sequence[row]) * p.cache.table_stride;
  const int lane = lane_id(), t = lane % 4, g = lane / 4;

  // Lanes look up the half of a step that their keys lie in; of values, lane 16 h has the place of half h. A half
  // that no key is visible of stands for its neighbour, so that all loads are of pages that are there.
  const auto look_up = [&](int base) {
    return place_of(p, table, min(max(base + lane / 16 * 16, oldest / 16 * 16), position / 16 * 16));
  };
  const auto values_of = [&](Place place) {
    const int source = t / 2 * 16;
    return Place{__shfl_sync(kAllLanes, place.page, source), __shfl_sync(kAllLanes, place.slot, source)};
  };
  int base = begin + kKeys * warp_id();
  while (base + kKeys <= oldest) base += kKeys * kWarps;
  Step step;
  if (base < end) {
    const Place place = look_up(base);
    step.load_keys(p, kv_head, place);
    step.load_values(p, kv_head, values_of(place));
  }

  // The query fragments: head g, columns 8 t .. 8 t + 7 of each half of 32.
  uint32_t q[2][4] = {};
  const int head = first_head + g;
  if (head < params.group) {
    const float* from = p.queries + (size_t(row) * p.heads + size_t(kv_head) * params.group + head) * kHeadDim;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 v = *reinterpret_cast<const float4*>(from + 32 * half + 8 * t + 4 * i);
        q[half][2 * i] = ptx::pack_bf16(v.x, v.y);
        q[half][2 * i + 1] = ptx::pack_bf16(v.z, v.w);
      }
  }

  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of heads 2 t and 2 t + 1
  float out[4][4] = {};                                    // values 16 m + g and + 8, heads 2 t and 2 t + 1
  while (base < end) {
    const int next_base = base + kKeys * kWarps;
    Place next{};
    if (next_base < end) next = look_up(next_base);
    float score[2][4] = {};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 &ku = step.key[s][0][half], &kl = step.key[s][1][half];
        const uint32_t a[2][4] = {{ku.x, kl.x, ku.y, kl.y}, {ku.z, kl.z, ku.w, kl.w}};
        const uint32_t b[2][2] = {{q[half][0], q[half][1]}, {q[half][2], q[half][3]}};
        ptx::mma(score[s], a[0], b[0]);
        ptx::mma(score[s], a[1], b[1]);
      }
    }
    if (next_base < end) step.load_keys(p, kv_head, next);  // these are spent
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = base + key_of(s, g + i / 2 * 8);
        score[s][i] = key >= oldest && key <= position ? score[s][i] * (0.125f * kLog2e) : -INFINITY;
      }

    // New maxima; at least one key of the group is visible.
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float here = fmaxf(fmaxf(score[0][j], score[0][2 + j]), fmaxf(score[1][j], score[1][2 + j]));
      const float highest = fmaxf(largest[j], heads_max(here));
      const float scale = weight_of(largest[j], highest);
      largest[j] = highest;
      sum[j] *= scale;
#pragma unroll
      for (int m = 0; m < 4; ++m) out[m][j] *= scale, out[m][2 + j] *= scale;
#pragma unroll
      for (int s = 0; s < 2; ++s)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& weight = score[s][2 * i + j];
          weight = weight_of(weight, highest);
          sum[j] += weight;
        }
    }

    uint32_t weights[2][2];
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int i = 0; i < 2; ++i) weights[s][i] = ptx::transpose(ptx::pack_bf16(score[s][2 * i], score[s][2 * i + 1]));

    // This lane's eight keys of V^T. What lies outside the visible range may be anything, NaN too: zeros instead.
    if (base < oldest || base + kKeys - 1 > position) {
      const int key = base + 8 * t;
      const auto seen = [&](int k) { return key + k >= oldest && key + k <= position; };
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          uint4& v = step.value[m][i];
          v = make_uint4(keep(v.x, seen(0), seen(1)), keep(v.y, seen(2), seen(3)), keep(v.z, seen(4), seen(5)),
                         keep(v.w, seen(6), seen(7)));
        }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const uint4(&v)[2] = step.value[m];
      const uint32_t a[2][4] = {{v[0].x, v[1].x, v[0].y, v[1].y}, {v[0].z, v[1].z, v[0].w, v[1].w}};
      ptx::mma(out[m], a[0], weights[0]);
      ptx::mma(out[m], a[1], weights[1]);
    }
    if (next_base < end) step.load_values(p, kv_head, values_of(next));
    base = next_base;
  }

  // The warps' states, merged in their order.
  auto* states = shared_memory<WarpState>();
  WarpState& mine = states[warp_id()];
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
  const int h = static_cast<int>(threadIdx.x) / kParts, part = static_cast<int>(threadIdx.x) % kParts;
  float highest = -INFINITY, total = 0.0f;
  float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (int i = 0; i < kWarps; ++i) highest = fmaxf(highest, states[i].max[h]);
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const float weight = weight_of(states[i].max[h], highest);
    total += weight * states[i].sum[h];
    add_scaled(value, weight, *reinterpret_cast<const float4*>(&states[i].output[h][4 * part]));
  }

  const int query_head = kv_head * params.group + first_head + h;
  const bool there = first_head + h < params.group;
  // A logit without a value joins the sum.
  const auto finish = [&](float max_with_sink, float sink) {
    if (!there) return;
    const float factor = 1.0f / (total + ptx::exp2(sink - max_with_sink));
    *reinterpret_cast<float4*>(p.output + (size_t(row) * p.heads + query_head) * kHeadDim + 4 * part) =
        make_float4(value.x * factor, value.y * factor, value.z * factor, value.w * factor);
  };
  const float sink = there ? to_float(p.sinks[query_head]) * kLog2e : 0.0f;
  if (chunks == 1) {  // the same as below, without the way through memory
    const float weight = weight_of(highest, fmaxf(highest, sink));
    total *= weight, value.x *= weight, value.y *= weight, value.z *= weight, value.w *= weight;
    return finish(fmaxf(highest, sink), sink);
  }
  const size_t slot = size_t(row) * gridDim.y + blockIdx.y;
  State* parts = params.partial + slot * gridDim.z;
  State& own = parts[chunk];
  *reinterpret_cast<float4*>(&own.output[h][4 * part]) = value;
  if (part == 0) own.max[h] = highest, own.sum[h] = total;

  // The last chunk to arrive adds all of them.
  __threadfence();
  __syncthreads();
  auto* last = shared_memory<uint32_t>();
  if (threadIdx.x == 0) *last = atomicAdd(&params.arrived[slot], 1u) == static_cast<uint32_t>(chunks) - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  if (threadIdx.x == 0) atomicExch(&params.arrived[slot], 0u);
  __syncthreads();  // all have read *last
  // Maxima first; then every chunk has its weight, and what is left is a sum of products whose loads need not wait
  // for each other. The weights of head h are written and read by the half warp that adds it.
  float* weights = shared_memory<float>() + h * chunks;
  highest = sink;
  for (int i = part; i < chunks; i += kParts) highest = fmaxf(highest, weights[i] = parts[i].max[h]);
#pragma unroll
  for (int bits = 1; bits < kParts; bits *= 2) highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, bits));
  for (int i = part; i < chunks; i += kParts) weights[i] = weight_of(weights[i], highest);
  __syncwarp();
  total = 0.0f, value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
  for (int i = 0; i < chunks; ++i) {
    total += weights[i] * parts[i].sum[h];
    add_scaled(value, weights[i], *reinterpret_cast<const float4*>(&parts[i].output[h][4 * part]));
  }
  finish(highest, sink);
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
    const int tiles = prompt_rows / positions + p.batch.sequences - decoded;
    launch({"paged_attention", dim3(tiles * p.cache.kv_heads), attention_tiles::kThreads, attention_tiles::kSharedBytes,
            stream_},
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
  launch({"paged_attention", dim3(decoded, tiles, chunks), kThreads, shared_bytes(chunks), stream_},
         paged_attention_kernel, params);
}

}  // namespace gptoss::GPTOSS_GPU
