// RMSNorm of one row by one block of kThreads threads, always in the same order.
#pragma once

#include "cuda/layout.h"
#include "cuda/ptx.cuh"
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

// to[i] = bf16(x[i] * scale * weight[i]), in the order of decoded rows (layout.h) if it is one. `width` is even.
__device__ __forceinline__ void apply(const float* x, int width, const bf16* weight, float eps, float* scratch,
                                      bool decoded, bf16* to) {
  const float scale = scale_of(x, width, eps, scratch);
  for (int i = static_cast<int>(threadIdx.x); i < width / 2; i += kThreads) {
    const float2 v = reinterpret_cast<const float2*>(x)[i];
    reinterpret_cast<uint32_t*>(to)[decoded ? layout::decoded_pair(i) : i] =
        ptx::pack_bf16(v.x * scale * to_float(weight[2 * i]), v.y * scale * to_float(weight[2 * i + 1]));
  }
}

}  // namespace gptoss::GPTOSS_GPU::norm
