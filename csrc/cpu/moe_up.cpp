// One task computes 32 columns of one active expert's output, which are 64 interleaved rows of its weights
// and, in 8-bit mode, exactly one block.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::moe_up(const MoeUpParams& p) {
  constexpr int kTile = kMxfp4Block;
  const int inner = p.gate_up.out / 2;
  const int tiles = inner / kTile;

  active_experts_.clear();
  int most_rows = 0;
  for (int e = 0; e < p.gate_up.experts; ++e) {
    const int rows = p.groups.start[e + 1] - p.groups.start[e];
    if (rows > 0) active_experts_.push_back(e);
    most_rows = std::max(most_rows, rows);
  }

  lay_out(p.input, p.rows, p.gate_up.in);
  const size_t out_floats = size_t(most_rows) * 2 * kTile;
  reserve_scratch(out_floats + kTile + expert_scratch(p.gate_up.in));
  pool_.parallel_for(static_cast<int>(active_experts_.size()) * tiles, [&](int task, int worker) {
    const int expert = active_experts_[task / tiles];
    const int first = task % tiles * kTile;
    const int32_t* order = p.groups.order + p.groups.start[expert];
    const int rows = p.groups.start[expert + 1] - p.groups.start[expert];

    float* gate_up = scratch(worker);
    float* activated = gate_up + out_floats;
    expert_matmul(p.input, order, p.chosen, rows, p.gate_up, expert, 2 * first, 2 * kTile, activated + kTile, gate_up);

    const bf16* bias = p.gate_up.bias + size_t(expert) * p.gate_up.out + 2 * first;
    for (int r = 0; r < rows; ++r) {
      float* row = gate_up + size_t(r) * 2 * kTile;
      for (int c = 0; c < 2 * kTile; ++c) row[c] += to_float(bias[c]);
      add_lora(p.lora, order[r] / p.chosen, order[r], expert, p.gate_up.out, 2 * first, 2 * kTile, row);
      const size_t at = size_t(order[r]) * inner + first;
      if (p.output.q8) {
        kernels_.swiglu(row, kTile, p.limit, activated);
        kernels_.quantize_q8(activated, kTile, p.output.q8 + at, p.output.scale + at / kMxfp4Block);
      } else {
        kernels_.swiglu(row, kTile, p.limit, p.output.f32 + at);
      }
    }
  });
}

}  // namespace gptoss::cpu
