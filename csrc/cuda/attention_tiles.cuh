// Attention of prompts: 128 rows of (position, query head of one kv head) against 64 keys at a time, one block.
//
// Rows are the M operand of both products, so that scores S = Q K^T leave the tensor cores in the form in which
// they enter them as P in O = P V. Keys and values come through two buffers in shared memory as rows of 128 bytes:
// 64 keys of 64 values each, and 64 values of 64 keys each. Inside a group of 32 keys, column c of score tile j is
// key 8 (c / 2) + 2 j + c % 2: then lane 4 g + t holds the weights of keys 8 t .. 8 t + 7, and 16 bytes of V^T are
// the fragment that goes with them.
//
// A row's keys are taken 32 at a time at fixed places of its context, and keys it does not see change nothing: its
// bits do not depend on the other rows of the tile.
#pragma once

#include "cuda/layout.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"
#include "model/ops.h"

namespace gptoss::GPTOSS_GPU::attention_tiles {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kWarpRows = 32;
constexpr int kRows = kWarps * kWarpRows;
constexpr int kKeys = 64;
constexpr int kUnit = 16, kRowUnits = 8;  // bytes of a copy; of them in a row
constexpr int kRowBytes = kRowUnits * kUnit;
constexpr int kTileBytes = kKeys * kRowBytes;  // of keys, or of values
constexpr int kStages = 2;
constexpr size_t kSharedBytes = size_t(kStages) * 2 * kTileBytes;
constexpr float kLog2e = 1.4426950408889634f;

static_assert(kHeadDim == 64 && kKeys == 64, "a tile's rows are 128 bytes");

// Place of a row's unit: units that eight lanes read together, four each of two rows, lie in different banks.
__device__ __forceinline__ int swizzled(int row, int unit) { return unit ^ (row & 1 ? 5 : 0); }

// The query positions of one block: a stretch of one sequence's rows.
struct Queries {
  int sequence = -1;  // none left for this block
  int first_row = 0, count = 0;
};

// The `nth` tile of `positions` rows, counted through the sequences that are not decoded.
__device__ __forceinline__ Queries nth_queries(const Batch& batch, int positions, int nth) {
  for (int s = batch.decode_rows; s < batch.sequences; ++s) {
    const int first = batch.row_start[s], rows = batch.row_start[s + 1] - first;
    const int own = layout::tiles(rows, positions);
    if (nth < own) return {s, first + nth * positions, min(positions, rows - nth * positions)};
    nth -= own;
  }
  return {};
}

// One sequence's keys and values of one kv head.
struct Source {
  const bf16* keys;
  const bf16* values;
  const int32_t* table;
  int kv_heads, kv_head, page_size;
  int oldest, newest;  // keys that are there for somebody
};

// Where 16 neighbouring keys lie, which are always in one page: the rows of keys before them, and before their page.
struct Place {
  int64_t row, page;
};
constexpr int kTogether = 16, kPlaces = kKeys / kTogether;

// Of lane's quarter of keys [base, base + 64), lane % 4. A quarter that nobody sees stands for one that is seen.
__device__ __forceinline__ Place look_up(const Source& from, int base) {
  const int quarter = base + kTogether * (lane_id() % kPlaces);
  const int key = min(max(quarter, from.oldest / kTogether * kTogether), from.newest / kTogether * kTogether);
  const int64_t page = (int64_t{from.table[key / from.page_size]} * from.kv_heads + from.kv_head) * from.page_size;
  return {page + key % from.page_size, page};
}

// Starts copying keys [base, base + 64) and their values, whose places the lanes have looked up.
__device__ __forceinline__ void fetch(const Source& from, int base, Place place, unsigned char* stage) {
  const int row = static_cast<int>(threadIdx.x) / kRowUnits, unit = static_cast<int>(threadIdx.x) % kRowUnits;
  static_assert(kThreads / kRowUnits == kTogether, "a thread copies one unit of each quarter");
  unsigned char* to = stage + row * kRowBytes + kUnit * swizzled(row, unit);
  const int first = base + 8 * unit;  // of the eight keys of this thread's values
  const bool any = first + 7 >= from.oldest && first <= from.newest;
  const int64_t page = __shfl_sync(kAllLanes, place.page, unit / 2);
  const int slot = static_cast<int>(__shfl_sync(kAllLanes, place.row, unit / 2) - page);
  const bf16* values = from.values + page * kHeadDim + slot + 8 * (unit % 2);
#pragma unroll
  for (int k = 0; k < kPlaces; ++k) {
    const int key = base + kTogether * k + row, value = kTogether * k + row;
    const bool seen = key >= from.oldest && key <= from.newest;
    const int64_t keys = __shfl_sync(kAllLanes, place.row, k);
    ptx::copy_async(to + k * (kTogether * kRowBytes), seen ? from.keys + (keys + row) * kHeadDim + 8 * unit : from.keys,
                    seen);
    ptx::copy_async(to + kTileBytes + k * (kTogether * kRowBytes),
                    any ? values + size_t(value) * from.page_size : from.values, any);
  }
}

// Values of keys that nobody sees may be anything, NaN too, and a weight of zero would not hide that.
__device__ __forceinline__ void clear_unseen_values(int base, int oldest, int newest, unsigned char* stage) {
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * kKeys / 2; i += kThreads) {
    const int row = i / (kKeys / 2), pair = i % (kKeys / 2), key = base + 2 * pair;
    auto* at =
        reinterpret_cast<uint32_t*>(stage + kTileBytes + row * kRowBytes + kUnit * swizzled(row, pair / 4)) + pair % 4;
    const uint32_t low = key >= oldest && key <= newest ? 0x0000ffffu : 0u;
    const uint32_t high = key + 1 >= oldest && key + 1 <= newest ? 0xffff0000u : 0u;
    if ((low | high) != 0xffffffffu) *at &= low | high;
  }
}

