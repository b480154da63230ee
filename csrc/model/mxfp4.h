// MXFP4 and floats, for numbers that people read and write: OCP Microscaling Formats v1.0. Kernels decode for
// themselves.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gptoss {

// values [blocks * 32] = code * 2^(scale - 127). Exact; beyond the range of a float (scales from 253 on) infinite.
void decode_mxfp4(const uint8_t* codes, const uint8_t* scales, size_t blocks, float* values);

// What was lost on the way.
struct QuantizationError {
  size_t saturated = 0;  // values whose magnitude is beyond 6 times their block's scale, taken for 6
  double squared = 0.0;  // sum of (stored - value)^2
  double energy = 0.0;   // sum of value^2
  float largest = 0.0f;  // |stored - value|
};

// Finite values [blocks * 32] -> codes [blocks * 16] and scales [blocks], by section 6.3: the scale is
// 2^(floor(log2(largest magnitude)) - 2), at least 2^-127; each value is rounded to nearest, ties to the even code,
// and saturates. `keeps`: codes and scales hold a block as it is stored now, and one whose scale represents the new
// values exactly keeps it, so that what was decoded is stored as it was.
void quantize_mxfp4(const float* values, size_t blocks, bool keeps, uint8_t* codes, uint8_t* scales,
                    QuantizationError& error);

}  // namespace gptoss
