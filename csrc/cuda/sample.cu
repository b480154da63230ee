// One block samples one row, in passes over the vocabulary. Filters are cut-offs in one total order of the tokens
// (likelier first, of equals the lower id), found by a radix search whose histograms hold integers, so that no sum
// depends on the order in which threads arrive.
#include "core/philox.h"
#include "cuda/backend.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int kThreads = 512;
constexpr int kBins = 256;
constexpr float kForbidden = -INFINITY;
constexpr uint32_t kInPrompt = 0x80000000u;

struct Shared {
  unsigned long long histogram[kBins];
  unsigned long long reached;
  unsigned long long prefix;
  float scratch[kThreads / kWarpSize];
  unsigned long long best[kThreads / kWarpSize];
};

// Larger is likelier; unique per token. Unsigned integers in the order of the floats, then the lower id first.
__device__ __forceinline__ unsigned long long rank_key(float logit, int token) {
  const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(token));
}
__device__ __forceinline__ int token_of(unsigned long long key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

// Calls f(token) for every token, spread over the block.
template <typename F>
__device__ __forceinline__ void each_token(int vocab, F&& f) {
  for (int t = static_cast<int>(threadIdx.x); t < vocab; t += kThreads) f(t);
}

// The largest key of the block, in every thread.
__device__ __forceinline__ unsigned long long block_largest(unsigned long long key, Shared& s) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, key, bits);
    key = other > key ? other : key;
  }
  __syncthreads();
  if (lane_id() == 0) s.best[warp_id()] = key;
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarpSize; ++warp) key = s.best[warp] > key ? s.best[warp] : key;
  return key;
}

// The key at which the sum of weight(token) over tokens of falling key reaches `target`; 0 if it never does.
template <typename Weight>
__device__ __forceinline__ unsigned long long cut_off(const float* logits, int vocab, unsigned long long target,
                                                      Weight&& weight, Shared& s) {
  if (threadIdx.x == 0) s.reached = 0, s.prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) s.histogram[bin] = 0;
    __syncthreads();
    const unsigned long long prefix = s.prefix;
    each_token(vocab, [&](int t) {
      const unsigned long long w = weight(t), key = rank_key(logits[t], t);
      const bool mine = shift == 56 || key >> (shift + 8) == prefix;
      if (mine && w > 0) atomicAdd(&s.histogram[key >> shift & (kBins - 1)], w);
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = kBins - 1;
      while (bin > 0 && s.reached + s.histogram[bin] < target) s.reached += s.histogram[bin--];
      s.prefix = s.prefix << 8 | static_cast<unsigned long long>(bin);
    }
    __syncthreads();
  }
  return s.prefix;
}

// Mask, logit bias and penalties: adjusted [vocab] from logits. `seen` [vocab] counts the
// generated tokens below its top bit, which marks the prompt's.
__device__ __forceinline__ void adjust(const SampleParams& p, const SampleRow& row, const float* logits,
                                       float* adjusted, uint32_t* seen) {
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t* allowed =
      row.mask_row >= 0 ? p.allowed + size_t(row.mask_row) * ((static_cast<size_t>(p.vocab) + 31) / 32) : nullptr;
  const bool repetition = row.repetition_penalty != 1.0f;
  const bool penalties = repetition || row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f;
  each_token(p.vocab, [&](int t) {
    adjusted[t] = allowed && !(allowed[t / 32] >> (t % 32) & 1u) ? kForbidden : logits[t];
    if (penalties) seen[t] = 0;
  });
  __syncthreads();
  // A token may be listed more than once, so one thread adds them.
  if (thread == 0)
    for (int i = row.bias_start; i < row.bias_end; ++i) adjusted[p.bias_token[i]] += p.bias_value[i];
  if (penalties) {
    for (int i = row.output_start + thread; i < row.output_end; i += kThreads) atomicAdd(&seen[p.history[i]], 1u);
    for (int i = row.prompt_start + thread; repetition && i < row.prompt_end; i += kThreads)
      atomicOr(&seen[p.history[i]], kInPrompt);
    __syncthreads();
    each_token(p.vocab, [&](int t) {
      const uint32_t count = seen[t] & ~kInPrompt;
      if (seen[t] == 0) return;
      float logit = adjusted[t];
      if (repetition) logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
      if (count > 0) logit -= row.presence_penalty + row.frequency_penalty * static_cast<float>(count);
      adjusted[t] = logit;
    });
  }
  __syncthreads();
}

__device__ __forceinline__ unsigned long long largest(const float* logits, int vocab, Shared& s) {
  unsigned long long best = 0;
  each_token(vocab, [&](int t) {
    const unsigned long long key = rank_key(logits[t], t);
    best = key > best ? key : best;
  });
  return block_largest(best, s);
}

