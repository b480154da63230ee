// The norm, the router's logits, the largest few, their softmax. Where there are few rows, several blocks share one and
// the last to arrive chooses; where there are many, a block takes eight, for which it reads the router once. The block
// that arrives last of all groups all rows' assignments by expert. A row's sums have one order in either.
#include "cuda/arrivals.cuh"
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

constexpr int kRows = 8;      // that a block takes where there are many
constexpr int kTogether = 4;  // experts that a warp then has at a time
static_assert(kThreads == norm::kThreads && kRows == kWarps);

// The block's shared memory: the normed rows, then this.
struct Shared {
  float logits[kRows][kMaxExperts];
  float scratch[kRows][kWarps];
  int place[kWarps][kMaxExperts];  // where a warp puts its next assignment of an expert
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

// Calls f(assignment, lanes of the warp whose assignments have its expert) for a stretch, in ascending order.
template <typename F>
__device__ __forceinline__ void each_assignment(const int32_t* expert, int begin, int end, F&& f) {
  constexpr int kAhead = 4;  // loads on their way at once
  for (int first = begin; first < end; first += kAhead * kWarpSize) {
    int own[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int a = first + k * kWarpSize + lane_id();
      own[k] = a < end ? expert[a] : -1;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k * kWarpSize >= end) break;
      const uint32_t same = __match_any_sync(kAllLanes, static_cast<uint32_t>(own[k]));
      f(first + k * kWarpSize + lane_id(), own[k], same);
      __syncwarp();  // the next to count an expert may be another lane
    }
  }
}

// Each warp counts the assignments of a stretch by expert; then it knows where they go, and places them in order.
__device__ __forceinline__ void group(const int32_t* expert, int assignments, int experts, const ExpertGroups& groups,
                                      Shared& s) {
  const int warp = warp_id(), lane = lane_id(), thread = static_cast<int>(threadIdx.x);
  const int stretch = layout::tiles(assignments, kThreads) * kWarpSize;
  const int begin = warp * stretch, end = begin + stretch < assignments ? begin + stretch : assignments;
  int* place = s.place[warp];
  for (int e = lane; e < experts; e += kWarpSize) place[e] = 0;
  __syncwarp();
  const auto is_first = [&](uint32_t same) { return __ffs(static_cast<int>(same)) - 1 == lane; };
  each_assignment(expert, begin, end, [&](int, int e, uint32_t same) {
    if (e >= 0 && is_first(same)) place[e] += __popc(same);
  });
  __syncthreads();
  if (warp == 0) {
    int before = 0;  // assignments of the experts of earlier rounds
    for (int base = 0; base < experts; base += kWarpSize) {
      const int e = base + lane;
      int count = 0;
      for (int w = 0; w < kWarps && e < experts; ++w) count += s.place[w][e];
      int through = count;  // of the lanes up to this one
#pragma unroll
      for (int distance = 1; distance < kWarpSize; distance *= 2) {
        const int other = __shfl_up_sync(kAllLanes, through, distance);
        if (lane >= distance) through += other;
      }
      int at = before + through - count;
      if (e < experts) groups.start[e] = at;
      for (int w = 0; w < kWarps && e < experts; ++w) {
        const int own = s.place[w][e];
        s.place[w][e] = at;
        at += own;
      }
      before += __shfl_sync(kAllLanes, through, kWarpSize - 1);
    }
  }
  if (thread == 0) groups.start[experts] = assignments;
  __syncthreads();
  each_assignment(expert, begin, end, [&](int a, int e, uint32_t same) {
    const int at = e >= 0 ? place[e] : 0;
    if (e >= 0) groups.order[at + __popc(same & ((1u << lane) - 1u))] = a;
    __syncwarp();  // all have read it
    if (e >= 0 && is_first(same)) place[e] = at + __popc(same);
  });
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

struct GateKernelParams {
  MoeGateParams op;
  float* logits;      // [rows, experts], where several blocks share rows
  uint32_t* arrived;  // [1 + groups of rows], zero between launches
};

// What is the same in either kernel once a block has its logits: of the blocks that share `count` rows from `row` on
// the last one chooses, a warp a row, and the last of all groups. `logits` [count, stride].
__device__ __forceinline__ void finish(const GateKernelParams& params, int row, int count, const float* logits,
                                       int stride, Shared& s) {
  const MoeGateParams& p = params.op;
  if (gridDim.y == 1)
    __syncthreads();
  else if (!is_last(params.arrived + 1 + blockIdx.x, gridDim.y, &s.last))
    return;
  if (const int n = warp_id(); n < count)
    choose(logits + size_t(n) * stride, p.control_of(row + n), p.router.out, p.chosen,
           p.expert + size_t(row + n) * p.chosen, p.routing_weight + size_t(row + n) * p.chosen);
  if (is_last(params.arrived, gridDim.x, &s.last)) group(p.expert, p.rows * p.chosen, p.router.out, p.groups, s);
}

// One row, and of its experts every gridDim.y-th eight.
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
  const float scale = norm::scale_of(x, hidden, p.norm_eps, s.scratch[0]);
  for (int i = thread; i < hidden; i += kThreads) {
    normed[i] = x[i] * scale * to_float(p.norm_weight[i]);
    if (part == 0) p.normed.b16[size_t(row) * hidden + i] = to_bf16(normed[i]);
  }
  __syncthreads();

  float* logits = parts == 1 ? s.logits[0] : params.logits + size_t(row) * experts;
  const auto keep = [&](int e, float sum) {
    if (lane == 0) logits[e] = with_lora(p.lora, row, row, 0, experts, e, sum + to_float(p.router.bias[e]));
  };
  if (own < experts) keep(own, first.logit(normed, hidden));
#pragma unroll 1
  for (int e = own + parts * kWarps; e < experts; e += parts * kWarps)
    keep(e, Expert::rest(p.router.weight + size_t(e) * hidden, 0, normed, hidden, 0.0f));
  finish(params, row, 1, logits, experts, s);
}

