// What an adapter adds to outputs whose A x is known.
#pragma once

#include "model/ops.h"

namespace gptoss::cpu {

// values[c] += (B A x)[first + c] of one product, for `columns` outputs of the matrix's `out`, if its row has an
// adapter.
inline void add_lora(const Lora& lora, int row, int product, int expert, int out, int first, int columns,
                     float* values) {
  const LoraMatrix* matrix = lora.of(row);
  if (matrix == nullptr) return;
  const float* b = matrix->b + size_t(expert) * matrix->rank * out + first;
  const float* weight = lora.product + size_t(product) * lora.stride;
  for (int k = 0; k < matrix->rank; ++k, b += out)
    for (int c = 0; c < columns; ++c) values[c] += weight[k] * b[c];
}

}  // namespace gptoss::cpu
