#include "cpu/q8_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace gptoss::cpu {
namespace {

// The least bf16 that is not below a positive number.
bf16 round_up(float value) { return {static_cast<uint16_t>((std::bit_cast<uint32_t>(value) + 0xffffu) >> 16)}; }

}  // namespace

void quantize_row(const bf16* weight, int width, int8_t* q8, bf16* scale) {
  constexpr float kSmallest = 1e-30f;
  std::fill_n(q8, q8_row_bytes(width), int8_t{0});
  std::fill_n(scale, q8_row_scales(width), bf16{0});
  for (int block = 0; block < width / kMxfp4Block; ++block) {
    const bf16* from = weight + size_t(block) * kMxfp4Block;
    float largest = 0.0f;
    bool finite = true;
    for (int i = 0; i < kMxfp4Block; ++i) {
      const float size = std::fabs(to_float(from[i]));
      finite = finite && size <= 3.4e38f;
      largest = std::max(largest, size);
    }
    if (!finite) scale[block] = to_bf16(std::nanf(""));
    if (!finite || largest < kSmallest) continue;
    scale[block] = round_up(largest / 127.0f);
    const float inverse = 1.0f / to_float(scale[block]);
    int8_t* to = q8 + block / kGroupBlocks * kGroupBytes + block % kGroupBlocks * (kMxfp4Block / 2);
    for (int i = 0; i < kMxfp4Block; ++i)
      to[i % 2 * (kGroupBytes / 2) + i / 2] = static_cast<int8_t>(std::nearbyintf(to_float(from[i]) * inverse));
  }
}

}  // namespace gptoss::cpu
