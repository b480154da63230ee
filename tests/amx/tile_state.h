// The tile registers of one thread, in plain C++: what Intel's manual says of LDTILECFG, TILEZERO, TILELOADD, TDPBSSD,
// TILESTORED and TILERELEASE (Software Developer's Manual, volume 2; palette 1). What it answers with an exception of
// the processor throws Error here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/tile_config.h"

namespace gptoss::emulated {

class TileState {
 public:
  static constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

  void configure(const cpu::TileConfig&);
  void release();
  void zero(int tile);
  void load(int tile, const void* at, size_t stride);
  void store(int tile, void* at, size_t stride);
  void dot(int sum, int a, int b);

  bool is_configured() const { return config_.palette != 0; }
  // All of a register, [kRows, kRowBytes]: rows and bytes beyond its configuration are zero.
  const uint8_t* bytes(int tile) const { return data_[tile][0]; }

 private:
  void expect_tile(int tile, const char* instruction) const;
  void expect_start(int tile, const char* instruction) const;
  void clear_beyond(int tile);

  cpu::TileConfig config_{.palette = 0};
  alignas(64) uint8_t data_[kTiles][kRows][kRowBytes] = {};
};

// That of the calling thread.
TileState& tile_state();

}  // namespace gptoss::emulated
