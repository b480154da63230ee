// The forward pass of gpt-oss, written once for every backend.
#pragma once

#include "model/activations.h"
#include "model/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace gptoss {

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
  float* logits;  // [logit_count, vocab]
};

void forward(Backend&, const Config&, const Weights&, Activations&, KvCache&, const Step&);

}  // namespace gptoss
