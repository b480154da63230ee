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
  using Exponents = typename S::Exponents;

  // S::unpack and S::pack take so many numbers.
  static constexpr int kGroup = 4 * S::lanes;
  static_assert(kPackedHalf % kGroup == 0);

  // Where the codes of a block's group g are: two groups share bytes, one has the lower halves, one the upper.
  [[gnu::always_inline]] static void unpack(const uint8_t* block, int size, int g, const Exponents& exponents, V* to) {
    const uint8_t* codes = block + size + g / 2 * kGroup;
    if (g % 2)
      S::template unpack<true>(block + g * kGroup, codes, exponents, to);
    else
      S::template unpack<false>(block + g * kGroup, codes, exponents, to);
  }

  static uint64_t pack_row(const bf16* row, int width, int lowest, uint8_t* to) {
    uint64_t marks = 0;
    for (int first = 0; first < width; first += kPackedBlock, to += kPackedBlockBytes) {
      const int size = width - first < kPackedBlock ? kPackedHalf : kPackedBlock, groups = size / kGroup;
      bool fits = true;
      for (int g = 0; g < groups; g += 2) {
        typename S::Codes lower = S::pack(row + first + g * kGroup, lowest, to + g * kGroup), upper = {};
        fits &= S::fit(lower);
        if (g + 1 < groups) {
          upper = S::pack(row + first + (g + 1) * kGroup, lowest, to + (g + 1) * kGroup);
          fits &= S::fit(upper);
        }
        S::save(to + size + g / 2 * kGroup, lower, upper);
      }
      if (!fits) marks |= uint64_t{1} << first / kPackedBlock;
    }
    return marks;
  }

  // sum[r] + the products of a block of one column, which starts at number k of its row.
  template <int R, int size>
  [[gnu::always_inline]] static void add_block(const float* const* x, const uint8_t* block, const bf16* stored, int k,
                                               const Exponents& exponents, V* sum) {
    if (stored) [[unlikely]] {
      for (int i = 0; i < size; i += S::lanes) {
        const V w = S::load(stored + i);
        for (int r = 0; r < R; ++r) sum[r] = S::fma(S::load(x[r] + k + i), w, sum[r]);
      }
      return;
    }
#pragma GCC unroll 4
    for (int g = 0; g < size / kGroup; ++g) {
      V w[4];
      unpack(block, size, g, exponents, w);
      for (int i = 0; i < 4; ++i)
        for (int r = 0; r < R; ++r) sum[r] = S::fma(S::load(x[r] + k + g * kGroup + i * S::lanes), w[i], sum[r]);
    }
  }

  // C columns for few rows, as fast as memory brings them. Marked blocks of the next columns are asked for.
  template <int R, int C>
  static void few(const float* const* x, const PackedTile& tile, int first, int columns, int width,
                  const Exponents& exponents, float* out, size_t out_stride) {
    for (int c = first + C; c < columns && c < first + 2 * C; ++c)
      for (uint64_t marks = tile.marks[c]; marks; marks &= marks - 1) {
        const int k = std::countr_zero(marks) * kPackedBlock;
        ask_for(tile.weight + size_t(c) * width + k,
                sizeof(bf16) * (width - k < kPackedBlock ? width - k : kPackedBlock));
      }
    const size_t row_bytes = packed_row_bytes(width);
    const int whole = width / kPackedBlock;
    V sum[C][R];
    for (int c = 0; c < C; ++c)
      for (int r = 0; r < R; ++r) sum[c][r] = S::set(0.0f);
    const auto add = [&]<int size>(int b) {
      for (int c = 0; c < C; ++c) {
        const bool marked = tile.marks[first + c] >> b & 1;
        const int k = b * kPackedBlock;
        add_block<R, size>(x, tile.packed + (first + c) * row_bytes + size_t(b) * kPackedBlockBytes,
                           marked ? tile.weight + size_t(first + c) * width + k : nullptr, k, exponents, sum[c]);
      }
    };
    for (int b = 0; b < whole; ++b) add.template operator()<kPackedBlock>(b);
    if (width % kPackedBlock) add.template operator()<kPackedHalf>(whole);
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) out[r * out_stride + first + c] = S::sum(sum[c][r]);
  }

  template <int R>
  static void few_rows(const Rows<float>& x, const PackedTile& tile, int columns, int width, float* out,
                       size_t out_stride) {
    constexpr int C = 2;
    const float* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = x[r];
    const Exponents exponents = S::exponents(tile.lowest);
    int c = 0;
    for (; c + C <= columns; c += C) few<R, C>(rows, tile, c, columns, width, exponents, out, out_stride);
    for (; c < columns; ++c) few<R, 1>(rows, tile, c, columns, width, exponents, out, out_stride);
  }

  // One column as floats.
  static void unpack_row(const PackedTile& tile, int c, int width, const Exponents& exponents, float* to) {
    const uint8_t* block = tile.packed + c * packed_row_bytes(width);
    for (int k = 0; k < width; k += kPackedBlock, block += kPackedBlockBytes) {
      const int size = width - k < kPackedBlock ? kPackedHalf : kPackedBlock;
      if (tile.marks[c] >> k / kPackedBlock & 1) {
        for (int i = 0; i < size; i += S::lanes) S::save(to + k + i, S::load(tile.weight + size_t(c) * width + k + i));
        continue;
      }
      for (int g = 0; g < size / kGroup; ++g) {
        V w[4];
        unpack(block, size, g, exponents, w);
        for (int i = 0; i < 4; ++i) S::save(to + k + g * kGroup + i * S::lanes, w[i]);
      }
    }
  }

  static void matmul_packed(Rows<float> x, int rows, PackedTile tile, int columns, int width, float* scratch,
                            float* out, size_t out_stride) {
    using Float = FloatFor<S>;
    constexpr int C = S::dot_columns;
    if (rows == 1) return few_rows<1>(x, tile, columns, width, out, out_stride);
    if (rows == 2) return few_rows<2>(x, tile, columns, width, out, out_stride);
    const Exponents exponents = S::exponents(tile.lowest);
    for (int first = 0; first < rows; first += Float::kRowsInCache) {
      const int some = rows - first < Float::kRowsInCache ? rows - first : Float::kRowsInCache;
      float* to = out + first * out_stride;
      for (int c = 0; c < columns; c += C) {
        const int take = columns - c < C ? columns - c : C;
        for (int i = 0; i < take; ++i) unpack_row(tile, c + i, width, exponents, scratch + size_t(i) * width);
        Float::dot_some(x.from(first), some, scratch, take, width, to + c, out_stride);
      }
    }
  }
};

}  // namespace gptoss::cpu
