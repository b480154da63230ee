#include "model/forward.h"

namespace gptoss {

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
                          .queries = act.queries.data()});

    backend.paged_attention({.batch = batch,
                             .queries = act.queries.data(),
                             .cache = kv,
                             .sinks = layer.sinks,
                             .heads = config.heads,
                             .window = window,
                             .output = act.attention.data()});

    backend.attention_out({.input = act.attention.data(),
                           .projection = layer.attention_out,
                           .residual = act.residual.data(),
                           .rows = rows,
                           .decode_rows = batch.decode_rows});

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
                      .controls = controls});

    backend.moe_up({.input = act.expert_input(),
                    .groups = groups,
                    .gate_up = layer.gate_up,
                    .limit = config.swiglu_limit,
                    .chosen = config.chosen,
                    .output = act.expert_inner(),
                    .rows = rows,
                    .decode_rows = batch.decode_rows});

    backend.moe_down({.input = act.expert_inner(),
                      .groups = groups,
                      .down = layer.down,
                      .routing_weight = act.routing_weight.data(),
                      .chosen = config.chosen,
                      .residual = act.residual.data(),
                      .rows = rows,
                      .decode_rows = batch.decode_rows,
                      .slot = step.slots,
                      .steering = steering});
    if (step.watcher) step.watcher->layer_done(index);
  }

  if (step.logit_count == 0) return;
  backend.unembed({.residual = act.residual.data(),
                   .logit_rows = step.logit_rows,
                   .count = step.logit_count,
                   .norm_weight = weights.final_norm,
                   .norm_eps = config.norm_eps,
                   .lm_head = weights.lm_head,
                   .normed = act.normed.data(),
                   .logits = step.logits});
}

}  // namespace gptoss