// Eight rows, and of their experts every gridDim.y-th 32, four to a warp: a weight that has been read meets eight rows,
// and a number of a row four weights. A row lies in shared memory as two halves of each eight numbers, so that the
// lanes of a warp read 16 bytes side by side.
constexpr int kSkew = 16;  // floats between the halves: then writing meets every bank once as well
constexpr size_t row_floats(int hidden) { return size_t(hidden) + kSkew; }
__device__ __forceinline__ int place_in_row(int i, int hidden) {
  return (i / 4 % 2) * (hidden / 2 + kSkew) + i / 8 * 4 + i % 4;
}

__global__ void __launch_bounds__(kThreads, 2) moe_gate_rows_kernel(GateKernelParams params) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const MoeGateParams& p = params.op;
  const int hidden = p.router.in, experts = p.router.out, row = kRows * static_cast<int>(blockIdx.x);
  const int count = p.rows - row < kRows ? p.rows - row : kRows;
  auto* normed = shared_memory<float>();
  Shared& s = *reinterpret_cast<Shared*>(normed + kRows * row_floats(hidden));
  const int lane = lane_id(), warp = warp_id(), thread = static_cast<int>(threadIdx.x);

  // norm::scale_of for all rows at once: the same sums in the same order. Rows that do not exist repeat the last.
  const auto x = [&](int n) { return p.residual + size_t(row + (n < count ? n : count - 1)) * hidden; };
  float squares[kRows] = {};
  for (int i = thread; i < hidden; i += kThreads)
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      const float v = x(n)[i];
      normed[n * row_floats(hidden) + place_in_row(i, hidden)] = v;
      squares[n] += v * v;
    }
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    squares[n] = warp_sum(squares[n]);
    if (lane == 0) s.scratch[n][warp] = squares[n];
  }
  __syncthreads();
  float scale[kRows];
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    float total = 0.0f;
    for (int w = 0; w < kWarps; ++w) total += s.scratch[n][w];
    scale[n] = 1.0f / sqrtf(total / static_cast<float>(hidden) + p.norm_eps);
  }
  for (int i = thread; i < hidden; i += kThreads) {
    const float weight = to_float(p.norm_weight[i]);
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
      float& v = normed[n * row_floats(hidden) + place_in_row(i, hidden)];
      v = v * scale[n] * weight;
      if (blockIdx.y == 0 && n < count) p.normed.b16[size_t(row + n) * hidden + i] = to_bf16(v);
    }
  }
  __syncthreads();

  const bool shares = gridDim.y > 1;
  float* logits = shares ? params.logits + size_t(row) * experts : s.logits[0];
  const int stride = shares ? experts : kMaxExperts;
