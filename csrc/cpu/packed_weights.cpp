#include "cpu/packed_weights.h"

#include <algorithm>

namespace gptoss::cpu {

int lowest_exponent(const Linear& layer) {
  constexpr int64_t kLooked = 1 << 20;      // numbers
  constexpr double kMostOutside = 1 / 1e3;  // an eighth of the blocks has one then
  constexpr int kExponents = 256;
  if (!can_pack(layer.in)) return -1;
  int64_t count[kExponents] = {}, total = 0;
  const int64_t step = std::max<int64_t>(1, int64_t{layer.out} * layer.in / kLooked);
  for (int64_t row = 0; row < layer.out; row += step)
    for (int i = 0; i < layer.in; ++i, ++total) ++count[layer.weight[row * layer.in + i].bits >> 7 & 255];

  int best = 0;
  int64_t inside = 0, most = 0;
  for (int last = 0; last < kExponents; ++last) {
    inside += count[last] - (last >= kPackedCodes ? count[last - kPackedCodes] : 0);
    if (inside <= most) continue;
    most = inside;
    best = std::max(0, last - kPackedCodes + 1);
  }
  return double(total - most) <= kMostOutside * double(total) ? best : -1;
}

}  // namespace gptoss::cpu
