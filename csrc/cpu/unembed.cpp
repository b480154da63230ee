#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {

void CpuBackend::unembed(const UnembedParams& p) {
  constexpr int kTile = 64;
  const int hidden = p.lm_head.in;
  const int vocab = p.lm_head.out;
  pool_.parallel_for(p.count, [&](int i, int) {
    kernels_.rmsnorm(p.residual + size_t(p.logit_rows[i]) * hidden, p.norm_weight, p.norm_eps, hidden,
                     p.normed + size_t(i) * hidden);
  });
  pool_.parallel_for((vocab + kTile - 1) / kTile, [&](int tile, int) {
    const int first = tile * kTile, columns = std::min(kTile, vocab - first);
    kernels_.matmul_bf16({p.normed, size_t(hidden)}, p.count, p.lm_head.weight + size_t(first) * hidden, columns,
                         hidden, p.logits + first, vocab);
    for (int i = 0; p.lora && i < p.count; ++i)
      add_lora(p.lora, p.logit_rows[i], i, 0, vocab, first, columns, p.logits + size_t(i) * vocab + first);
  });
}

}  // namespace gptoss::cpu
