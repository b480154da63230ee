#include <algorithm>
#include <cmath>

#include "cpu/backend.h"
#include "cpu/lora.h"

namespace gptoss::cpu {
namespace {

// The `chosen` largest logits, largest first; of equal ones the lower expert. NaN counts as the smallest. Ranks, where
// there are any, go before logits.
void choose(const float* logits, const ExpertControl* control, int experts, int chosen, int32_t* expert,
            float* weight) {
  const auto better = [&](int a, int b) {
    if (control && control[a].rank != control[b].rank) return control[a].rank > control[b].rank;
    return logits[a] > logits[b] || (std::isnan(logits[b]) && !std::isnan(logits[a]));
  };
  bool taken[128] = {};
  for (int slot = 0; slot < chosen; ++slot) {
    int best = -1;
    for (int e = 0; e < experts; ++e)
      if (!taken[e] && (best < 0 || better(e, best))) best = e;
    taken[best] = true;
    expert[slot] = best;
    weight[slot] = logits[best];
  }
  float largest = weight[0];
  for (int slot = 1; slot < chosen; ++slot) largest = std::max(largest, weight[slot]);
  float sum = 0.0f;
  for (int slot = 0; slot < chosen; ++slot) sum += weight[slot] = std::exp(weight[slot] - largest);
  for (int slot = 0; slot < chosen; ++slot) weight[slot] /= sum;
}

// Counting sort of the assignments by expert; stable, so each group is in ascending order.
void group_by_expert(const int32_t* expert, int assignments, int experts, const ExpertGroups& groups) {
  for (int e = 0; e <= experts; ++e) groups.start[e] = 0;
  for (int a = 0; a < assignments; ++a) ++groups.start[expert[a] + 1];
  for (int e = 0; e < experts; ++e) groups.start[e + 1] += groups.start[e];
  int next[128];
  for (int e = 0; e < experts; ++e) next[e] = groups.start[e];
  for (int a = 0; a < assignments; ++a) groups.order[next[expert[a]]++] = a;
}

}  // namespace

void CpuBackend::moe_gate(const MoeGateParams& p) {
  const int hidden = p.router.in;
  const int experts = p.router.out;
  reserve_scratch(experts);
  pool_.parallel_for(p.rows, [&](int row, int worker) {
    float* normed = p.normed.f32 + size_t(row) * hidden;
    kernels_.rmsnorm(p.residual + size_t(row) * hidden, p.norm_weight, p.norm_eps, hidden, normed);
    if (p.normed.q8)
      kernels_.quantize_q8(normed, hidden, p.normed.q8 + size_t(row) * hidden,
                           p.normed.scale + size_t(row) * (hidden / kMxfp4Block));
    // The router reads the float row in both modes: a flipped expert costs more than these few products.
    float* logits = scratch(worker);
    kernels_.matmul_bf16({normed, size_t(hidden)}, 1, p.router.weight, experts, hidden, logits, experts);
    for (int e = 0; e < experts; ++e) logits[e] += to_float(p.router.bias[e]);
    add_lora(p.lora, row, row, 0, experts, 0, experts, logits);
    const ExpertControl* control = p.control_of(row);
    for (int e = 0; control && e < experts; ++e) logits[e] += control[e].boost;
    choose(logits, control, experts, p.chosen, p.expert + size_t(row) * p.chosen,
           p.routing_weight + size_t(row) * p.chosen);
  });
  group_by_expert(p.expert, p.rows * p.chosen, experts, p.groups);
}

}  // namespace gptoss::cpu
