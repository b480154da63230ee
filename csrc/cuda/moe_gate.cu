// The norm, the router's logits, the largest few, their softmax: one block a row, or several where there are few
// rows; of those the last to arrive chooses. The block that arrives last of all
// groups all rows' assignments by expert.
#include "cuda/backend.h"
#include "cuda/lora.cuh"
#include "cuda/norm.cuh"
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

// A total order in which a higher rank comes first, NaN is smallest and, of equal logits, the lower expert comes first.
__device__ __forceinline__ bool better(const ExpertControl* control, float a, int ea, float b, int eb) {
  if (control && control[ea].rank != control[eb].rank) return control[ea].rank > control[eb].rank;
  if (isnan(a) != isnan(b)) return isnan(b);
  return a > b || (!(a < b) && ea < eb);
}

// Warp 0: the `chosen` best of the logits, best first; each lane looks after every 32nd expert.
__device__ __forceinline__ void choose(const float* logits, const ExpertControl* control, int experts, int chosen,
                                       int32_t* expert, float* weight) {
  const int lane = lane_id();
  uint32_t taken = 0;  // of this lane's up to four experts
  float largest = 0.0f, sum = 0.0f;
  for (int slot = 0; slot < chosen; ++slot) {
    int best = -1;
    float best_logit = 0.0f;
    for (int i = 0; i * kWarpSize + lane < experts; ++i) {
      const int e = i * kWarpSize + lane;
      const float logit = control ? logits[e] + control[e].boost : logits[e];
      if (!(taken >> i & 1u) && (best < 0 || better(control, logit, e, best_logit, best))) best = e, best_logit = logit;
    }
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
      const int other = __shfl_xor_sync(kAllLanes, best, bits);
      const float other_logit = __shfl_xor_sync(kAllLanes, best_logit, bits);
      if (other >= 0 && (best < 0 || better(control, other_logit, other, best_logit, best)))
        best = other, best_logit = other_logit;
    }
    if (best % kWarpSize == lane) taken |= 1u << (best / kWarpSize);
    // A forced expert may come before one with a larger logit: what was added up so far then shrinks.
    if (slot == 0) largest = best_logit;
    if (control && best_logit > largest) {
      const float factor = expf(largest - best_logit);
      sum *= factor;
      for (int before = 0; lane == 0 && before < slot; ++before) weight[before] *= factor;
      largest = best_logit;
    }
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

// The router's logit of one expert, by one warp; the router reads the float row: a flipped expert costs more than
// these sums. The first weights of `Expert` are loaded before anything is known of the row.
struct Expert {
  static constexpr int kAhead = 12;  // loads of 256 weights: 2880 take 11.25
  const bf16* weight;
  uint4 first[kAhead];

  __device__ __forceinline__ Expert(const Linear& router, int e) : weight(router.weight + size_t(e) * router.in) {
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (place(k) < router.in) first[k] = load(weight, k);
  }

  static __device__ __forceinline__ int place(int k) { return 8 * (lane_id() + kWarpSize * k); }
  static __device__ __forceinline__ uint4 load(const bf16* weight, int k) {
    return *reinterpret_cast<const uint4*>(weight + place(k));
  }
  static __device__ __forceinline__ void add(const uint4& v, const float* x, float& sum) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum += __uint_as_float(words[i] << 16) * x[2 * i];
      sum += __uint_as_float(words[i] & 0xffff0000u) * x[2 * i + 1];
    }
  }
  // Adds the weights from load k on.
  static __device__ __forceinline__ float rest(const bf16* weight, int k, const float* normed, int hidden, float sum) {
#pragma unroll 4
    for (; place(k) < hidden; ++k) add(load(weight, k), normed + place(k), sum);
    return warp_sum(sum);
  }

  __device__ __forceinline__ float logit(const float* normed, int hidden) const {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (place(k) < hidden) add(first[k], normed + place(k), sum);
    return rest(weight, kAhead, normed, hidden, sum);
  }
};

// Whether this block is the last of `count` to come here; what the others wrote before is visible to it.
__device__ __forceinline__ bool is_last(uint32_t* arrived, uint32_t count, Shared& s) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) s.last = atomicAdd(arrived, 1u) == count - 1;
  __syncthreads();
  if (!s.last) return false;
  __threadfence();
  if (threadIdx.x == 0) atomicExch(arrived, 0u);
  return true;
}

struct GateKernelParams {
  MoeGateParams op;
  float* logits;      // [rows, experts], where several blocks share a row
  uint32_t* arrived;  // [1 + rows], zero between launches
};

__global__ void __launch_bounds__(kThreads, 2) moe_gate_kernel(GateKernelParams params) {
  const MoeGateParams& p = params.op;
  const int hidden = p.router.in, experts = p.router.out, row = static_cast<int>(blockIdx.x);
  const int parts = static_cast<int>(gridDim.y), part = static_cast<int>(blockIdx.y);
  auto* normed = shared_memory<float>();
  Shared& s = *reinterpret_cast<Shared*>(normed + hidden);
  const int lane = lane_id(), thread = static_cast<int>(threadIdx.x);
  const int own = part * kWarps + warp_id();
  Expert first(p.router, own < experts ? own : 0);
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();

  const float* x = p.residual + size_t(row) * hidden;
  const float scale = norm::scale_of(x, hidden, p.norm_eps, s.scratch);
  for (int i = thread; i < hidden; i += kThreads) {
    normed[i] = x[i] * scale * to_float(p.norm_weight[i]);
    if (part == 0) p.normed.b16[size_t(row) * hidden + i] = to_bf16(normed[i]);
  }
  __syncthreads();

  float* logits = parts == 1 ? s.logits : params.logits + size_t(row) * experts;
  const auto keep = [&](int e, float sum) {
    if (lane == 0) logits[e] = with_lora(p.lora, row, row, 0, experts, e, sum + to_float(p.router.bias[e]));
  };
  if (own < experts) keep(own, first.logit(normed, hidden));
#pragma unroll 1
  for (int e = own + parts * kWarps; e < experts; e += parts * kWarps)
    keep(e, Expert::rest(p.router.weight + size_t(e) * hidden, 0, normed, hidden, 0.0f));
  if (parts == 1)
    __syncthreads();
  else if (!is_last(params.arrived + 1 + row, static_cast<uint32_t>(parts), s))
    return;
  if (warp_id() == 0)
    choose(logits, p.control_of(row), experts, p.chosen, p.expert + size_t(row) * p.chosen,
           p.routing_weight + size_t(row) * p.chosen);
  if (is_last(params.arrived, gridDim.x, s)) group(p.expert, p.rows * p.chosen, experts, p.groups, s);
}

}  // namespace

void GpuBackend::moe_gate(const MoeGateParams& p) {
  const size_t shared = sizeof(float) * p.router.in + sizeof(Shared);
  // A few rows alone would leave most of the GPU idle: then blocks of eight experts share a row.
  const int parts = p.rows <= workspace::kSharedGateRows ? layout::tiles(p.router.out, kWarps) : 1;
  const GateKernelParams params{
      p, partial_.reserve<float>(workspace::gate_logits(p.router.out), stream_),
      counters_.reserve<uint32_t>(sizeof(uint32_t) * (1 + workspace::kSharedGateRows), stream_)};
  launch({"moe_gate", dim3(p.rows, parts), kThreads, shared, stream_}, moe_gate_kernel, params);
}

}  // namespace gptoss::GPTOSS_GPU
