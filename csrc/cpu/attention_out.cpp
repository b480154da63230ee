#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::attention_out(const AttentionOutParams& p) {
  constexpr int kTile = 32;  // columns whose weights stay in a core's cache over all rows
  const Linear& layer = p.projection;
  const int tiles = (layer.out + kTile - 1) / kTile;
  const int most = kTile * tiles_of_task(tiles, size_t(kTile) * layer.in, p.rows);
  const size_t out_floats = size_t(p.rows) * most;
  reserve_scratch(out_floats);
  reserve_dense(layer, p.rows);
  if (layer.q8)
    pool_.parallel_for(p.rows, [&](int row, int) { quantize_dense(layer, p.input + size_t(row) * layer.in, row); });
  pool_.parallel_for((layer.out + most - 1) / most, [&](int task, int worker) {
    const int first = task * most, columns = std::min(most, layer.out - first);
    float* out = scratch(worker);
    dense_matmul(p.input, 0, p.rows, layer, first, columns, out, columns);
    for (int row = 0; row < p.rows; ++row) {
      float* to = p.residual + size_t(row) * layer.out + first;
      for (int c = 0; c < columns; ++c) to[c] += out[size_t(row) * columns + c] + to_float(layer.bias[first + c]);
      add_lora(p.lora, row, row, 0, layer.out, first, columns, to);
    }
  });
}

}  // namespace gptoss::cpu
