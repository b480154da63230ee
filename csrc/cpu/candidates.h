// Tokens in the order of their likelihood: larger logits first, equal ones by id, so that every choice among
// them is defined. All filters of the sampler keep a prefix of this order, which its last member describes.
#pragma once

#include <bit>
#include <cstdint>

#include "core/philox.h"

namespace gptoss::cpu {

// The last token a filter keeps.
struct Cut {
  float logit;
  int token;

  // Inlined always, as Rows::operator[] in kernels.h.
  [[gnu::always_inline]] bool keeps(float other_logit, int other) const {
    return other_logit > logit || (other_logit == logit && other <= token);
  }
};

// What turns logits into weights: e^((logit - largest) / temperature).
struct Softmax {
  float largest;
  float temperature;
};

static constexpr Cut kNoCut{-__FLT_MAX__, __INT_MAX__};

// What tokens race with: the largest score is a draw from the softmax.
[[gnu::always_inline]] static inline float race_score(float logit, int token, const Softmax& s, uint64_t seed,
                                                      uint64_t position) {
  return (logit - s.largest) / s.temperature + gumbel(seed, position, static_cast<uint32_t>(token));
}

struct Peak {
  float largest;
  int token;    // the first that has it
  bool finite;  // whether all logits are
};

// A token and its logit in one integer that is larger for likelier tokens: sorting moves eight bytes and
// compares once. Flipping the bits of negative floats makes their patterns ascend as the numbers do.
static inline uint64_t candidate(float logit, int token) {
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 becomes 0, its equal
  const uint32_t ascending = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return uint64_t{ascending} << 32 | ~static_cast<uint32_t>(token);
}

static inline int candidate_token(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }

static inline float candidate_logit(uint64_t key) {
  const uint32_t ascending = static_cast<uint32_t>(key >> 32);
  return std::bit_cast<float>(ascending ^ (ascending >> 31 ? 0x80000000u : 0xffffffffu));
}

}  // namespace gptoss::cpu