__device__ __forceinline__ uint4 read_unit(const unsigned char* tile, int row, int unit) {
  return *reinterpret_cast<const uint4*>(tile + row * kRowBytes + kUnit * swizzled(row, unit));
}

__device__ __forceinline__ float row_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, 1));
  return fmaxf(v, __shfl_xor_sync(kAllLanes, v, 2));
}
__device__ __forceinline__ float row_sum(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 1);
  return v + __shfl_xor_sync(kAllLanes, v, 2);
}

// How much larger than the number that its weights are relative to a row's score may become, in units of log2, before
// they are made relative to it: a sum of weights up to 2^8 is as exact, and rescaling is rare.
constexpr float kSlack = 8.0f;

// Grid: (tiles of positions x kv heads). Those that see most come first: what starts last should end soon.
__global__ void __launch_bounds__(kThreads) prompt_attention_kernel(PagedAttentionParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int group = p.heads / p.cache.kv_heads, place_in_grid = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int kv_head = place_in_grid % p.cache.kv_heads;
  const Queries queries = nth_queries(p.batch, kRows / group, place_in_grid / p.cache.kv_heads);
  if (queries.sequence < 0) return;
  const int lane = lane_id(), t = lane % 4, g = lane / 4;
  const int first_position = p.batch.position[queries.first_row], newest = first_position + queries.count - 1;
  const int oldest = p.window == 0 ? 0 : max(0, first_position - p.window + 1);
  const Source source{static_cast<const bf16*>(p.cache.keys),
                      static_cast<const bf16*>(p.cache.values),
                      p.cache.table + size_t(queries.sequence) * p.cache.table_stride,
                      p.cache.kv_heads,
                      kv_head,
                      p.cache.page_size,
                      oldest,
                      newest};
  auto* memory = shared_memory<unsigned char>();

  // Rows 16 m + g and + 8 of this warp's 32, by [2 m + high]: where they look from, and their query.
  int offset[4];  // of the position, from the tile's first; -1: no such row
  uint32_t q[2][2][2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = kWarpRows * warp_id() + 16 * m + 8 * high + g;
      const bool there = row / group < queries.count;
      offset[2 * m + high] = there ? row / group : -1;
      const float* from = p.queries + (size_t(queries.first_row + (there ? row / group : 0)) * p.heads +
                                       size_t(kv_head) * group + row % group) *
                                          kHeadDim;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const float4 v = there ? *reinterpret_cast<const float4*>(from + 32 * half + 8 * t + 4 * s)
                                 : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          q[m][half][s][high] = ptx::pack_bf16(v.x, v.y);
          q[m][half][s][2 + high] = ptx::pack_bf16(v.z, v.w);
        }
    }

  float largest[4], sum[4], out[2][8][4] = {};
