// Everything a step computes on the way from token ids to logits, allocated once for the largest step.
#pragma once

#include <vector>

#include "model/backend.h"
#include "model/config.h"

namespace gptoss {

enum class Numerics {
  exact,  // float activations, float KV cache
  fast,   // expert inputs as the backend likes them (8-bit blocks of 32, or bf16), bf16 KV cache
};

class Activations {
 public:
  // In memory of the device, which must outlive this.
  Activations(Backend&, const Config&, Numerics, int max_rows);

  int max_rows() const { return max_rows_; }
  size_t bytes() const { return bytes_; }

  // For `rows` rows of `width`: float rows, and in fast mode the form the experts read.
  ExpertInput expert_input() { return {normed.data(), normed_q8.data(), normed_scale.data(), normed_b16.data()}; }
  ExpertInput expert_inner() { return {inner.data(), inner_q8.data(), inner_scale.data(), inner_b16.data()}; }

  DeviceBuffer<float> residual;        // [rows, hidden]
  DeviceBuffer<float> normed;          // [rows, hidden]
  DeviceBuffer<float> queries;         // [rows, heads * 64]
  DeviceBuffer<float> attention;       // [rows, heads * 64]
  DeviceBuffer<int32_t> expert;        // [rows, chosen]
  DeviceBuffer<float> routing_weight;  // [rows, chosen]
  DeviceBuffer<int32_t> group_start;   // [experts + 1]
  DeviceBuffer<int32_t> group_order;   // [rows * chosen]
  DeviceBuffer<float> inv_freq;        // [head_dim / 2]
  float rope_scale;

 private:
  int max_rows_;
  size_t bytes_ = 0;
  // Only those that the numerics and the backend ask for.
  DeviceBuffer<float> inner;         // [rows * chosen, inner]
  DeviceBuffer<int8_t> normed_q8;    // [rows, hidden]
  DeviceBuffer<float> normed_scale;  // [rows, hidden / 32]
  DeviceBuffer<int8_t> inner_q8;     // [rows * chosen, inner]
  DeviceBuffer<float> inner_scale;   // [rows * chosen, inner / 32]
  DeviceBuffer<bf16> normed_b16;     // [rows, hidden]
  DeviceBuffer<bf16> inner_b16;      // [rows * chosen, inner]
};

}  // namespace gptoss
