// One task owns some columns of the residual stream and adds every active expert to them in ascending order:
// no two tasks write the same number, and the order of a row's additions is its own experts'.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::moe_down(const MoeDownParams& p) {
  const int hidden = p.down.out;
  int most_rows = 0;
  for (int e = 0; e < p.down.experts; ++e) most_rows = std::max(most_rows, p.groups.start[e + 1] - p.groups.start[e]);

  // Many rows: weights that stay in a core's cache for all of them. Few: weights in long streams, tasks enough to
  // share.
  constexpr int kBlock = 32, kManyRows = 4, kTasks = 8;  // hidden is a multiple of 32; tasks of a thread
  const int wanted = most_rows < kManyRows ? hidden / (kTasks * pool_.threads()) : 0;
  const int tile = std::max(wanted / kBlock, 1) * kBlock;

  lay_out(p.input, p.rows * p.chosen, p.down.in);
  const size_t out_floats = size_t(most_rows) * tile;
  reserve_scratch(out_floats + expert_scratch(p.down.in));
  pool_.parallel_for((hidden + tile - 1) / tile, [&](int task, int worker) {
    const int first = task * tile, columns = std::min(tile, hidden - first);
    float* out = scratch(worker);
    for (int expert = 0; expert < p.down.experts; ++expert) {
      const int32_t* order = p.groups.order + p.groups.start[expert];
      const int rows = p.groups.start[expert + 1] - p.groups.start[expert];
      if (rows == 0) continue;
      expert_matmul(p.input, order, 1, rows, p.down, expert, first, columns, out + out_floats, out);

      const bf16* bias = p.down.bias + size_t(expert) * hidden + first;
      for (int r = 0; r < rows; ++r) {
        const int row = order[r] / p.chosen;
        const float weight = p.routing_weight[order[r]];
        float *from = out + size_t(r) * columns, *to = p.residual + size_t(row) * hidden + first;
        add_lora(p.lora, row, order[r], expert, hidden, first, columns, from);
        for (int c = 0; c < columns; ++c) to[c] += weight * (from[c] + to_float(bias[c]));
      }
    }
    for (int row = 0; p.steering && row < p.rows; ++row)
      if (const float* steering = p.steering_of(row))
        for (int c = 0; c < columns; ++c) p.residual[size_t(row) * hidden + first + c] += steering[first + c];
  });
}

}  // namespace gptoss::cpu
