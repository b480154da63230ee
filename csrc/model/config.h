// The numbers of a gpt-oss model that decide shapes and semantics.
#pragma once

#include <cstdint>
#include <vector>

namespace gptoss {

struct Config {
  int hidden;
  int inner;  // expert intermediate size
  int layers;
  int heads;
  int kv_heads;
  int experts;
  int chosen;  // experts per token
  int vocab;
  int max_positions;
  int original_positions;  // context the rotary frequencies were trained on
  float rope_theta;
  float rope_factor;
  float rope_beta_fast;
  float rope_beta_slow;
  float norm_eps;
  float swiglu_limit;
  std::vector<int> windows;  // per layer; 0 = full attention

  void validate() const;  // throws Error naming the field, both values and the fix
};

// Rotary frequencies, YaRN-scaled (Peng et al., arXiv:2309.00071, section 3.2, without rounding the ramp).
std::vector<float> yarn_inv_freq(const Config&);  // [head_dim / 2]
float yarn_scale(const Config&);                  // 0.1 ln(factor) + 1, on cos and sin

}  // namespace gptoss
