#include "cpu/backend.h"

namespace gptoss::cpu {

void CpuBackend::embed(const EmbedParams& p) {
  pool_.parallel_for(p.rows, [&](int row, int) {
    const bf16* from = p.weight + size_t(p.token(row)) * p.hidden;
    float* to = p.residual + size_t(row) * p.hidden;
    for (int i = 0; i < p.hidden; ++i) to[i] = to_float(from[i]);
  });
}

}  // namespace gptoss::cpu
