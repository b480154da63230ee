#include "model/forward.h"

namespace gptoss {
namespace {

Lora lora_of(const Step& step, Adapted matrix, int layer, int place) {
  return step.slots ? step.interventions->lora(matrix, layer, step.slots, place) : Lora{};
}

}  // namespace

void forward(Backend& backend, const Config& config, const Weights& weights, Activations& act, KvCache& cache,
             const Step& step) {
  const Batch& batch = step.batch;
  const int rows = batch.rows;
  const ExpertGroups groups{act.group_start.data(), act.group_order.data()};

  backend.embed({.token_ids = step.token_ids,
                 .weight = weights.embedding,
                 .residual = act.residual.data(),
                 .rows = rows,
                 .hidden = config.hidden,
                 .drawn = step.drawn});

  for (int index = 0; index < config.layers; ++index) {
    const LayerWeights& layer = weights.layers[index];
    const int window = config.windows[index];
    const int32_t* pages = window == 0 ? step.full_pages : step.window_pages;
    const float* steering = step.slots ? step.interventions->steering(index) : nullptr;
    const ExpertControl* controls = step.slots ? step.interventions->controls(index) : nullptr;
    const KvLayer kv = cache.layer(index, pages, step.table_stride);
    const auto lora = [&](Adapted matrix, int place = 0) { return lora_of(step, matrix, index, place); };

    const Lora q = lora(Adapted::q), k = lora(Adapted::k, 1), v = lora(Adapted::v, 2);
    if (q || k || v)
      backend.lora({.input = {.f32 = act.residual.data()},
                    .norm_weight = layer.attention_norm,
                    .norm_eps = config.norm_eps,
                    .width = config.hidden,
                    .count = rows,
                    .chosen = 1,
                    .target = {q, k, v}});
    backend.attention_in({.batch = batch,
                          .residual = act.residual.data(),
                          .norm_weight = layer.attention_norm,
                          .norm_eps = config.norm_eps,
                          .q = layer.q,
                          .k = layer.k,
                          .v = layer.v,
                          .inv_freq = act.inv_freq.data(),
                          .rope_scale = act.rope_scale,
                          .cache = kv,
                          .normed = act.normed.data(),
                          .queries = act.queries.data(),
                          .q_lora = q,
                          .k_lora = k,
                          .v_lora = v});

    backend.paged_attention({.batch = batch,
                             .queries = act.queries.data(),
                             .cache = kv,
                             .sinks = layer.sinks,
                             .heads = config.heads,
                             .window = window,
                             .output = act.attention.data()});

    const Lora out = lora(Adapted::attention_out);
    if (out)
      backend.lora({.input = {.f32 = act.attention.data()},
                    .width = layer.attention_out.in,
                    .count = rows,
                    .chosen = 1,
                    .target = {out}});
    backend.attention_out({.input = act.attention.data(),
                           .projection = layer.attention_out,
                           .residual = act.residual.data(),
                           .rows = rows,
                           .decode_rows = batch.decode_rows,
                           .lora = out});

    const Lora router = lora(Adapted::router);
    LoraParams to_experts{.input = {.f32 = act.residual.data()},
                          .norm_weight = layer.moe_norm,
                          .norm_eps = config.norm_eps,
                          .width = config.hidden,
                          .count = rows,
                          .chosen = 1,
                          .target = {router}};
    if (router) backend.lora(to_experts);
    backend.moe_gate({.residual = act.residual.data(),
                      .norm_weight = layer.moe_norm,
                      .norm_eps = config.norm_eps,
                      .router = layer.router,
                      .chosen = config.chosen,
                      .normed = act.expert_input(),
                      .expert = act.expert.data(),
                      .routing_weight = act.routing_weight.data(),
                      .groups = groups,
                      .rows = rows,
                      .slot = step.slots,
                      .controls = controls,
                      .lora = router});

    const Lora up = lora(Adapted::gate_up);
    to_experts.count = rows * config.chosen;
    to_experts.chosen = config.chosen;
    to_experts.expert = act.expert.data();
    to_experts.target[0] = up;
    if (up) backend.lora(to_experts);
    backend.moe_up({.input = act.expert_input(),
                    .groups = groups,
                    .gate_up = layer.gate_up,
                    .limit = config.swiglu_limit,
                    .chosen = config.chosen,
                    .output = act.expert_inner(),
                    .rows = rows,
                    .decode_rows = batch.decode_rows,
                    .lora = up});

    const Lora down = lora(Adapted::down);
    if (down)
      backend.lora({.input = act.expert_inner(),
                    .width = config.inner,
                    .count = rows * config.chosen,
                    .chosen = config.chosen,
                    .expert = act.expert.data(),
                    .by_assignment = true,
                    .target = {down}});
    backend.moe_down({.input = act.expert_inner(),
                      .groups = groups,
                      .down = layer.down,
                      .routing_weight = act.routing_weight.data(),
                      .chosen = config.chosen,
                      .residual = act.residual.data(),
                      .rows = rows,
                      .decode_rows = batch.decode_rows,
                      .slot = step.slots,
                      .steering = steering,
                      .lora = down});
    if (step.watcher) step.watcher->layer_done(index);
  }

  if (step.logit_count > 0) unembed(backend, config, weights, act, step);
}

bool is_screened(const Config& config, const Weights& weights, const Step& step) {
  return step.screen && step.logit_count > 0 && weights.screen && !lora_of(step, Adapted::lm_head, config.layers, 0);
}

void unembed(Backend& backend, const Config& config, const Weights& weights, Activations& act, const Step& step) {
  const Lora head = lora_of(step, Adapted::lm_head, config.layers, 0);
  if (head)
    backend.lora({.input = {.f32 = act.residual.data()},
                  .norm_weight = weights.final_norm,
                  .norm_eps = config.norm_eps,
                  .width = config.hidden,
                  .count = step.logit_count,
                  .rows = step.logit_rows,
                  .chosen = 1,
                  .target = {head}});
  backend.unembed({.residual = act.residual.data(),
                   .logit_rows = step.logit_rows,
                   .count = step.logit_count,
                   .norm_weight = weights.final_norm,
                   .norm_eps = config.norm_eps,
                   .lm_head = weights.lm_head,
                   .normed = act.normed.data(),
                   .logits = step.logits,
                   .lora = head,
                   .screen = is_screened(config, weights, step) ? weights.screen : Screen{}});
}

}  // namespace gptoss
