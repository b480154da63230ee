// Everything a step computes on the way from token ids to logits, allocated once for the largest step.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "model/config.h"
#include "model/ops.h"

namespace gptoss {

enum class Numerics {
  exact,  // float activations, float KV cache
  fast,   // expert inputs in 8-bit blocks of 32, bf16 KV cache
};

class Activations {
 public:
  Activations(const Config&, Numerics, int max_rows);

  int max_rows() const { return max_rows_; }
  size_t bytes() const;

  // For `rows` rows of `width`: float rows, and in fast mode their 8-bit blocks.
  ExpertInput expert_input() { return {normed.data(), q8(normed_q8), scale(normed_scale)}; }
  ExpertInput expert_inner() { return {inner.data(), q8(inner_q8), scale(inner_scale)}; }

  Buffer<float> residual;        // [rows, hidden]
  Buffer<float> normed;          // [rows, hidden]
  Buffer<float> queries;         // [rows, heads * 64]
  Buffer<float> attention;       // [rows, heads * 64]
  Buffer<int32_t> expert;        // [rows, chosen]
  Buffer<float> routing_weight;  // [rows, chosen]
  Buffer<int32_t> group_start;   // [experts + 1]
  Buffer<int32_t> group_order;   // [rows * chosen]
  std::vector<float> inv_freq;   // [head_dim / 2]
  float rope_scale;

 private:
  int8_t* q8(Buffer<int8_t>& buffer) { return buffer.size() ? buffer.data() : nullptr; }
  float* scale(Buffer<float>& buffer) { return buffer.size() ? buffer.data() : nullptr; }

  int max_rows_;
  Buffer<float> inner;         // [rows * chosen, inner], exact only
  Buffer<int8_t> normed_q8;    // [rows, hidden], fast only, as all below
  Buffer<float> normed_scale;  // [rows, hidden / 32]
  Buffer<int8_t> inner_q8;     // [rows * chosen, inner]
  Buffer<float> inner_scale;   // [rows * chosen, inner / 32]
};

}  // namespace gptoss
