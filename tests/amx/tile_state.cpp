#include "tile_state.h"

#include <cstring>

#include "core/error.h"

namespace gptoss::emulated {

void TileState::configure(const cpu::TileConfig& config) {
  CHECK(config.palette <= 1, "LDTILECFG: palette ", int{config.palette}, ", expected 0 or 1");
  if (config.palette == 0) return release();
  for (const uint8_t byte : config.reserved) CHECK(byte == 0, "LDTILECFG: a reserved byte is ", int{byte});
  for (int t = kTiles; t < 16; ++t)
    CHECK(config.rows[t] == 0 && config.row_bytes[t] == 0, "LDTILECFG: there is no tile ", t);
  for (int t = 0; t < kTiles; ++t) {
    CHECK(config.row_bytes[t] <= kRowBytes, "LDTILECFG: tile ", t, " has rows of ", config.row_bytes[t], " bytes");
    CHECK(config.rows[t] <= kRows, "LDTILECFG: tile ", t, " has ", int{config.rows[t]}, " rows");
    CHECK((config.rows[t] == 0) == (config.row_bytes[t] == 0), "LDTILECFG: tile ", t, " has ", int{config.rows[t]},
          " rows of ", config.row_bytes[t], " bytes");
  }
  config_ = config;
  std::memset(data_, 0, sizeof data_);
}

void TileState::release() { *this = TileState(); }

void TileState::expect_tile(int tile, const char* instruction) const {
  CHECK(is_configured(), instruction, ": tiles are not configured");
  CHECK(tile >= 0 && tile < kTiles, instruction, ": there is no tile ", tile);
  CHECK(config_.rows[tile] > 0, instruction, ": tile ", tile, " is not configured");
}

void TileState::expect_start(int tile, const char* instruction) const {
  CHECK(config_.start_row < config_.rows[tile], instruction, ": starts at row ", int{config_.start_row}, " of ",
        int{config_.rows[tile]});
}

void TileState::clear_beyond(int tile) {
  for (int r = 0; r < kRows; ++r) {
    const int there = r < config_.rows[tile] ? config_.row_bytes[tile] : 0;
    std::memset(data_[tile][r] + there, 0, static_cast<size_t>(kRowBytes - there));
  }
  config_.start_row = 0;
}

void TileState::zero(int tile) {
  expect_tile(tile, "TILEZERO");
  std::memset(data_[tile], 0, sizeof data_[tile]);
  config_.start_row = 0;
}

void TileState::load(int tile, const void* at, size_t stride) {
  expect_tile(tile, "TILELOADD");
  expect_start(tile, "TILELOADD");
  if (config_.start_row == 0) std::memset(data_[tile], 0, sizeof data_[tile]);
  for (size_t r = config_.start_row; r < config_.rows[tile]; ++r)
    std::memcpy(data_[tile][r], static_cast<const uint8_t*>(at) + r * stride, config_.row_bytes[tile]);
  clear_beyond(tile);
}

void TileState::store(int tile, void* at, size_t stride) {
  expect_tile(tile, "TILESTORED");
  expect_start(tile, "TILESTORED");
  for (size_t r = config_.start_row; r < config_.rows[tile]; ++r)
    std::memcpy(static_cast<uint8_t*>(at) + r * stride, data_[tile][r], config_.row_bytes[tile]);
  config_.start_row = 0;
}

void TileState::dot(int sum, int a, int b) {
  for (const int tile : {sum, a, b}) {
    expect_tile(tile, "TDPBSSD");
    CHECK(config_.row_bytes[tile] % 4 == 0, "TDPBSSD: tile ", tile, " has rows of ", config_.row_bytes[tile], " bytes");
  }
  CHECK(sum != a && sum != b && a != b, "TDPBSSD: tiles ", sum, ", ", a, " and ", b, " are not three");
  CHECK(config_.rows[sum] == config_.rows[a], "TDPBSSD: ", int{config_.rows[a]}, " rows to ", int{config_.rows[sum]});
  CHECK(config_.row_bytes[sum] == config_.row_bytes[b], "TDPBSSD: columns of ", config_.row_bytes[b], " bytes to ",
        config_.row_bytes[sum]);
  CHECK(config_.row_bytes[a] / 4 == config_.rows[b], "TDPBSSD: rows of ", config_.row_bytes[a], " bytes by ",
        int{config_.rows[b]}, " rows");
  for (int m = 0; m < config_.rows[sum]; ++m) {
    uint32_t row[kRowBytes / 4];  // sums wrap around
    std::memcpy(row, data_[sum][m], sizeof row);
    for (int k = 0; k < config_.rows[b]; ++k) {
      int8_t left[4], right[kRowBytes];
      std::memcpy(left, data_[a][m] + 4 * k, sizeof left);
      std::memcpy(right, data_[b][k], sizeof right);
      for (int n = 0; n < kRowBytes / 4; ++n)
        row[n] += static_cast<uint32_t>(left[0] * right[4 * n] + left[1] * right[4 * n + 1] +
                                        left[2] * right[4 * n + 2] + left[3] * right[4 * n + 3]);
    }
    std::memcpy(data_[sum][m], row, sizeof row);
  }
  clear_beyond(sum);
}

TileState& tile_state() {
  thread_local TileState state;
  return state;
}

}  // namespace gptoss::emulated
