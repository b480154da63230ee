// Products of float rows with packed matrices (cpu/packed_weights.h), bit for bit those with what was packed: each sum
// runs over the same numbers in the same lanes and the same order as in float_impl.h.
#pragma once

#include <bit>

#include "cpu/float_impl.h"
#include "cpu/kernels.h"
#include "cpu/packed_weights.h"
#include "cpu/prefetch.h"

namespace gptoss::cpu {

template <class S>
struct PackedFor {
  using V = typename S::V;
  using UpperBytes = typename S::UpperBytes;

  static constexpr int kGroup = 4 * S::lanes;  // numbers that S::pack and S::unpack take
  static_assert(kPackedHalf % kGroup == 0);

  static uint64_t pack_row(const bf16* row, int width, int first, uint8_t* to) {
    uint64_t marks = 0;
    for (int k = 0; k < width; k += kGroup) {
      const int at = k % kPackedBlock, size = block_size(k - at, width);
      uint8_t* block = to + size_t(k / kPackedBlock) * kPackedBlockBytes;
      uint8_t* codes = block + size + at / (2 * kGroup) * kGroup;
      const typename S::Codes found = S::pack(row + k, first, block + at);
      S::save(codes, found, at / kGroup % 2);
      if (!S::fit(found)) marks |= uint64_t{1} << k / kPackedHalf;
    }
    return marks;
  }

  static int block_size(int k, int width) { return width - k < kPackedBlock ? kPackedHalf : kPackedBlock; }

  // Numbers [at, at + kGroup) of a block of `size` numbers. Two groups share the bytes of their codes.
  template <int at>
  [[gnu::always_inline]] static void unpack(const uint8_t* block, int size, const UpperBytes& table, V* to) {
    S::template unpack<at / kGroup % 2 == 1>(block + at, block + size + at / (2 * kGroup) * kGroup, table, to);
  }

  // Half a block, which starts at number k of its rows, of C columns: they take turns.
  template <int R, int C, int half>
  [[gnu::always_inline]] static void add_half(const float* const* x, const uint8_t* block, size_t row_bytes, int size,
                                              int k, const UpperBytes& table, V (*sums)[R]) {
    const auto add = [&]<int at>() {
      for (int c = 0; c < C; ++c) {
        V w[4];
        unpack<half * kPackedHalf + at>(block + c * row_bytes, size, table, w);
        for (int i = 0; i < 4; ++i)
          for (int r = 0; r < R; ++r) sums[c][r] = S::fma(S::load(x[r] + k + at + i * S::lanes), w[i], sums[c][r]);
      }
    };
    add.template operator()<0>();
    if constexpr (kGroup < kPackedHalf) add.template operator()<kGroup>();
  }
  // The same of one column whose numbers there are those of the checkpoint.
  template <int R>
  static void add_stored(const float* const* x, const bf16* weight, int k, V* sums) {
    for (int i = 0; i < kPackedHalf; i += S::lanes) {
      const V w = S::load(weight + k + i);
      for (int r = 0; r < R; ++r) sums[r] = S::fma(S::load(x[r] + k + i), w, sums[r]);
    }
  }

  // R x C dot products.
  template <int R, int C>
  static void tile(const float* const* x, const PackedTile& weight, int first, int width, const UpperBytes& table,
                   float* out, size_t out_stride) {
    const size_t row_bytes = packed_row_bytes(width);
    const uint8_t* block = weight.packed + first * row_bytes;
    uint64_t marks = 0;
    for (int c = 0; c < C; ++c) marks |= weight.marks[first + c];
    V sums[C][R];
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) sums[c][r] = S::set(0.0f);
    const auto add = [&]<int half>(int size, int k) {
      const int bit = k / kPackedHalf;
      if (!(marks >> bit & 1)) [[likely]]
        return add_half<R, C, half>(x, block, row_bytes, size, k, table, sums);
      for (int c = 0; c < C; ++c)
        if (weight.marks[first + c] >> bit & 1)
          add_stored<R>(x, weight.weight + size_t(first + c) * width, k, sums[c]);
        else
          add_half<R, 1, half>(x, block + c * row_bytes, 0, size, k, table, sums + c);
    };
    int k = 0;
    for (; k + kPackedBlock <= width; k += kPackedBlock, block += kPackedBlockBytes) {
      // So many streams are more than the hardware runs ahead of.
      for (int c = 0; c < C; ++c) ask_for(block + (C + c) * row_bytes, kPackedBlockBytes);
      add.template operator()<0>(kPackedBlock, k);
      add.template operator()<1>(kPackedBlock, k + kPackedHalf);
    }
    if (k < width) add.template operator()<0>(kPackedHalf, k);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) out[r * out_stride + c] = S::sum(sums[c][r]);
  }

  // Marked halves of columns [first, last) shall be under way by then: nothing else would ask for them.
  static void ask_for_marked(const PackedTile& tile, int first, int last, int width) {
    for (int c = first; c < last; ++c)
      for (uint64_t marks = tile.marks[c]; marks; marks &= marks - 1)
        ask_for(tile.weight + size_t(c) * width + std::countr_zero(marks) * kPackedHalf, sizeof(bf16) * kPackedHalf);
  }

  // Up to R rows.
  template <int R, int C>
  static void tile_up_to(const Rows<float>& x, int rows, const PackedTile& weight, int first, int width,
                         const UpperBytes& table, float* out, size_t out_stride) {
    if constexpr (R > 1)
      if (rows < R) return tile_up_to<R - 1, C>(x, rows, weight, first, width, table, out, out_stride);
    const float* all[R];
    for (int r = 0; r < R; ++r) all[r] = x[r];
    tile<R, C>(all, weight, first, width, table, out, out_stride);
  }

  // More rows than S::packed_rows gain less from fewer bytes than they lose by unpacking.
  static void matmul_packed(Rows<float> x, int rows, PackedTile weight, int columns, int width, float* out,
                            size_t out_stride) {
    constexpr int R = S::packed_rows, C = S::dot_columns;
    if (rows > R) return FloatFor<S>::matmul_bf16(x, rows, weight.weight, columns, width, out, out_stride);
    const UpperBytes table = S::upper_bytes(weight.first);
    int c = 0;
    for (; c + C <= columns; c += C) {
      ask_for_marked(weight, c + C, columns < c + 2 * C ? columns : c + 2 * C, width);
      tile_up_to<R, C>(x, rows, weight, c, width, table, out + c, out_stride);
    }
    for (; c < columns; ++c) tile_up_to<R, 1>(x, rows, weight, c, width, table, out + c, out_stride);
  }
};

}  // namespace gptoss::cpu
