// The kernels' tile registers for hosts without AMX.
#pragma once

#include "tile_state.h"

namespace gptoss::cpu {

struct EmulatedTiles {
  static void configure(const TileConfig& config) { emulated::tile_state().configure(config); }
  static void release() { emulated::tile_state().release(); }
  template <int tile>
  static void zero() {
    emulated::tile_state().zero(tile);
  }
  template <int tile>
  static void load(const void* at, size_t stride) {
    emulated::tile_state().load(tile, at, stride);
  }
  template <int tile>
  static void store(void* at, size_t stride) {
    emulated::tile_state().store(tile, at, stride);
  }
  template <int sum, int a, int b>
  static void dot() {
    emulated::tile_state().dot(sum, a, b);
  }
};

}  // namespace gptoss::cpu
