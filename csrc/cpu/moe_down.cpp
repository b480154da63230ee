// One task owns 32 columns of the residual stream and adds every active expert to them in ascending order:
// no two tasks write the same number, and the order of a row's additions is its own experts'.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::moe_down(const MoeDownParams& p) {
  constexpr int kTile = 32;  // divides hidden, a multiple of 32
  const int hidden = p.down.out;
  int most_rows = 0;
  for (int e = 0; e < p.down.experts; ++e) most_rows = std::max(most_rows, p.groups.start[e + 1] - p.groups.start[e]);

  const size_t out_floats = size_t(most_rows) * kTile;
  reserve_scratch(out_floats + expert_scratch(p.down.in));
  pool_.parallel_for(hidden / kTile, [&](int tile, int worker) {
    const int first = tile * kTile;
    float* out = scratch(worker);
    for (int expert = 0; expert < p.down.experts; ++expert) {
      const int32_t* order = p.groups.order + p.groups.start[expert];
      const int rows = p.groups.start[expert + 1] - p.groups.start[expert];
      if (rows == 0) continue;
      expert_matmul(p.input, order, 1, rows, p.down, expert, first, kTile, out + out_floats, out);

      const bf16* bias = p.down.bias + size_t(expert) * hidden + first;
      for (int r = 0; r < rows; ++r) {
        const int row = order[r] / p.chosen;
        const float weight = p.routing_weight[order[r]];
        float *from = out + size_t(r) * kTile, *to = p.residual + size_t(row) * hidden + first;
        add_lora(p.lora, row, order[r], expert, hidden, first, kTile, from);
        for (int c = 0; c < kTile; ++c) to[c] += weight * (from[c] + to_float(bias[c]));
      }
    }
    for (int row = 0; p.steering && row < p.rows; ++row)
      if (const float* steering = p.steering_of(row))
        for (int c = 0; c < kTile; ++c) p.residual[size_t(row) * hidden + first + c] += steering[first + c];
  });
}

}  // namespace gptoss::cpu