#pragma unroll 1
  for (int base = kTogether * (static_cast<int>(blockIdx.y) * kWarps + warp); base < experts;
       base += kTogether * kWarps * static_cast<int>(gridDim.y)) {
    float sums[kTogether][kRows] = {};
    const bf16* weights[kTogether];
#pragma unroll
    for (int e = 0; e < kTogether; ++e)  // experts that do not exist repeat the last
      weights[e] = p.router.weight + size_t(base + e < experts ? base + e : experts - 1) * hidden;
#pragma unroll 1
    for (int k = 0; Expert::place(k) < hidden; ++k) {
      uint4 loaded[kTogether];
#pragma unroll
      for (int e = 0; e < kTogether; ++e) loaded[e] = Expert::load(weights[e], k);
      const int unit = Expert::place(k) / 8;
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        const float* at = normed + n * row_floats(hidden) + 4 * unit;
        const float4 low = *reinterpret_cast<const float4*>(at);
        const float4 high = *reinterpret_cast<const float4*>(at + hidden / 2 + kSkew);
        const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int e = 0; e < kTogether; ++e) Expert::add(loaded[e], v, sums[e][n]);
      }
    }
#pragma unroll
    for (int e = 0; e < kTogether; ++e)
#pragma unroll
      for (int n = 0; n < kRows; ++n) {
        const float sum = warp_sum(sums[e][n]);
        // Lane n keeps row n's, so that adapters of the rows are applied side by side.
        if (lane == n && n < count && base + e < experts)
          logits[size_t(n) * stride + base + e] =
              with_lora(p.lora, row + n, row + n, 0, experts, base + e, sum + to_float(p.router.bias[base + e]));
      }
  }
  finish(params, row, count, logits, stride, s);
}

}  // namespace

void GpuBackend::moe_gate(const MoeGateParams& p) {
  constexpr int kFewRows = 64;               // for which a block each is enough to keep the GPU busy
  constexpr size_t kMostShared = 99 * 1024;  // of a block on any GPU
  const size_t together = sizeof(float) * kRows * row_floats(p.router.in) + sizeof(Shared);
  const bool few = p.rows <= kFewRows || together > kMostShared;
  const int groups = few ? p.rows : layout::tiles(p.rows, kRows);
  // Rows alone would leave most of the GPU idle: blocks of eight experts share one.
  const int parts = !few                 ? layout::tiles(p.router.out, kTogether * kWarps)
                    : p.rows <= kFewRows ? layout::tiles(p.router.out, kWarps)
                                         : 1;
  const size_t shared = few ? sizeof(float) * p.router.in + sizeof(Shared) : together;
  const GateKernelParams params{p, partial_.reserve<float>(workspace::gate_logits(p.rows, p.router.out), stream_),
                                counters_.reserve<uint32_t>(workspace::gate_counters(p.rows), stream_)};
  launch({"moe_gate", dim3(groups, parts), kThreads, shared, stream_}, few ? moe_gate_kernel : moe_gate_rows_kernel,
         params);
}

}  // namespace gptoss::GPTOSS_GPU