#pragma unroll
  for (int r = 0; r < 4; ++r) largest[r] = -INFINITY, sum[r] = 0.0f;

  const int begin = oldest / kKeys * kKeys;
  fetch(source, begin, look_up(source, begin), memory);
  ptx::commit_copies();
  Place place = look_up(source, begin + kKeys);
  for (int base = begin; base <= newest; base += kKeys) {
    unsigned char* stage = memory + (base - begin) / kKeys % kStages * (2 * kTileBytes);
    unsigned char* next = memory + ((base - begin) / kKeys + 1) % kStages * (2 * kTileBytes);
    if (base + kKeys <= newest) fetch(source, base + kKeys, place, next);
    ptx::commit_copies();
    place = look_up(source, base + 2 * kKeys);  // used a tile later
    ptx::wait_copies<1>();
    __syncthreads();
    if (base < oldest || base + kKeys - 1 > newest) {
      clear_unseen_values(base, oldest, newest, stage);
      __syncthreads();
    }
    const bool all_seen = base + kKeys - 1 <= first_position && (p.window == 0 || base > newest - p.window);

#pragma unroll
    for (int part = 0; part < 2; ++part) {  // 32 keys
      float score[2][4][4] = {};
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint4 v = read_unit(stage, 32 * part + 8 * (g / 2) + 2 * j + g % 2, 4 * half + t);
          const uint32_t b[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            ptx::mma(score[m][j], q[m][half][0], b[0]);
            ptx::mma(score[m][j], q[m][half][1], b[1]);
          }
        }

      float highest[4];
      bool rescale = false;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float here = -INFINITY;
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[r / 2][j][2 * (r % 2) + e];
            // Keys from this row's own position on are negative.
            const int back = first_position + offset[r] - (base + 32 * part + 8 * t + 2 * j + e);
            const bool seen = all_seen || (back >= 0 && (p.window == 0 || back < p.window));
            s = seen && offset[r] >= 0 ? s * (0.125f * kLog2e) : -INFINITY;
            here = fmaxf(here, s);
          }
        here = row_max(here);
        highest[r] = here > largest[r] + kSlack ? here : largest[r];
        rescale |= highest[r] != largest[r];
      }
      if (__any_sync(kAllLanes, rescale)) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float scale = highest[r] == largest[r] ? 1.0f : ptx::exp2(largest[r] - highest[r]);
          largest[r] = highest[r];
          sum[r] *= scale;
#pragma unroll
          for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) out[r / 2][n][2 * (r % 2) + e] *= scale;
        }
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        // A row that has seen nothing yet has weights of 2^-infinity.
        const float from = largest[r] == -INFINITY ? 0.0f : largest[r];
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& s = score[r / 2][j][2 * (r % 2) + e];
            s = ptx::exp2(s - from);
            sum[r] += s;
          }
      }

      uint32_t weight[2][2][4];  // [row tile][16 keys]
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float (&from)[4] = score[m][2 * s + i / 2];
            weight[m][s][i] = ptx::pack_bf16(from[2 * (i % 2)], from[2 * (i % 2) + 1]);
          }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const uint4 v = read_unit(stage + kTileBytes, 8 * n + g, 4 * part + t);
        const uint32_t b[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          ptx::mma(out[m][n], weight[m][0], b[0]);
          ptx::mma(out[m][n], weight[m][1], b[1]);
        }
      }
    }
    __syncthreads();  // before this stage is filled again
  }
  ptx::wait_copies<0>();

#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float keys_sum = row_sum(sum[r]);
    if (offset[r] < 0) continue;
    const int row = kWarpRows * warp_id() + 8 * r + g, head = kv_head * group + row % group;
    const float sink = to_float(p.sinks[head]) * kLog2e;  // a logit without a value
    const float highest = fmaxf(largest[r], sink);
    const float scale = ptx::exp2(largest[r] - highest);
    const float factor = scale / (keys_sum * scale + ptx::exp2(sink - highest));
    float* to = p.output + (size_t(queries.first_row + offset[r]) * p.heads + head) * kHeadDim;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float (&from)[4] = out[r / 2][n];
      *reinterpret_cast<float2*>(to + 8 * n + 2 * t) =
          make_float2(from[2 * (r % 2)] * factor, from[2 * (r % 2) + 1] * factor);
    }
  }
}

}  // namespace gptoss::GPTOSS_GPU::attention_tiles
