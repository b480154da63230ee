#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"
#include "cpu/screen.h"

namespace gptoss::cpu {

void CpuBackend::unembed(const UnembedParams& p) {
  constexpr int kTile = 64;
  const int hidden = p.lm_head.in;
  const int vocab = p.lm_head.out;
  if (p.screen) {
    reserve_bytes(p.count, hidden);
    norms_.resize(p.count);
  } else {
    reserve_dense(p.lm_head, p.count);
  }
  pool_.parallel_for(p.count, [&](int i, int) {
    float* normed = p.normed + size_t(i) * hidden;
    kernels_.rmsnorm(p.residual + size_t(p.logit_rows[i]) * hidden, p.norm_weight, p.norm_eps, hidden, normed);
    if (p.screen) {
      quantize_row(normed, i, hidden);
      norms_[i] = norms_of_copy(normed, i, hidden);
    } else {
      quantize_dense(p.lm_head, normed, i);
    }
  });
  const int most = kTile * tiles_of_task((vocab + kTile - 1) / kTile, size_t(kTile) * hidden, p.count);
  pool_.parallel_for((vocab + most - 1) / most, [&](int task, int) {
    const int first = task * most, columns = std::min(most, vocab - first);
    if (p.screen)
      bound_logits(p, first, columns);
    else
      dense_matmul(p.normed, 0, p.count, p.lm_head, first, columns, p.logits + first, vocab);
    for (int i = 0; p.lora && i < p.count; ++i)
      add_lora(p.lora, p.logit_rows[i], i, 0, vocab, first, columns, p.logits + size_t(i) * vocab + first);
  });
}

}  // namespace gptoss::cpu
