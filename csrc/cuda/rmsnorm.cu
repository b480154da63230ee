// x / sqrt(mean(x^2) + eps) * weight in float, stored as bf16. One block a row.
#include "cuda/backend.h"
#include "cuda/ptx.cuh"
#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    rmsnorm_kernel(const float* x, const int32_t* rows, int width, const bf16* weight, float eps, bf16* out) {
  ptx::wait_for_previous_kernel();
  ptx::let_next_kernel_start();
  const int row = static_cast<int>(blockIdx.x);
  const float* from = x + size_t(rows ? rows[row] : row) * width;
  float squares = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) squares += from[i] * from[i];
  const float mean = block_sum(squares, shared_memory<float>()) / static_cast<float>(width);
  const float scale = 1.0f / sqrtf(mean + eps);
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads)
    out[size_t(row) * width + i] = to_bf16(from[i] * scale * to_float(weight[i]));
}

}  // namespace

void GpuBackend::rmsnorm(const char* op, const float* x, const int32_t* rows, int count, int width, const bf16* weight,
                         float eps, bf16* out) {
  launch({op, dim3(count), kThreads, kThreads / kWarpSize * sizeof(float), stream_}, rmsnorm_kernel, x, rows, width,
         weight, eps, out);
}

}  // namespace gptoss::GPTOSS_GPU
