// The forward pass of gpt-oss, written once for every backend.
#pragma once

#include "model/activations.h"
#include "model/backend.h"
#include "model/config.h"
#include "model/interventions.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace gptoss {

class Watcher;

// One step of a ragged batch, in memory of the backend's device.
struct Step {
  Batch batch;
  const int32_t* token_ids;     // [rows], see EmbedParams
  const int32_t* drawn;         // tokens of the latest draw, or null
  const int32_t* full_pages;    // [sequences, table_stride]
  const int32_t* window_pages;  // [sequences, table_stride]
  int table_stride;
  const int32_t* logit_rows;  // [logit_count] rows whose logits are wanted
  int logit_count;
  float* logits;                   // [logit_count, vocab]
  const int32_t* slots = nullptr;  // [rows] of the interventions, -1: none; null: of no row
  const Interventions* interventions = nullptr;
  Watcher* watcher = nullptr;  // or null
  bool screen = false;         // upper bounds serve as logits, where there is a screen
};

// Looks at what a step has computed, layer by layer.
class Watcher {
 public:
  virtual ~Watcher() = default;
  // The activations hold the layer's queries, choice of experts and weights, and the residual stream after it.
  virtual void layer_done(int layer) = 0;
};

void forward(Backend&, const Config&, const Weights&, Activations&, KvCache&, const Step&);

// The end of it: logits from the residual stream, which stays until the next step.
void unembed(Backend&, const Config&, const Weights&, Activations&, const Step&);

// Whether the step's logits are bounds.
bool is_screened(const Config&, const Weights&, const Step&);

}  // namespace gptoss
