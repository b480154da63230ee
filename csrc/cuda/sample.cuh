// What the sampler's kernels share: the order of tokens, the slices of a row, and how a block reduces and searches.
// Many blocks work on one row; whatever they add up or choose among does not depend on the order in which they come.
#pragma once

#include "core/philox.h"
#include "cuda/arrivals.cuh"
#include "cuda/backend.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU::sampling {

using Key = unsigned long long;  // as CUDA's atomics name it

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kSlice = workspace::kSampleSlice, kEach = kSlice / kThreads;
constexpr int kBins = workspace::kSampleBins, kOwnBins = kBins / kThreads;
constexpr float kForbidden = -INFINITY;

// Larger is likelier; unique per token. Unsigned integers in the order of the floats, then the lower id first.
__device__ __forceinline__ Key rank_key(float logit, int token) {
  const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<Key>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(token));
}
__device__ __forceinline__ int token_of(Key key) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key)); }
__device__ __forceinline__ float value_of(Key key) {
  const auto ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered);
}

// What one block says of its slice of a row.
struct Slice {
  Key untouched;    // largest key of the logits; kNotFinite if one is NaN or infinite
  Key largest;      // of the adjusted logits
  Key drawn;        // of the adjusted logits, that of the token drawn within the slice
  float total;      // sum of exp(logit - the row's largest)
  uint32_t before;  // tokens likelier than the drawn one
};
static_assert(sizeof(Slice) == workspace::kSampleSliceBytes);
constexpr Key kNotFinite = ~Key{0};

// Which tokens a row's draw leaves out.
enum class Cuts : int { none, min_p, bins };

struct Row {
  Key untouched, largest;         // as in Slice
  Key winner;                     // largest of logit + noise among the tokens that no cut can reach
  Key before_edge, before_first;  // masses of the bins before those
  Key bound;                      // at least `logprobs` keys of the untouched logits are as large
  Cuts cuts;
  int edge, in_edge;       // bin in which top-k cuts, kBins: none; how many of its tokens stay
  int first, last;         // bins among which top-p cuts; kBins, -1: none
  uint32_t listed, found;  // lengths of the list: of tokens that a cut may reach, of likely ones
};
static_assert(sizeof(Row) == workspace::kSampleRowBytes);

// The workspace. Slices, bins, logits and tokens of a row lie together.
struct Memory {
  Row* row;
  Slice* slice;
  Key* mass;
  uint32_t* count;
  float* adjusted;
  uint32_t* list;
  uint32_t* arrived;  // [rows], zero between launches
  int vocab, slices;

  __device__ __forceinline__ Slice* slices_of(int row_index) const { return slice + size_t(row_index) * slices; }
  __device__ __forceinline__ float* adjusted_of(int row_index) const { return adjusted + size_t(row_index) * vocab; }
  __device__ __forceinline__ uint32_t* list_of(int row_index) const { return list + size_t(row_index) * vocab; }
};

// Blocks: (row, slice).
__device__ __forceinline__ int row_index() { return static_cast<int>(blockIdx.x); }
__device__ __forceinline__ int slice_index() { return static_cast<int>(blockIdx.y); }

// Token of the vocabulary that is the thread's i-th: four in a row have one Philox counter (core/philox.h).
__device__ __forceinline__ int token_at(int i) {
  const int thread = static_cast<int>(threadIdx.x), group = thread / 16 + kThreads / 16 * (i / 4);
  return slice_index() * kSlice + kGumbelGroup * group + 16 * (i % 4) + thread % 16;
}

// Calls f(i, token, noise) for the thread's tokens that there are.
template <typename F>
__device__ __forceinline__ void each_with_noise(const SampleRow& row, int vocab, F&& f) {
#pragma unroll
  for (int group = 0; group < kEach / 4; ++group) {
    const PhiloxWords words =
        philox(row.seed, gumbel_counter(static_cast<uint32_t>(token_at(4 * group))), row.position);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = token_at(4 * group + i);
      if (token < vocab) f(4 * group + i, token, words.word[i]);
    }
  }
}

// A logit as the draw sees it: the likeliest has 0.
__device__ __forceinline__ float scaled(float logit, float highest, const SampleRow& row) {
  return (logit - highest) / row.temperature;
}
// Bins of scaled logits, those of the likeliest tokens first: steps of 1 / 32 down to -24, of 2 beyond, where a low
// temperature may have put a top-k's last tokens; the last bin holds the rest.
__device__ __forceinline__ int bin_of(float logit) {
  constexpr float kFine = kBins * 3 / 4;
  const float fine = -32.0f * logit, place = fine < kFine ? fine : kFine + 0.5f * (-logit - kFine / 32.0f);
  return place < static_cast<float>(kBins) ? static_cast<int>(place) : kBins - 1;
}
// A probability as an integer, 2^40 for the likeliest token's: sums do not depend on their order.
__device__ __forceinline__ Key mass_of(float logit) { return static_cast<Key>(expf(logit) * 1099511627776.0f); }
constexpr int kLowBits = 20;  // of a mass, summed apart: a slice's sums of either half fit 32 bits

struct Shared {
  Key scratch[kWarps];
  float sums[kWarps];
  Key drawn, before;
  int bin, last;
};

// op over the values of all threads, in every thread; in any order, so op must not mind. All threads call it.
template <typename Op>
__device__ __forceinline__ Key block_reduce(Key value, Op&& op, Shared& s) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, bits));
  __syncthreads();  // whoever used the scratch before has read it
  if (lane_id() == 0) s.scratch[warp_id()] = value;
  __syncthreads();
  value = s.scratch[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) value = op(value, s.scratch[warp]);
  return value;
}
__device__ __forceinline__ Key block_largest(Key key, Shared& s) {
  return block_reduce(key, [](Key a, Key b) { return a > b ? a : b; }, s);
}

struct Found {
  int bin;
  Key before;  // sum of the bins before it
};

// The bin at which the sum from bin 0 on reaches `target`; {kBins, sum} if it never does. The thread's are the bins
// [kOwnBins threadIdx.x, ...). All threads call it.
__device__ __forceinline__ Found find_bin(const Key (&own)[kOwnBins], Key target, Shared& s) {
  Key sum = 0;
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) sum += own[i];
  Key through = sum;  // of the lanes up to this one
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const Key other = __shfl_up_sync(kAllLanes, through, distance);
    if (lane_id() >= distance) through += other;
  }
  __syncthreads();  // whoever used the results of another search has read them
  if (lane_id() == kWarpSize - 1) s.scratch[warp_id()] = through;
  if (threadIdx.x == 0) s.bin = kBins;
  __syncthreads();
  Key before = through - sum;
  for (int warp = 0; warp < warp_id(); ++warp) before += s.scratch[warp];
  if (threadIdx.x == kThreads - 1 && before + sum < target) s.before = before + sum;
#pragma unroll
  for (int i = 0; i < kOwnBins; ++i) {
    if (before < target && before + own[i] >= target)
      s.bin = kOwnBins * static_cast<int>(threadIdx.x) + i, s.before = before;
    before += own[i];
  }
  __syncthreads();
  return {s.bin, s.before};
}

}  // namespace gptoss::GPTOSS_GPU::sampling
