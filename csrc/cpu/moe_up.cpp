// One task computes some columns of one active expert's output, each from two neighbouring rows of its weights, and 32
// at a time, since in 8-bit mode so many share a scale.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::moe_up(const MoeUpParams& p) {
  constexpr int kTile = kMxfp4Block;
  const int inner = p.gate_up.out / 2;

  const int most_rows = find_active(p.groups, p.gate_up.experts);
  const int active = static_cast<int>(active_experts_.size()), tiles = inner / kTile;
  const size_t tile_numbers = size_t(2) * kTile * p.gate_up.in;
  const int pieces = pieces_of_expert(active, tiles, tile_numbers, most_rows);
  const int most = (tiles + pieces - 1) / pieces * kTile;

  lay_out(p.input, p.rows, p.gate_up.in);
  const size_t out_floats = size_t(most_rows) * 2 * most;
  reserve_scratch(out_floats + most + expert_scratch(p.gate_up.in));
  pool_.parallel_for(active * pieces, [&](int task, int worker) {
    const int expert = active_experts_[task / pieces];
    const int first = task % pieces * most, columns = std::min(most, inner - first);
    const int32_t* order = p.groups.order + p.groups.start[expert];
    const int rows = p.groups.start[expert + 1] - p.groups.start[expert];

    float* gate_up = scratch(worker);
    float* activated = gate_up + out_floats;
    const bf16* bias = p.gate_up.bias + size_t(expert) * p.gate_up.out + 2 * first;
    expert_matmul(p.input, order, p.chosen, rows, p.gate_up, expert, 2 * first, 2 * columns, activated + most, gate_up,
                  2 * columns);

    for (int r = 0; r < rows; ++r) {
      float* row = gate_up + size_t(r) * 2 * columns;
      for (int c = 0; c < 2 * columns; ++c) row[c] += to_float(bias[c]);
      add_lora(p.lora, order[r] / p.chosen, order[r], expert, p.gate_up.out, 2 * first, 2 * columns, row);
      const size_t at = size_t(order[r]) * inner + first;
      if (p.output.q8) {
        kernels_.swiglu(row, columns, p.limit, activated);
        kernels_.quantize_q8(activated, columns, p.output.q8 + at, p.output.scale + at / kMxfp4Block);
      } else {
        kernels_.swiglu(row, columns, p.limit, p.output.f32 + at);
      }
    }
  });
}

}  // namespace gptoss::cpu
