#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::unembed(const UnembedParams& p) {
  constexpr int kTile = 64;
  const int hidden = p.lm_head.in;
  const int vocab = p.lm_head.out;
  reserve_dense(p.lm_head, p.count);
  pool_.parallel_for(p.count, [&](int i, int) {
    float* normed = p.normed + size_t(i) * hidden;
    kernels_.rmsnorm(p.residual + size_t(p.logit_rows[i]) * hidden, p.norm_weight, p.norm_eps, hidden, normed);
    quantize_dense(p.lm_head, normed, i);
  });
  pool_.parallel_for((vocab + kTile - 1) / kTile, [&](int tile, int) {
    const int first = tile * kTile, columns = std::min(kTile, vocab - first);
    dense_matmul(p.normed, p.count, p.lm_head, first, columns, p.logits + first, vocab);
    for (int i = 0; p.lora && i < p.count; ++i)
      add_lora(p.lora, p.logit_rows[i], i, 0, vocab, first, columns, p.logits + size_t(i) * vocab + first);
  });
}

}  // namespace gptoss::cpu
