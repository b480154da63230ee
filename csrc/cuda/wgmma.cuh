// Hopper's warpgroup matrix instructions (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
// Instructions"), sm_90a only: 64 rows from registers times N columns from shared memory, while the warps go on.
#pragma once

#include "cuda/ptx.cuh"

namespace gptoss::GPTOSS_GPU::ptx {

// Whether code with them, and code without, is to be compiled, and whether the GPU at hand has them: the same question
// but on the simulated GPU, which is told later.
#ifdef GPTOSS_SIMT
__device__ __forceinline__ constexpr bool has_wgmma_code() { return true; }
__device__ __forceinline__ constexpr bool has_mma_code() { return true; }
__device__ __forceinline__ bool has_wgmma() { return ::simt::architecture == 90; }
#else
__device__ __forceinline__ constexpr bool has_wgmma() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  return true;
#else
  return false;
#endif
}
__device__ __forceinline__ constexpr bool has_wgmma_code() { return has_wgmma(); }
__device__ __forceinline__ constexpr bool has_mma_code() { return !has_wgmma(); }
#endif

// "Matrix-descriptor": N rows of 128 bytes of shared memory, 8 rows after each other, 16-byte units exchanged by the
// 128-byte swizzle (unit ^ row % 8). The tile begins at a multiple of 1024 bytes; `bytes` is where in the row the 16
// columns begin.
__device__ __forceinline__ uint64_t matrix_descriptor(const void* tile, int bytes GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  return ::simt::matrix_descriptor(tile, bytes, where);
#else
  const uint64_t address = shared_address(tile) + bytes;
  // Start address, leading offset (not used by this swizzle), stride of 1024 bytes between groups of 8 rows, swizzle.
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
#endif
}

// "wgmma.fence": before the first wgmma, and whenever registers it reads or adds to were written otherwise.
__device__ __forceinline__ void wgmma_fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// "wgmma.commit_group"
__device__ __forceinline__ void wgmma_commit() {
#ifdef GPTOSS_SIMT
  ::simt::commit_wgmma();
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// "wgmma.wait_group": all but the newest `kLeft` groups are done.
template <int kLeft>
__device__ __forceinline__ void wgmma_wait(GPTOSS_ONLY_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::wait_wgmma(kLeft, where);
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
#endif
}

// "wgmma.mma_async", m64nNk16, bf16 in, fp32 out: c += a b, N = 8 kTiles. Warp w of the four holds rows 16 w .. 16 w +
// 15 of a and c, as in `mma`: c[n] is the tile of columns 8 n .. 8 n + 7. b [N, 16] is described by `b`.
template <int kTiles>
__device__ __forceinline__ void wgmma(float (&c)[kTiles][4], const uint32_t (&a)[4], uint64_t b GPTOSS_WHERE) {
  static_assert(kTiles == 4 || kTiles == 8 || kTiles == 16, "N is 32, 64 or 128");
#ifdef GPTOSS_SIMT
  ::simt::issue_wgmma(&c[0][0], kTiles, a, b, where);
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kTiles == 4) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, {%16,%17,%18,%19}, %20, p, 1, 1, 0;}"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
          "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
          "+f"(c[3][2]), "+f"(c[3][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (kTiles == 8) {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
          "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
          "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
          "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
          "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(
        "{.reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, p, 1, 1, 0;}"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
          "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
          "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
          "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
          "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]),
          "+f"(c[8][3]), "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]),
          "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]),
          "+f"(c[12][0]), "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]),
          "+f"(c[13][2]), "+f"(c[13][3]), "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]),
          "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
#endif
}

}  // namespace gptoss::GPTOSS_GPU::ptx