// The drawn token; `logits` is used up.
__device__ __forceinline__ int draw(const SampleRow& row, int vocab, float* logits, Shared& s) {
  const int best = token_of(largest(logits, vocab, s));
  const float highest = logits[best];
  if (row.temperature == 0.0f || highest == kForbidden) return best;
  __syncthreads();  // everybody has read the largest
  each_token(vocab, [&](int t) { logits[t] = (logits[t] - highest) / row.temperature; });
  __syncthreads();

  const float threshold = row.min_p > 0.0f ? logf(row.min_p) : kForbidden;
  unsigned long long cut = 0;
  const auto candidate = [&](int t) {
    return logits[t] >= threshold && logits[t] != kForbidden && rank_key(logits[t], t) >= cut;
  };
  if (row.top_k > 0 && row.top_k < vocab)
    cut = cut_off(
        logits, vocab, static_cast<unsigned long long>(row.top_k), [&](int t) { return candidate(t) ? 1ull : 0ull; },
        s);
  if (row.top_p < 1.0f) {
    // Probabilities as integers, 2^40 for the likeliest token's.
    const auto mass = [&](int t) {
      return candidate(t) ? static_cast<unsigned long long>(expf(logits[t]) * 1099511627776.0f) : 0ull;
    };
    if (threadIdx.x == 0) s.reached = 0;
    __syncthreads();
    unsigned long long mine = 0;
    each_token(vocab, [&](int t) { mine += mass(t); });
    atomicAdd(&s.reached, mine);
    __syncthreads();
    const auto target =
        static_cast<unsigned long long>(static_cast<double>(s.reached) * static_cast<double>(row.top_p));
    __syncthreads();
    cut = cut_off(logits, vocab, target > 0 ? target : 1, mass, s);
  }

  unsigned long long winner = 0;
  each_token(vocab, [&](int t) {
    if (!candidate(t)) return;
    const unsigned long long key = rank_key(logits[t] + gumbel(row.seed, row.position, static_cast<uint32_t>(t)), t);
    winner = key > winner ? key : winner;
  });
  return token_of(block_largest(winner, s));
}

// Log-probability and rank of the drawn token, and the likeliest ones, from untouched logits.
__device__ __forceinline__ void report(const SampleParams& p, int index, const float* logits, int token, Shared& s) {
  unsigned long long key = largest(logits, p.vocab, s);
  const float highest = logits[token_of(key)];
  float total = 0.0f, before = 0.0f;
  const unsigned long long own = rank_key(logits[token], token);
  each_token(p.vocab, [&](int t) {
    total += expf(logits[t] - highest);
    before += rank_key(logits[t], t) > own ? 1.0f : 0.0f;
  });
  const float log_total = highest + logf(block_sum(total, s.scratch));
  const float rank = block_sum(before, s.scratch);  // exact: vocabularies stay below 2^24
  if (threadIdx.x == 0) {
    p.token_logprob[index] = logits[token] - log_total;
    p.token_rank[index] = static_cast<int>(rank) + 1;
  }
  const int count = p.logprobs < p.vocab ? p.logprobs : p.vocab;
  for (int i = 0; i < count; ++i) {
    if (threadIdx.x == 0) {
      p.top_token[size_t(index) * p.logprobs + i] = token_of(key);
      p.top_logprob[size_t(index) * p.logprobs + i] = logits[token_of(key)] - log_total;
    }
    unsigned long long next = 0;
    each_token(p.vocab, [&](int t) {
      const unsigned long long other = rank_key(logits[t], t);
      if (other < key && other > next) next = other;
    });
    key = block_largest(next, s);
  }
}

// One block a multiprocessor is what a step has: it may take registers as it likes.
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(SampleParams p, float* adjusted, uint32_t* seen) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  Shared& s = *shared_memory<Shared>();
  const int index = static_cast<int>(blockIdx.x);
  const float* logits = p.logits + size_t(index) * p.vocab;
  adjusted += size_t(index) * p.vocab;
  seen += size_t(index) * p.vocab;

  float bad = 0.0f;
  each_token(p.vocab, [&](int t) { bad += isfinite(logits[t]) ? 0.0f : 1.0f; });
  const bool failed = block_sum(bad, s.scratch) > 0.0f;
  if (threadIdx.x == 0) {
    p.status[index] = failed ? SampleStatus::not_finite : SampleStatus::drawn;
    p.token[index] = 0;
    p.token_logprob[index] = NAN;
    p.token_rank[index] = 0;
    for (int i = 0; i < p.logprobs; ++i) {
      p.top_token[size_t(index) * p.logprobs + i] = 0;
      p.top_logprob[size_t(index) * p.logprobs + i] = NAN;
    }
  }
  if (failed) return;
  adjust(p, p.rows[index], logits, adjusted, seen);
  const int token = draw(p.rows[index], p.vocab, adjusted, s);
  if (threadIdx.x == 0) p.token[index] = token;
  if (!p.rows[index].skip_report) report(p, index, logits, token, s);
}

}  // namespace

void GpuBackend::sample(const SampleParams& p) {
  auto* adjusted = partial_.reserve<float>(workspace::sample(p.count, p.vocab), stream_);
  launch({"sample", dim3(p.count), kThreads, sizeof(Shared), stream_}, sample_kernel, p, adjusted,
         reinterpret_cast<uint32_t*>(adjusted + size_t(p.count) * p.vocab));
}

}  // namespace gptoss::GPTOSS_GPU
