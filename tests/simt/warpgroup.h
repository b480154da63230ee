// wgmma, as the PTX ISA describes it: issued by a warp, done when it is waited for. B is read then, from shared memory
// as it is by that time; the accumulators hold NaN in between. So whoever overwrites a tile too early, or reads a sum
// too early, gets what the hardware may give.
#pragma once

#include "matrix.h"

namespace simt {

// Compute capability that the kernels find: 80, or 90 with wgmma.
inline int architecture = 80;

// Fields of a matrix descriptor that matter here; the start address is an offset in the block's shared memory.
inline uint64_t matrix_descriptor(const void* tile, int bytes, const Where& where) {
  const auto offset = static_cast<const std::byte*>(tile) - self->block->shared.get();
  if (offset < 0 || offset % 1024 != 0)
    stop("wgmma at " + text(where) + ": " + own_name() + " describes a tile at offset " + std::to_string(offset) +
         " of shared memory, expected a multiple of 1024");
  return static_cast<uint64_t>(offset) | static_cast<uint64_t>(bytes) << 32;
}

struct WarpgroupMma {
  const uint32_t* a;
  float* c;
  int tiles;
  uint64_t b;
};

// One warp's quarter of the operation.
struct PendingWgmma {
  float a[16][16];
  std::array<float*, kWarp> c;
  std::vector<float> sums[kWarp];  // of each lane when it was issued
  int tiles;
  uint64_t b;
  int group;
};

__attribute__((no_sanitize("thread"))) inline void queue_wgmma(const std::array<void*, kWarp>& lanes) {
  PendingWgmma op{};
  const auto& first = *static_cast<WarpgroupMma*>(lanes[0]);
  op.tiles = first.tiles;
  op.b = first.b;
  Warp& warp = self->block->warps[self->rank / kWarp];
  op.group = warp.committed;
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& m = *static_cast<WarpgroupMma*>(lanes[lane]);
    if (m.b != first.b) stop("wgmma: lanes of the warp of " + own_name() + " name different matrices");
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i)
        op.a[lane / 4 + 8 * (i & 1)][2 * (lane % 4) + 8 * (i >> 1) + half] = bf16_value(m.a[i] >> (16 * half) & 0xffff);
    op.c[lane] = m.c;
    op.sums[lane].assign(m.c, m.c + 4 * op.tiles);
    // Later operations of the same sums find them in the queue.
    for (auto& earlier : warp.wgmma)
      if (static_cast<PendingWgmma*>(earlier.get())->c[lane] == m.c) op.sums[lane].clear();
    std::fill(m.c, m.c + 4 * op.tiles, std::numeric_limits<float>::quiet_NaN());
  }
  warp.wgmma.push_back(std::make_shared<PendingWgmma>(std::move(op)));
}

__attribute__((no_sanitize("thread"))) inline void finish_wgmma(PendingWgmma& op,
                                                                std::vector<std::shared_ptr<void>>& queue) {
  const auto& block = *self->block;
  const size_t offset = op.b & 0xffffffff, column_bytes = op.b >> 32;
  const int columns = 8 * op.tiles;
  if (offset + size_t(columns) * 128 > block.shared_bytes)
    stop("wgmma: " + own_name() + "'s warp reads " + std::to_string(columns) + " rows at offset " +
         std::to_string(offset) + " of " + std::to_string(block.shared_bytes) + " bytes of shared memory");
  std::vector<std::array<float, 16>> b(columns);
  for (int n = 0; n < columns; ++n)
    for (int k = 0; k < 16; ++k) {
      const size_t byte = column_bytes + 2 * k, unit = byte / 16 ^ n % 8;
      uint16_t bits;
      std::memcpy(&bits, block.shared.get() + offset + size_t(n) * 128 + 16 * unit + byte % 16, 2);
      b[n][k] = bf16_value(bits);
    }
  for (int lane = 0; lane < kWarp; ++lane) {
    std::vector<float> sums = std::move(op.sums[lane]);
    for (int i = 0; i < 4 * op.tiles; ++i) {
      const int row = lane / 4 + 8 * (i % 4 / 2), n = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      double sum = sums[i];
      for (int k = 0; k < 16; ++k) sum += double{op.a[row][k]} * b[n][k];
      sums[i] = static_cast<float>(sum);
    }
    // Handed to the next operation on these sums, or, after the last, to the kernel.
    bool handed = false;
    for (auto& entry : queue) {
      auto& later = *static_cast<PendingWgmma*>(entry.get());
      if (!handed && &later != &op && later.c[lane] == op.c[lane]) later.sums[lane] = sums, handed = true;
    }
    if (!handed) std::copy(sums.begin(), sums.end(), op.c[lane]);
  }
}

inline void issue_wgmma(float* c, int tiles, const uint32_t* a, uint64_t b, const Where& where) {
  WarpgroupMma operands{a, c, tiles, b};
  join(~0u, "wgmma", where, &operands, &queue_wgmma);
}

inline void commit_wgmma(const Where& where = Where::current()) {
  join(~0u, "wgmma.commit_group", where, nullptr,
       [](const std::array<void*, kWarp>&) { ++self->block->warps[self->rank / kWarp].committed; });
}

inline void wait_wgmma(int left, const Where& where) {
  join(~0u, "wgmma.wait_group", where, &left, [](const std::array<void*, kWarp>& lanes) {
    Warp& warp = self->block->warps[self->rank / kWarp];
    const int kept = warp.committed - *static_cast<int*>(lanes[0]);
    while (!warp.wgmma.empty()) {
      const std::shared_ptr<void> oldest = warp.wgmma.front();
      auto& op = *static_cast<PendingWgmma*>(oldest.get());
      if (op.group >= kept) break;
      finish_wgmma(op, warp.wgmma);
      warp.wgmma.erase(warp.wgmma.begin());
    }
  });
}

}  // namespace simt
