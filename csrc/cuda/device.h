// What a kernel may use of its environment, from nvcc, or from the simulated GPU of tests/simt.
//
// The kernels are compiled twice: into namespace gptoss::cuda by nvcc, into gptoss::simulated by a C++ compiler.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

#ifdef GPTOSS_SIMT
#include "bulk.h"
#include "warpgroup.h"
#define GPTOSS_GPU simulated
// The caller's line, for messages.
#define GPTOSS_ONLY_WHERE ::simt::Where where = ::simt::Where::current()
#define GPTOSS_WHERE , GPTOSS_ONLY_WHERE
#else
#include <cuda_runtime.h>
#define GPTOSS_GPU cuda
#define GPTOSS_WHERE
#define GPTOSS_ONLY_WHERE
#endif

namespace gptoss::GPTOSS_GPU {

constexpr int kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// The block's dynamic shared memory, 16-byte aligned (1024 where the launch asks for tiles of bulk copies).
template <typename T>
__device__ __forceinline__ T* shared_memory() {
#ifdef GPTOSS_SIMT
  return reinterpret_cast<T*>(::simt::self->block->shared.get());
#else
  extern __shared__ __align__(1024) unsigned char gptoss_shared[];
  return reinterpret_cast<T*>(gptoss_shared);
#endif
}

}  // namespace gptoss::GPTOSS_GPU
