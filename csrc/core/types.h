// Number formats of the checkpoints and caches: bf16, e2m1 (FP4) and e8m0 (block scale).
//
// The functions are `static`: files compiled for several instruction sets include this header, and a
// linker that merged their copies could hand AVX-512 code to an older host.
#pragma once

#include <bit>
#include <cstdint>

// What the kernels share with the host.
#ifdef __CUDACC__
#define GPTOSS_BOTH __host__ __device__
#else
#define GPTOSS_BOTH
#endif

namespace gptoss {

struct bf16 {
  uint16_t bits;
};

GPTOSS_BOTH static inline float to_float(float value) { return value; }
GPTOSS_BOTH static inline float to_float(bf16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

// Round to nearest even. NaN stays NaN: its payload is truncated and the quiet bit set.
GPTOSS_BOTH static inline bf16 to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

GPTOSS_BOTH static inline void store(float value, float* to) { *to = value; }
GPTOSS_BOTH static inline void store(float value, bf16* to) { *to = to_bf16(value); }

// OCP Microscaling Formats v1.0, section 5.3.3: FP4 is sign, two exponent bits, one mantissa bit.
inline constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                          -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

inline constexpr int kMxfp4Block = 32;       // values that share one scale
inline constexpr int kMxfp4BlockBytes = 16;  // their packed codes: low nibble = even element

inline constexpr uint8_t kE8m0Nan = 255;  // OCP MX v1.0, section 5.4.1

// 2^(scale - 127), of which 2^-127 is a float denormal.
static inline float e8m0_to_float(uint8_t scale) {
  if (scale == kE8m0Nan) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(scale == 0 ? 0x00400000u : uint32_t{scale} << 23);
}

enum class DType { f32, bf16 };

static inline int bytes_of(DType type) { return type == DType::f32 ? 4 : 2; }

}  // namespace gptoss
