#include "cpu/packed_weights.h"

#include <algorithm>

namespace gptoss::cpu {

int first_upper_byte(const Linear& layer) {
  constexpr int64_t kLooked = 1 << 20;      // numbers
  constexpr double kMostWithout = 1 / 1e3;  // a sixteenth of the halves has one then
  constexpr int kPossible = 128;            // upper bytes, without their sign
  if (!can_pack(layer.in)) return -1;
  int64_t count[kPossible] = {}, total = 0;
  const int64_t step = std::max<int64_t>(1, int64_t{layer.out} * layer.in / kLooked);
  for (int64_t row = 0; row < layer.out; row += step)
    for (int i = 0; i < layer.in; ++i, ++total) ++count[layer.weight[row * layer.in + i].bits >> 8 & 127];

  int best = 0;
  int64_t with = 0, most = 0;
  for (int last = 0; last < kPossible; ++last) {
    with += count[last] - (last >= kPackedNeighbours ? count[last - kPackedNeighbours] : 0);
    if (with <= most) continue;
    most = with;
    best = std::max(0, last - kPackedNeighbours + 1);
  }
  return double(total - most) <= kMostWithout * double(total) ? best : -1;
}

}  // namespace gptoss::cpu
