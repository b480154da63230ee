// Every PTX instruction the kernels use, one function each, named in its comment by its PTX ISA section. The
// other body of each says the same to the simulated GPU.
#pragma once

#include "cuda/device.h"

namespace gptoss::GPTOSS_GPU::ptx {

#ifndef GPTOSS_SIMT
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

// "Multiply-and-Accumulate Instruction: mma", m16n8k16, bf16 in, fp32 out: c += a b. Lane 4g + t holds
//   a[0..3]: rows g, g + 8, g, g + 8, columns 2t, 2t + 1 (the last two: + 8);
//   b[0..1]: rows 2t, 2t + 1 (the second: + 8), column g;
//   c[0..3]: row g, columns 2t and 2t + 1, then row g + 8.
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::Mma operands{a, b, c};
  ::simt::join(kAllLanes, "mma.sync", where, &operands, &::simt::mma_16816);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// "ldmatrix", .m8n8.x4.b16: four 8 x 8 matrices of 16-bit elements from shared memory. Lane i names row i % 8 of matrix
// i / 8; lane 4 g + t gets elements 2t, 2t + 1 of row g of each.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::MatrixRows operands{row, to};
  ::simt::join(kAllLanes, "ldmatrix", where, &operands, &::simt::load_8x8_x4);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// "movmatrix": transposes an 8 x 8 matrix of 16-bit elements; lane 4g + t holds elements 2t, 2t + 1 of row g.
__device__ __forceinline__ uint32_t transpose(uint32_t pair GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::join(kAllLanes, "movmatrix", where, &pair, &::simt::transpose_8x8);
  return pair;
#else
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
#endif
}

// "cvt.rn.bf16x2.f32": two floats to a pair of bf16, round to nearest even; `low` lands in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef GPTOSS_SIMT
  return uint32_t{to_bf16(high).bits} << 16 | to_bf16(low).bits;
#else
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
#endif
}

// "fma.rn.bf16x2" with a negative zero added: the product of two pairs, subnormals kept (mul.bf16x2 needs sm_90).
__device__ __forceinline__ uint32_t multiply_bf16(uint32_t a, uint32_t b) {
#ifdef GPTOSS_SIMT
  const auto product = [](uint32_t x, uint32_t y) {
    return ::simt::bf16_value(x & 0xffff) * ::simt::bf16_value(y & 0xffff);
  };
  return pack_bf16(product(a, b), product(a >> 16, b >> 16));
#else
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  return result;
#endif
}

// "ex2.approx.ftz.f32": 2^x within two units of the last place; results below 2^-126 become zero. exp2f is the same
// instruction with two more around it that keep subnormals, which a softmax's weights can do without.
__device__ __forceinline__ float exp2(float x) {
#ifdef GPTOSS_SIMT
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

// "ld.global.L1::no_allocate.v4": 16 bytes that this kernel reads once and nobody writes. Not ".nc": ptxas moves such
// loads behind griddepcontrol.wait, and the first weights are to be under way before it.
__device__ __forceinline__ uint4 load_stream(const void* address) {
#ifdef GPTOSS_SIMT
  return *static_cast<const uint4*>(address);
#else
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
#endif
}

// "cp.async.cg.shared.global": 16 bytes, zeros instead when `valid` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true GPTOSS_WHERE) {
#ifdef GPTOSS_SIMT
  ::simt::copy_async(shared, valid ? global : nullptr, 16, where);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}

// "cp.async.commit_group"
__device__ __forceinline__ void commit_copies() {
#ifdef GPTOSS_SIMT
  ::simt::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// "cp.async.wait_group": all but the newest `kLeft` groups have landed, for this thread.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
#ifdef GPTOSS_SIMT
  ::simt::wait_copies(kLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// "griddepcontrol.wait": the kernels this one depends on have ended and their writes are visible.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if !defined(GPTOSS_SIMT) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// "griddepcontrol.launch_dependents": the next kernel may begin its own prologue.
__device__ __forceinline__ void let_next_kernel_start() {
#if !defined(GPTOSS_SIMT) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace gptoss::GPTOSS_GPU::ptx
