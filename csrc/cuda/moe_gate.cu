// The norm, the router's logits, the largest few, their softmax: one block a row. The block that arrives last
// groups all rows' assignments by expert.
#include "cuda/backend.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kMaxExperts = 128;

// The block's shared memory: the normed row [hidden], then this.
struct Shared {
  float logits[kMaxExperts];
  float scratch[kWarps];
  int count[kMaxExperts];
  int start[kMaxExperts + 1];
  int last;
};

// A total order in which NaN is smallest and, of equal logits, the lower expert comes first.
__device__ __forceinline__ bool better(float a, int ea, float b, int eb) {
  if (isnan(a) != isnan(b)) return isnan(b);
  return a > b || (!(a < b) && ea < eb);
}

// Warp 0: the `chosen` best of the logits, best first; each lane looks after every 32nd expert.
__device__ __forceinline__ void choose(const float* logits, int experts, int chosen, int32_t* expert, float* weight) {
  const int lane = lane_id();
  uint32_t taken = 0;  // of this lane's up to four experts
  float largest = 0.0f, sum = 0.0f;
  for (int slot = 0; slot < chosen; ++slot) {
    int best = -1;
    float best_logit = 0.0f;
    for (int i = 0; i * kWarpSize + lane < experts; ++i) {
      const int e = i * kWarpSize + lane;
      if (!(taken >> i & 1u) && (best < 0 || better(logits[e], e, best_logit, best))) best = e, best_logit = logits[e];
    }
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      const int other = __shfl_xor_sync(kAllLanes, best, bits);
      const float other_logit = __shfl_xor_sync(kAllLanes, best_logit, bits);
      if (other >= 0 && (best < 0 || better(other_logit, other, best_logit, best)))
        best = other, best_logit = other_logit;
    }
    if (best % kWarpSize == lane) taken |= 1u << (best / kWarpSize);
    if (slot == 0) largest = best_logit;
    const float e = expf(best_logit - largest);
    sum += e;
    if (lane == 0) expert[slot] = best, weight[slot] = e;
  }
  if (lane == 0)
    for (int slot = 0; slot < chosen; ++slot) weight[slot] /= sum;
}

// Warp w counts, then places, the assignments of experts w, w + kWarps, ... in ascending order.
__device__ __forceinline__ void group(const int32_t* expert, int assignments, int experts, const ExpertGroups& groups,
                                      Shared& s) {
  const int lane = lane_id();
  for (int e = warp_id(); e < experts; e += kWarps) {
    int count = 0;
    for (int first = 0; first < assignments; first += kWarpSize) {
      const int a = first + lane;
      count += __popc(__ballot_sync(kAllLanes, a < assignments && expert[a] == e));
    }
    if (lane == 0) s.count[e] = count;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    s.start[0] = 0;
    for (int e = 0; e < experts; ++e) s.start[e + 1] = s.start[e] + s.count[e];
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e <= experts; e += kThreads) groups.start[e] = s.start[e];
  for (int e = warp_id(); e < experts; e += kWarps) {
    int place = s.start[e];
    for (int first = 0; first < assignments; first += kWarpSize) {
      const int a = first + lane;
      const bool mine = a < assignments && expert[a] == e;
      const uint32_t all = __ballot_sync(kAllLanes, mine);
      if (mine) groups.order[place + __popc(all & ((1u << lane) - 1u))] = a;
      place += __popc(all);
    }
  }
}

__global__ void __launch_bounds__(kThreads) moe_gate_kernel(MoeGateParams p, uint32_t* arrived) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int hidden = p.router.in, experts = p.router.out, row = static_cast<int>(blockIdx.x);
  auto* normed = shared_memory<float>();
  Shared& s = *reinterpret_cast<Shared*>(normed + hidden);
  const int lane = lane_id(), thread = static_cast<int>(threadIdx.x);

  const float* x = p.residual + size_t(row) * hidden;
  float squares = 0.0f;
  for (int i = thread; i < hidden; i += kThreads) squares += x[i] * x[i];
  const float scale = 1.0f / sqrtf(block_sum(squares, s.scratch) / static_cast<float>(hidden) + p.norm_eps);
  for (int i = thread; i < hidden; i += kThreads) {
    normed[i] = x[i] * scale * to_float(p.norm_weight[i]);
    p.normed.b16[size_t(row) * hidden + i] = to_bf16(normed[i]);
  }
  __syncthreads();

  // A warp takes an expert at a time; the router reads the float row: a flipped expert costs more than these sums.
  for (int e = warp_id(); e < experts; e += kWarps) {
    const bf16* w = p.router.weight + size_t(e) * hidden;
    float sum = 0.0f;
    for (int i = 8 * lane; i < hidden; i += 8 * kWarpSize) {
      const uint4 v = *reinterpret_cast<const uint4*>(w + i);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum += __uint_as_float(words[k] << 16) * normed[i + 2 * k];
        sum += __uint_as_float(words[k] & 0xffff0000u) * normed[i + 2 * k + 1];
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) s.logits[e] = sum + to_float(p.router.bias[e]);
  }
  __syncthreads();
  if (warp_id() == 0)
    choose(s.logits, experts, p.chosen, p.expert + size_t(row) * p.chosen, p.routing_weight + size_t(row) * p.chosen);

  __threadfence();
  __syncthreads();
  if (thread == 0) s.last = atomicAdd(arrived, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!s.last) return;
  __threadfence();
  if (thread == 0) atomicExch(arrived, 0u);
  group(p.expert, p.rows * p.chosen, experts, p.groups, s);
}

}  // namespace

void GpuBackend::moe_gate(const MoeGateParams& p) {
  const size_t shared = sizeof(float) * p.router.in + sizeof(Shared);
  launch({"moe_gate", dim3(p.rows), kThreads, shared, stream_}, moe_gate_kernel, p,
         counters_.reserve<uint32_t>(sizeof(uint32_t), stream_));
}

}  // namespace gptoss::GPTOSS_GPU
