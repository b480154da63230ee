// Philox 4x32-10, a counter-based generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011): the draw for (seed, position, token) needs no state and no order.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/types.h"

namespace gptoss {

inline constexpr int kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;  // added to the key every round

struct PhiloxWords {
  uint32_t word[4];
};

// The 128 random bits of a 64-bit key and a 128-bit counter.
GPTOSS_BOTH static inline PhiloxWords philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxMultiplier0} * c0, p1 = uint64_t{kPhiloxMultiplier1} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// Which word of which counter belongs to a token. Sixteen counters serve 64 tokens: word w of counter i is
// that of token 16 w + i, so that sixteen lanes draw for sixteen neighbours at once.
inline constexpr int kGumbelGroup = 64;

GPTOSS_BOTH static inline uint32_t gumbel_counter(uint32_t token) { return token / 64 * 16 + token % 16; }
GPTOSS_BOTH static inline uint32_t gumbel_word(uint32_t token) { return token / 16 % 4; }

// A standard Gumbel number: argmax over tokens of logit + gumbel draws from their softmax.
GPTOSS_BOTH static inline float gumbel_of(uint32_t bits) {
  const double uniform = (bits + 0.5) * 0x1p-32;  // never 0 or 1
  return static_cast<float>(-std::log(-std::log(uniform)));
}
GPTOSS_BOTH static inline float gumbel(uint64_t seed, uint64_t position, uint32_t token) {
  return gumbel_of(philox(seed, gumbel_counter(token), position).word[gumbel_word(token)]);
}

// Bounds of gumbel_of(bits) that cost no logarithm, less than 1.1 apart for half of all draws. With u as above and k
// ones at the top of `bits`, 2^-(k + 1) < 1 - u < 2^-k; and 1 - u <= -log(u), which for u >= 1/2 is <= 2 log(2) (1 -
// u).
GPTOSS_BOTH static inline float gumbel_at_most(int ones) { return 0.69315f * static_cast<float>(ones + 1); }
GPTOSS_BOTH static inline float gumbel_at_least(int ones) {
  return ones > 0 ? 0.69314f * static_cast<float>(ones) - 0.32664f : -3.13f;
}

// No draw is larger: -log(-log(1 - 2^-33)) = 22.874.
inline constexpr float kLargestGumbel = 22.9f;

}  // namespace gptoss
