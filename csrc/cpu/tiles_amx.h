// The tile registers of AMX, one function for an instruction.
//
// In assembly: GCC's intrinsics want a register's number as a token of the preprocessor, and do not say that a load
// reads memory, so that a store to it may be moved behind.
#pragma once

#include <cstddef>

#include "cpu/tile_config.h"

namespace gptoss::cpu {

struct AmxTiles {
  [[gnu::always_inline]] static void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  [[gnu::always_inline]] static void release() { asm volatile("tilerelease"); }

  template <int tile>
  [[gnu::always_inline]] static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // Row r from and to `at` + r * stride.
  template <int tile>
  [[gnu::always_inline]] static void load(const void* at, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(at), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  [[gnu::always_inline]] static void store(void* at, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(at), "r"(stride), "i"(tile) : "memory");
  }
  // sum[m][n] += the products of four signed bytes each, a[m][4 k + i] * b[k][4 n + i].
  template <int sum, int a, int b>
  [[gnu::always_inline]] static void dot() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
  }
};

}  // namespace gptoss::cpu
