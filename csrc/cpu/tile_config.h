// Tile registers as LDTILECFG sets them up: how many rows each has, and how many bytes a row.
#pragma once

#include <cstdint>

namespace gptoss::cpu {

struct alignas(64) TileConfig {
  uint8_t palette;        // 1: eight tiles of at most 16 rows of 64 bytes; 0: none
  uint8_t start_row = 0;  // where an interrupted load or store goes on
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr void set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace gptoss::cpu
