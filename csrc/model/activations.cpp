#include "model/activations.h"

namespace gptoss {

Activations::Activations(const Config& config, Numerics numerics, int max_rows)
    : rope_scale(yarn_scale(config)), max_rows_(max_rows) {
  constexpr int kMaxRows = 1 << 22;  // times 128 experts fits an int
  CHECK(max_rows > 0 && max_rows <= kMaxRows, "max_rows is ", max_rows, ", expected 1 to ", kMaxRows);
  const size_t rows = max_rows;
  const size_t assignments = rows * config.chosen;
  residual = Buffer<float>(rows * config.hidden);
  normed = Buffer<float>(rows * config.hidden);
  queries = Buffer<float>(rows * config.heads * kHeadDim);
  attention = Buffer<float>(rows * config.heads * kHeadDim);
  expert = Buffer<int32_t>(assignments);
  routing_weight = Buffer<float>(assignments);
  group_start = Buffer<int32_t>(config.experts + 1);
  group_order = Buffer<int32_t>(assignments);
  inv_freq = yarn_inv_freq(config);
  if (numerics == Numerics::exact) {
    inner = Buffer<float>(assignments * config.inner);
  } else {
    normed_q8 = Buffer<int8_t>(rows * config.hidden);
    normed_scale = Buffer<float>(rows * config.hidden / kMxfp4Block);
    inner_q8 = Buffer<int8_t>(assignments * config.inner);
    inner_scale = Buffer<float>(assignments * config.inner / kMxfp4Block);
  }
}

size_t Activations::bytes() const {
  return residual.bytes() + normed.bytes() + queries.bytes() + attention.bytes() + expert.bytes() +
         routing_weight.bytes() + group_start.bytes() + group_order.bytes() + inner.bytes() + normed_q8.bytes() +
         normed_scale.bytes() + inner_q8.bytes() + inner_scale.bytes();
}

}  // namespace gptoss
