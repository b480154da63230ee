// Reductions in one fixed order, over a warp and over a block.
#pragma once

#include "cuda/device.h"

namespace gptoss::GPTOSS_GPU {

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarpSize; }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(kAllLanes, value, bits);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, bits));
  return value;
}

// Sum over a block of whole warps, the same in every thread; `scratch` holds one float a warp. All threads call it.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();  // whoever used `scratch` before has read it
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarpSize; ++warp) total += scratch[warp];
  return total;
}

}  // namespace gptoss::GPTOSS_GPU
