// A x of the rows that have an adapter. Grid: (products, targets); a block holds its x in shared memory, [width]
// floats, and each warp takes every eighth row of A.
#include "cuda/backend.h"
#include "cuda/norm.cuh"
#include "cuda/ptx.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int kThreads = norm::kThreads;
constexpr int kWarps = kThreads / kWarpSize;

__global__ void __launch_bounds__(kThreads) lora_kernel(LoraParams p) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int n = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const Lora& target = p.target[blockIdx.y];
  const LoraMatrix* matrix = target.of(p.row_of(n));
  if (matrix == nullptr) return;
  auto* x = shared_memory<float>();
  const size_t at = p.input_of(n);
  if (p.norm_weight) {
    const float scale = norm::scale_of(p.input.f32 + at, p.width, p.norm_eps, x + p.width);
    for (int i = thread; i < p.width; i += kThreads) x[i] = p.input.f32[at + i] * scale * to_float(p.norm_weight[i]);
  } else {
    for (int i = thread; i < p.width; i += kThreads)
      x[i] = p.input.b16 ? to_float(p.input.b16[at + i]) : p.input.f32[at + i];
  }
  __syncthreads();
  for (int k = warp_id(); k < matrix->rank; k += kWarps) {
    const float* a = p.a_of(*matrix, n) + size_t(k) * p.width;
    float sum = 0.0f;
    for (int i = lane_id(); i < p.width; i += kWarpSize) sum += a[i] * x[i];
    sum = warp_sum(sum);
    if (lane_id() == 0) target.product[size_t(n) * target.stride + k] = sum;
  }
}

}  // namespace

void GpuBackend::lora(const LoraParams& p) {
  if (p.count == 0) return;
  const size_t shared = sizeof(float) * p.width + norm::kScratchBytes;
  launch({"lora", dim3(p.count, LoraParams::kMaxTargets), kThreads, shared, stream_}, lora_kernel, p);
}

}  // namespace gptoss::GPTOSS_GPU
