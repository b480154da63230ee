// Blocks that finish what others began: the last to come sees what all of them wrote.
#pragma once

#include "cuda/device.h"

namespace gptoss::GPTOSS_GPU {

// Whether this block is the last of `count` to come here; what the others wrote before is visible to it, and the
// counter is zero again. `last` lies in shared memory. All threads call it.
__device__ __forceinline__ bool is_last(uint32_t* arrived, uint32_t count, int* last) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *last = atomicAdd(arrived, 1u) == count - 1;
  __syncthreads();
  if (!*last) return false;
  __threadfence();
  if (threadIdx.x == 0) atomicExch(arrived, 0u);
  return true;
}

}  // namespace gptoss::GPTOSS_GPU
