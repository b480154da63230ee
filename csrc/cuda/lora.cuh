// What an adapter adds to one output whose A x is known: for the epilogues of products.
#pragma once

#include "cuda/device.h"
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

}  // namespace gptoss::GPTOSS_GPU
