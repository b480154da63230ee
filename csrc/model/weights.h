// The whole model, shapes in comments. Pointers look into the mapped checkpoint, or into a device's copy of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/backend.h"
#include "model/config.h"

namespace gptoss {

// A tensor of the checkpoint as it lies in memory.
struct Tensor {
  enum class Kind { bf16, u8 };
  const void* data;
  Kind kind;
  std::vector<int64_t> shape;
};

using TensorMap = std::map<std::string, Tensor>;  // by Hugging Face name

struct LayerWeights {
  const bf16* attention_norm;  // [hidden]
  Linear q;                    // [heads * 64, hidden]
  Linear k;                    // [kv_heads * 64, hidden]
  Linear v;                    // [kv_heads * 64, hidden]
  const bf16* sinks;           // [heads]
  Linear attention_out;        // [hidden, heads * 64]

  const bf16* moe_norm;  // [hidden]
  Linear router;         // [experts, hidden]
  ExpertLinear gate_up;  // [experts, 2 * inner, hidden], gate and up rows interleaved
  ExpertLinear down;     // [experts, hidden, inner]
};

struct Weights {
  const bf16* embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  const bf16* final_norm;  // [hidden]
  Linear lm_head;          // [vocab, hidden], no bias
  Screen screen;           // of lm_head

  // Looks up every tensor and checks kind and shape; throws Error naming the tensor and both shapes. Reads the
  // MXFP4 scales through once; throws CheckpointError when some are NaN.
  static Weights bind(const Config&, const TensorMap&);

  // The same in the form that the backend's ops read. What that form shares with the checkpoint stays where it is.
  Weights prepare(Backend&, const Config&) const;

  DeviceStorage storage;
};

}  // namespace gptoss
