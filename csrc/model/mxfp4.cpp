#include "model/mxfp4.h"

#include <algorithm>
#include <bit>

#include "core/types.h"

namespace gptoss {
namespace {

constexpr int kLargestExponent = 2;  // of an E2M1 code: 6 = 1.5 * 2^2

// 2^(127 - scale), which takes a value to its place among the codes.
float inverse_scale(uint8_t scale) {
  return scale == 254 ? std::bit_cast<float>(0x00400000u) : std::bit_cast<float>(uint32_t{254u - scale} << 23);
}

// Codes of a block's values at one scale, 0 to 15. Multiplying by a power of two is exact but where it ends in a
// denormal, which is far below the first threshold.
void codes_at(const float* values, float inverse, uint8_t* code) {
  for (int i = 0; i < kMxfp4Block; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const float x = std::bit_cast<float>(bits & 0x7fffffffu) * inverse;
    // The midpoints between neighbours; one goes to the neighbour whose code is even.
    const uint32_t magnitude = uint32_t{x > 0.25f} + uint32_t{x >= 0.75f} + uint32_t{x > 1.25f} + uint32_t{x >= 1.75f} +
                               uint32_t{x > 2.5f} + uint32_t{x >= 3.5f} + uint32_t{x > 5.0f};
    code[i] = static_cast<uint8_t>(magnitude | ((bits >> 28) & 8u));
  }
}

// Whether one value could be stored exactly at a scale: a quick no for blocks that changed.
bool may_be_exact(float value, float inverse) {
  const uint32_t bits = std::bit_cast<uint32_t>(value * inverse) & 0x7fffffffu;
  constexpr uint32_t kBelowOneBit = 0x003fffffu;  // a code has one bit of mantissa
  return (bits & kBelowOneBit) == 0;
}

bool is_exact(const float* values, const uint8_t* code, float scale) {
  bool same = true;
  for (int i = 0; i < kMxfp4Block; ++i) same &= kE2m1Values[code[i]] * scale == values[i];
  return same;
}

uint8_t scale_for(float largest) {
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23);  // biased by 127; 0 for denormals
  return static_cast<uint8_t>(std::max(exponent - kLargestExponent, 0));
}

void add_error(const float* values, const uint8_t* code, uint8_t scale, QuantizationError& error) {
  const float factor = e8m0_to_float(scale), limit = 6.0f * factor;
  double squared = 0.0, energy = 0.0;
  float largest = 0.0f;
  for (int i = 0; i < kMxfp4Block; ++i) {
    const float difference = kE2m1Values[code[i]] * factor - values[i];
    squared += double(difference) * difference;
    energy += double(values[i]) * values[i];
    largest = std::max(largest, std::max(difference, -difference));
    error.saturated += std::max(values[i], -values[i]) > limit;
  }
  error.squared += squared;
  error.energy += energy;
  error.largest = std::max(error.largest, largest);
}

}  // namespace

void decode_mxfp4(const uint8_t* codes, const uint8_t* scales, size_t blocks, float* values) {
  for (size_t block = 0; block < blocks; ++block) {
    const float scale = e8m0_to_float(scales[block]);
    float table[16];
    for (int i = 0; i < 16; ++i) table[i] = kE2m1Values[i] * scale;
    for (int i = 0; i < kMxfp4BlockBytes; ++i) {
      const uint8_t pair = codes[block * kMxfp4BlockBytes + i];
      values[block * kMxfp4Block + 2 * i] = table[pair & 15];
      values[block * kMxfp4Block + 2 * i + 1] = table[pair >> 4];
    }
  }
}

void quantize_mxfp4(const float* values, size_t blocks, bool keeps, uint8_t* codes, uint8_t* scales,
                    QuantizationError& error) {
  uint8_t code[kMxfp4Block];
  for (size_t block = 0; block < blocks; ++block, values += kMxfp4Block, codes += kMxfp4BlockBytes) {
    uint8_t scale = keeps ? scales[block] : kE8m0Nan;
    bool exact = false;
    if (scale != kE8m0Nan && may_be_exact(values[0], inverse_scale(scale)) &&
        may_be_exact(values[1], inverse_scale(scale))) {
      codes_at(values, inverse_scale(scale), code);
      exact = is_exact(values, code, e8m0_to_float(scale));
    }
    if (!exact) {
      uint32_t largest = 0;
      for (int i = 0; i < kMxfp4Block; ++i)
        largest = std::max(largest, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
      scale = scale_for(std::bit_cast<float>(largest));
      codes_at(values, inverse_scale(scale), code);
    }
    for (int i = 0; i < kMxfp4BlockBytes; ++i) codes[i] = static_cast<uint8_t>(code[2 * i] | (code[2 * i + 1] << 4));
    scales[block] = scale;
    add_error(values, code, scale, error);
  }
}

}  // namespace gptoss
