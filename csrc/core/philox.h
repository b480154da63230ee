// Philox 4x32-10, a counter-based generator (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011): the draw for (seed, position, token) needs no state and no order.
#pragma once

#include <cmath>
#include <cstdint>

namespace gptoss {

// The first 32 random bits for a 64-bit key and a 128-bit counter.
static inline uint32_t philox(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low), c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high), c3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c0;
}

// A standard Gumbel number: argmax over tokens of logit + gumbel draws from their softmax.
static inline float gumbel(uint64_t seed, uint64_t position, uint32_t token) {
  const double uniform = (philox(seed, token, position) + 0.5) * 0x1p-32;  // never 0 or 1
  return static_cast<float>(-std::log(-std::log(uniform)));
}

}  // namespace gptoss
