#include <algorithm>

#include "cpu/backend.h"
#include "cpu/lora.h"
#include "cpu/screen.h"

namespace gptoss::cpu {

void CpuBackend::unembed(const UnembedParams& p) {
  constexpr int kTile = 64;
  const int hidden = p.lm_head.in;
  const int vocab = p.lm_head.out;
  Linear layer = p.lm_head;
  if (p.screen) layer.packed = nullptr, layer.q8 = p.screen.q8, layer.scale = p.screen.scale;
  reserve_dense(layer, p.count);
  if (p.screen) norms_.resize(p.count);
  pool_.parallel_for(p.count, [&](int i, int) {
    float* normed = p.normed + size_t(i) * hidden;
    kernels_.rmsnorm(p.residual + size_t(p.logit_rows[i]) * hidden, p.norm_weight, p.norm_eps, hidden, normed);
    quantize_dense(layer, normed, i);
    if (p.screen) norms_[i] = norms_of_copy(normed, i, hidden);
  });
  pool_.parallel_for((vocab + kTile - 1) / kTile, [&](int tile, int) {
    const int first = tile * kTile, columns = std::min(kTile, vocab - first);
    dense_matmul(p.normed, p.count, layer, first, columns, p.logits + first, vocab);
    for (int i = 0; p.screen && i < p.count; ++i) {
      float* logits = p.logits + size_t(i) * vocab + first;
      const float* error = p.screen.error + size_t(first) * kScreenErrors;
      constexpr float kUnderflow = 1e-35f;  // what products of tiny scales may lose
      for (int c = 0; c < columns; ++c)
        logits[c] +=
            norms_[i].first * error[kScreenErrors * c] + norms_[i].second * error[kScreenErrors * c + 1] + kUnderflow;
    }
    for (int i = 0; p.lora && i < p.count; ++i)
      add_lora(p.lora, p.logit_rows[i], i, 0, vocab, first, columns, p.logits + size_t(i) * vocab + first);
  });
}

}  // namespace gptoss::cpu
