// RMSNorm of one row by one block of kThreads threads, always in the same order.
#pragma once

#include "cuda/warp.cuh"

namespace gptoss::GPTOSS_GPU::norm {

constexpr int kThreads = 256;
constexpr size_t kScratchBytes = kThreads / kWarpSize * sizeof(float);

// 1 / sqrt(mean(x^2) + eps), in every thread. All threads call it.
__device__ __forceinline__ float scale_of(const float* x, int width, float eps, float* scratch) {
  float squares = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads) squares += x[i] * x[i];
  return 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(width) + eps);
}

// to[i] = bf16(x[i] * scale * weight[i])
__device__ __forceinline__ void apply(const float* x, int width, const bf16* weight, float eps, float* scratch,
                                      bf16* to) {
  const float scale = scale_of(x, width, eps, scratch);
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kThreads)
    to[i] = to_bf16(x[i] * scale * to_float(weight[i]));
}

}  // namespace gptoss::GPTOSS_GPU::norm
