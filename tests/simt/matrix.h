// Tensor cores and asynchronous copies, as the PTX ISA describes them.
#pragma once

#include "cuda.h"

namespace simt {

inline float bf16_value(uint32_t bits) { return std::bit_cast<float>(bits << 16); }

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. Lane = 4 g + t holds (PTX ISA, "Matrix fragments for
// mma.m16n8k16 with floating point type"):
//   a[i], i = 0..3: row g + 8 (i & 1), columns 2t + 8 (i >> 1) and the next;
//   b[i], i = 0, 1: rows 2t + 8 i and the next, column g;
//   c[i], i = 0..3: row g + 8 (i >> 1), column 2t + (i & 1).
struct Mma {
  const uint32_t* a;
  const uint32_t* b;
  float* c;
};

__attribute__((no_sanitize("thread"))) inline void mma_16816(const std::array<void*, kWarp>& lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& m = *static_cast<Mma*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i)
        a[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + half] = bf16_value(m.a[i] >> (16 * half) & 0xffff);
      for (int i = 0; i < 2; ++i) b[2 * t + 8 * i + half][g] = bf16_value(m.b[i] >> (16 * half) & 0xffff);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    float* c = static_cast<Mma*>(lanes[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
      double sum = c[i];
      for (int k = 0; k < 16; ++k) sum += double{a[row][k]} * b[k][column];
      c[i] = static_cast<float>(sum);
    }
  }
}

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: lane i names row i % 8 of matrix i / 8, lane 4 g + t gets elements 2t and
// 2t + 1 of row g of each matrix.
struct MatrixRows {
  const void* row;
  uint32_t* to;
};

__attribute__((no_sanitize("thread"))) inline void load_8x8_x4(const std::array<void*, kWarp>& lanes) {
  const auto& block = *self->block;
  uint32_t taken[kWarp][4];
  for (int lane = 0; lane < kWarp; ++lane)
    for (int m = 0; m < 4; ++m) {
      const auto* row = static_cast<const std::byte*>(static_cast<MatrixRows*>(lanes[8 * m + lane / 4])->row);
      const auto offset = row - block.shared.get();
      if (offset < 0 || size_t(offset) + 16 > block.shared_bytes || offset % 16 != 0)
        stop("ldmatrix: " + own_name() + "'s warp reads 16 bytes at offset " + std::to_string(offset) + " of " +
             std::to_string(block.shared_bytes) + " bytes of shared memory, expected a multiple of 16 inside");
      std::memcpy(&taken[lane][m], row + 4 * (lane % 4), 4);
    }
  for (int lane = 0; lane < kWarp; ++lane)
    for (int m = 0; m < 4; ++m) static_cast<MatrixRows*>(lanes[lane])->to[m] = taken[lane][m];
}

// movmatrix.sync.aligned.m8n8.trans.b16: lane 4 g + t holds elements 2t and 2t + 1 of row g, before and after.
__attribute__((no_sanitize("thread"))) inline void transpose_8x8(const std::array<void*, kWarp>& lanes) {
  uint16_t m[8][8];
  for (int lane = 0; lane < kWarp; ++lane)
    for (int half = 0; half < 2; ++half)
      m[lane / 4][2 * (lane % 4) + half] = static_cast<uint16_t>(*static_cast<uint32_t*>(lanes[lane]) >> (16 * half));
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    *static_cast<uint32_t*>(lanes[lane]) = uint32_t{m[2 * t][g]} | uint32_t{m[2 * t + 1][g]} << 16;
  }
}

// cp.async: the destination is poisoned when the copy is issued and written when it is waited for, and the source
// is read then too. Whoever reads too early, or writes the source too soon, gets what the hardware may give.
inline void copy_async(void* shared, const void* global, int bytes, const Where& where) {
  const auto offset = static_cast<std::byte*>(shared) - self->block->shared.get();
  if (offset < 0 || size_t(offset) + bytes > self->block->shared_bytes || offset % bytes != 0 ||
      reinterpret_cast<uintptr_t>(global) % bytes != 0)
    stop("cp.async at " + text(where) + ": " + own_name() + " copies " + std::to_string(bytes) + " bytes to offset " +
         std::to_string(offset) + " of " + std::to_string(self->block->shared_bytes) +
         " bytes of shared memory, or from a misaligned address");
  std::memset(shared, 0xff, bytes);
  self->copies.push_back({shared, global, bytes, self->committed, where});
}

inline void commit_copies() { ++self->committed; }

// Lands every group but the newest `left`.
inline void wait_copies(int left) {
  auto& copies = self->copies;
  size_t kept = 0;
  for (PendingCopy& copy : copies) {
    if (copy.group >= self->committed - left) {
      copies[kept++] = copy;
    } else if (copy.global) {
      std::memcpy(copy.shared, copy.global, copy.bytes);
    } else {
      std::memset(copy.shared, 0, copy.bytes);
    }
  }
  copies.resize(kept);
}

}  // namespace simt
