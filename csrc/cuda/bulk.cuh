// Hopper's bulk copies and the mbarriers that count them (PTX ISA, "Data Movement and Conversion Instructions: Bulk
// copy" and "Parallel Synchronization and Communication Instructions: mbarrier"). One thread names a contiguous run of
// device memory, the TMA unit brings it to shared memory, and an mbarrier says when. Compiled for sm_90a only.
#pragma once

#include "cuda/ptx.cuh"

namespace gptoss::GPTOSS_GPU::ptx {

// "mbarrier" object, opaque, in shared memory at a multiple of 8. It goes through phases; one ends when all arrivals
// have come and all bytes that they announced have landed.
using Mbarrier = uint64_t;

// "mbarrier.init": `arrivals` end a phase. Bulk copies see it after fence_async_proxy, other threads after a barrier.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, int arrivals GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::mbarrier_init(barrier, arrivals, where);
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

// "mbarrier.arrive", .expect_tx: announces `bytes` of this phase and arrives.
__device__ __forceinline__ void mbarrier_expect(Mbarrier* barrier, int bytes GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::mbarrier_expect(barrier, bytes, where);
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}

// "mbarrier.try_wait", .parity, as often as it takes: the phase of this parity has ended, 0 being the first, 1 the
// second, 0 again the third. Of those that have ended, only the last can be asked for.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, int parity GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::mbarrier_wait(barrier, parity, where);
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  uint32_t ended;
  do
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(ended)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  while (!ended);
#endif
}

// "cp.async.bulk", global to shared memory; addresses and size are multiples of 16. What lands counts at `landed`.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes, Mbarrier* landed GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::copy_bulk(shared, global, bytes, landed, where);
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(landed))
               : "memory");
#endif
}

// "fence.proxy.async": what this thread read and wrote in shared memory comes before what wgmma and bulk copies, which
// go there by a proxy of their own, do after it.
__device__ __forceinline__ void fence_async_proxy() {
#ifdef GPTOSS_SIMT
  ::simt::fence_async_proxy();
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace gptoss::GPTOSS_GPU::ptx
