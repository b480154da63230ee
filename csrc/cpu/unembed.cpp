#include <algorithm>

#include "cpu/backend.h"

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
    const int first = tile * kTile;
    kernels_.matmul_bf16({p.normed, size_t(hidden)}, p.count, p.lm_head.weight + size_t(first) * hidden,
                         std::min(kTile, vocab - first), hidden, p.logits + first, vocab);
  });
}

}  // namespace gptoss::cpu
