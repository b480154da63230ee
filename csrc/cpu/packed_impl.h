// Products of float rows with packed matrices (cpu/packed_weights.h), bit for bit those with what was packed: each sum
// runs over the same numbers in the same lanes and the same order as in float_impl.h. Only which of several NaN
// survives is the compiler's choice, there as here.
#pragma once

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

  static PackedRow pack_row(const bf16* row, int width, int first, uint8_t* to) {
    PackedRow found;
    for (int k = 0; k < width; k += kGroup) {
      const Place at(k, width);
      const typename S::Codes codes = S::pack(row + k, first, to + at.bytes);
      S::save(to + at.codes, codes, at.upper);
      if (!S::fit(codes)) found.marks |= uint64_t{1} << k / kPackedHalf;
    }
    if (found.marks) use_own_bytes(row, width, found, to);
    return found;
  }

  // Codes of the marked halves, once more.
  static void use_own_bytes(const bf16* row, int width, PackedRow& found, uint8_t* to) {
    int code[256], used = 0;
    for (int& each : code) each = -1;
    const auto marked = [&](int k) { return (found.marks >> k / kPackedHalf & 1) != 0; };
    for (int k = 0; k < width; ++k) {
      const int upper = row[k].bits >> 8;
      if (!marked(k) || code[upper] >= 0) continue;
      if (used == kUpperBytes) {
        found.marks = kStoredRow;
        return;
      }
      found.upper[used] = static_cast<uint8_t>(upper);
      code[upper] = used++;
    }
    for (int k = 0; k < width; ++k) {
      if (!marked(k)) continue;
      const Place at(k - k % kGroup, width);
      const int own = code[row[k].bits >> 8];
      uint8_t& both = to[at.codes + packed_place(k % kGroup / S::lanes, k % S::lanes)];
      both = static_cast<uint8_t>(at.upper ? (both & 15) | own << 4 : (both & 240) | own);
    }
  }

  // Where a row has its numbers [k, k + kGroup). Two groups share the bytes of their codes.
  struct Place {
    size_t bytes, codes;
    bool upper;
    [[gnu::always_inline]] Place(int k, int width) {
      const int at = k % kPackedBlock, size = width - (k - at) < kPackedBlock ? kPackedHalf : kPackedBlock;
      const size_t block = size_t(k / kPackedBlock) * kPackedBlockBytes;
      bytes = block + at;
      codes = block + size + at / (2 * kGroup) * kGroup;
      upper = at / kGroup % 2 != 0;
    }
  };

  // Numbers [at, at + kGroup) of a block of `size` numbers. Two groups share the bytes of their codes.
  template <int at>
  [[gnu::always_inline]] static void unpack(const uint8_t* block, int size, const UpperBytes& table, V* to) {
    S::template unpack<at / kGroup % 2 == 1>(block + at, block + size + at / (2 * kGroup) * kGroup, table, to);
  }

  // Half a block, which starts at number k of its rows, of C columns: they take turns. All have the same upper bytes,
  // or each its own.
  template <int R, int C, int half, bool own>
  [[gnu::always_inline]] static void add_half(const float* const* x, const uint8_t* block, size_t row_bytes, int size,
                                              int k, const UpperBytes* tables, V (*sums)[R]) {
    const auto add = [&]<int at>() {
      for (int c = 0; c < C; ++c) {
        V w[4];
        unpack<half * kPackedHalf + at>(block + c * row_bytes, size, tables[own ? c : 0], w);
        for (int i = 0; i < 4; ++i)
          for (int r = 0; r < R; ++r) sums[c][r] = S::fma(S::load(x[r] + k + at + i * S::lanes), w[i], sums[c][r]);
      }
    };
    add.template operator()<0>();
    if constexpr (kGroup < kPackedHalf) add.template operator()<kGroup>();
  }

  // R x C dot products.
  template <int R, int C>
  static void tile(const float* const* x, const PackedTile& weight, int first, int width, const uint8_t* common,
                   float* out, size_t out_stride) {
    const size_t row_bytes = packed_row_bytes(width);
    const uint8_t* block = weight.packed + first * row_bytes;
    const PackedRow* rows = weight.rows + first;
    uint64_t marks = 0;
    for (int c = 0; c < C; ++c) marks |= rows[c].marks;
    V sums[C][R];
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) sums[c][r] = S::set(0.0f);
    const UpperBytes table = S::upper_bytes(common);
    const auto add = [&]<int half>(int size, int k) {
      const int bit = k / kPackedHalf;
      if (!(marks >> bit & 1)) [[likely]]
        return add_half<R, C, half, false>(x, block, row_bytes, size, k, &table, sums);
      UpperBytes tables[C];  // without a jump for each: which of them is marked cannot be foreseen
      for (int c = 0; c < C; ++c) tables[c] = S::upper_bytes(rows[c].marks >> bit & 1 ? rows[c].upper : common);
      add_half<R, C, half, true>(x, block, row_bytes, size, k, tables, sums);
    };
    int k = 0;
    for (; k + kPackedBlock <= width; k += kPackedBlock, block += kPackedBlockBytes) {
      // So many streams are more than the hardware runs ahead of; three tiles on, requests are early enough.
      for (int c = 0; c < C; ++c) ask_for(block + (3 * C + c) * row_bytes, kPackedBlockBytes);
      add.template operator()<0>(kPackedBlock, k);
      add.template operator()<1>(kPackedBlock, k + kPackedHalf);
    }
    if (k < width) add.template operator()<0>(kPackedHalf, k);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) out[r * out_stride + c] = S::sum(sums[c][r]);
  }

  // Up to R rows.
  template <int R, int C>
  static void tile_up_to(const Rows<float>& x, int rows, const PackedTile& weight, int first, int width,
                         const uint8_t* common, float* out, size_t out_stride) {
    if constexpr (R > 1)
      if (rows < R) return tile_up_to<R - 1, C>(x, rows, weight, first, width, common, out, out_stride);
    const float* all[R];
    for (int r = 0; r < R; ++r) all[r] = x[r];
    tile<R, C>(all, weight, first, width, common, out, out_stride);
  }

  // More rows than S::packed_rows gain less from fewer bytes than they lose by unpacking.
  static void matmul_packed(Rows<float> x, int rows, PackedTile weight, int columns, int width, float* out,
                            size_t out_stride) {
    constexpr int R = S::packed_rows, C = S::dot_columns;
    if (rows == 0) return;
    if (rows > R) return FloatFor<S>::matmul_bf16(x, rows, weight.weight, columns, width, out, out_stride);
    uint8_t common[kUpperBytes];
    common_upper_bytes(weight.first, common);
    const auto is_stored = [&](int column) { return weight.rows[column].marks == kStoredRow; };
    const auto one = [&](int column) {
      const bf16* row = weight.weight + size_t(column) * width;
      if (is_stored(column)) return FloatFor<S>::matmul_bf16(x, rows, row, 1, width, out + column, out_stride);
      tile_up_to<R, 1>(x, rows, weight, column, width, common, out + column, out_stride);
    };
    int c = 0;
    for (; c + C <= columns; c += C) {
      bool any = false;
      for (int i = 0; i < C; ++i) any |= is_stored(c + i);
      if (!any) [[likely]]
        tile_up_to<R, C>(x, rows, weight, c, width, common, out + c, out_stride);
      else
        for (int i = 0; i < C; ++i) one(c + i);
    }
    for (; c < columns; ++c) one(c);
  }
};

}  // namespace gptoss::cpu
