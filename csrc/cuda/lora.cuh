// What an adapter adds to outputs whose A x is known: for the epilogues of products.
#pragma once

#include "cuda/warp.cuh"
#include "model/ops.h"

namespace gptoss::GPTOSS_GPU {

// value + (B A x)[c] of one product, c of `out`, if its row has an adapter; else the value, bit for bit.
__device__ __forceinline__ float with_lora(const Lora& lora, int row, int product, int expert, int out, int c,
                                           float value) {
  if (!lora.matrices) return value;
  const LoraMatrix* matrix = lora.of(row);
  if (matrix == nullptr) return value;
  const float* b = matrix->b + size_t(expert) * matrix->rank * out + c;
  const float* weight = lora.product + size_t(product) * lora.stride;
  float sum = 0.0f;
#pragma unroll 1
  for (int k = 0; k < matrix->rank; ++k) sum += weight[k] * b[size_t(k) * out];
  return value + sum;
}

// Whose product a token of a block is.
struct LoraPlace {
  int row, product, expert;
};

// Adds to sums[r * stride + n], the block's results, for its first `tokens` tokens: token n is `place_of(n)`'s, row r
// is output `output_of(r)` of `out`. All threads call it. A loop of its own, so that it costs the others no registers.
template <typename PlaceOf, typename OutputOf>
__device__ __forceinline__ void add_lora(const Lora& lora, float* sums, int rows, int stride, int tokens, int out,
                                         PlaceOf&& place_of, OutputOf&& output_of) {
  if (!lora.matrices) return;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * tokens; i += static_cast<int>(blockDim.x)) {
    const int r = i % rows, n = i / rows, c = output_of(r);
    if (c >= out) continue;
    const LoraPlace at = place_of(n);
    float& sum = sums[r * stride + n];
    sum = with_lora(lora, at.row, at.product, at.expert, out, c, sum);
  }
  __syncthreads();
}

}  // namespace gptoss::GPTOSS_GPU
