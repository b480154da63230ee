// Products with 8-bit activations: exact integers inside a block of 32, floats between blocks. Weights are MXFP4, or
// dense in signed bytes or six bits. A step takes S::q8_blocks blocks; see simd_*.h for where they lie in registers.
//
// Products of few rows are as fast as memory brings the weights. Their rows are short, and several side by side would
// be streams too many for the hardware to run ahead of: they are read one after the other, as one stream.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "cpu/q8_weights.h"
#include "cpu/screen_weights.h"
#include "model/ops.h"

namespace gptoss::cpu {

template <class S>
struct Q8For {
  using V = typename S::V;

  using Bytes = typename S::Bytes;
  using Tail = typename S::Tail;
  using Weights = typename S::Weights;

  static constexpr int steps(int blocks) { return (blocks + S::q8_blocks - 1) / S::q8_blocks; }
  static size_t laid_out_bytes(int width) { return (steps(width / kMxfp4Block) * sizeof(Bytes) + 63) / 64 * 64; }

  static void lay_out(const int8_t* q8, const float* scale, int width, uint8_t* to) {
    const int blocks = width / kMxfp4Block;
    auto* step = reinterpret_cast<Bytes*>(to);
    for (int b = 0; b < blocks; b += S::q8_blocks)
      *step++ =
          S::bytes(q8 + size_t(b) * kMxfp4Block, scale + b, blocks - b < S::q8_blocks ? blocks - b : S::q8_blocks);
  }

  // Columns of a weight matrix: what a step from block b of column c multiplies with, and a wish to have it soon.
  struct Mxfp4Columns {
    Mxfp4Tile tile;
    int blocks;
    static constexpr float unit = 0.5f;  // codes count in halves

    template <bool whole>
    [[gnu::always_inline]] Weights load(int c, int b, const Tail& tail) const {
      const size_t at = size_t(c) * blocks + b;
      const uint8_t* codes = tile.blocks + at * kMxfp4BlockBytes;
      for (int line = 0; S::ahead > 0 && line < S::q8_blocks * kMxfp4BlockBytes; line += 64)
        __builtin_prefetch(codes + S::ahead + line);
      return S::template mxfp4_weights<whole>(codes, tile.scales + at, tail);
    }
    [[gnu::always_inline]] void ask(int c, int b) const {
      ask_for(tile.blocks + (size_t(c) * blocks + b) * kMxfp4BlockBytes, S::q8_blocks * kMxfp4BlockBytes);
    }
    [[gnu::always_inline]] static V add(const Weights& w, const Bytes& x, V sum) { return S::add_mxfp4(w, x, sum); }
  };
  struct Q8Columns {
    Q8Tile tile;
    int blocks;
    static constexpr float unit = 1.0f;

    template <bool whole>
    [[gnu::always_inline]] Weights load(int c, int b, const Tail& tail) const {
      const size_t at = size_t(c) * q8_row_scales(blocks * kMxfp4Block) + b;
      return S::template q8_weights<whole>(tile.q8 + at * kMxfp4Block, tile.scale + at, tail);
    }
    [[gnu::always_inline]] void ask(int c, int b) const {
      ask_for(tile.q8 + (size_t(c) * q8_row_scales(blocks * kMxfp4Block) + b) * kMxfp4Block,
              S::q8_blocks * kMxfp4Block);
    }
    [[gnu::always_inline]] static V add(const Weights& w, const Bytes& x, V sum) { return S::add_q8(w, x, sum); }
  };
  struct ScreenColumns {
    ScreenTile tile;
    int blocks;
    static constexpr float unit = 1.0f;

    template <bool whole>
    [[gnu::always_inline]] Weights load(int c, int b, const Tail& tail) const {
      const size_t at = size_t(c) * q8_row_scales(blocks * kMxfp4Block) + b;
      return S::template screen_weights<whole>(tile.codes + at * kScreenBlockBytes, tile.scale + at, tail);
    }
    [[gnu::always_inline]] void ask(int c, int b) const {
      ask_for(tile.codes + (size_t(c) * q8_row_scales(blocks * kMxfp4Block) + b) * kScreenBlockBytes,
              S::q8_blocks * kScreenBlockBytes);
    }
    [[gnu::always_inline]] static V add(const Weights& w, const Bytes& x, V sum) { return S::add_q8(w, x, sum); }
  };

  // Few rows: their sums stay in registers while a column goes by. With the number of blocks known its loop becomes a
  // line, whose loads of activations no prefetcher takes for a stream.
  template <int R, int known = 0, typename Columns>
  static void q8_few(const Rows<uint8_t>& x, const Columns& weight, int columns, int given, float* out,
                     size_t out_stride) {
    const int blocks = known ? known : given;
    const Bytes* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const Bytes*>(x[r]);
    const int whole = blocks / S::q8_blocks * S::q8_blocks;
    const Tail tail(blocks - whole);
    for (int c = 0; c < columns; ++c) {
      V sum[R];
      for (int r = 0; r < R; ++r) sum[r] = S::set(0.0f);
      const auto add = [&](int b) {
        const Weights w = weight.template load<true>(c, b, tail);
        for (int r = 0; r < R; ++r) sum[r] = Columns::add(w, rows[r][b / S::q8_blocks], sum[r]);
      };
      if constexpr (known > 0) {
#pragma GCC unroll 16
        for (int b = 0; b < known / S::q8_blocks * S::q8_blocks; b += S::q8_blocks) add(b);
      } else {
        for (int b = 0; b < whole; b += S::q8_blocks) add(b);
      }
      if (whole < blocks) {
        const Weights w = weight.template load<false>(c, whole, tail);
        for (int r = 0; r < R; ++r) sum[r] = Columns::add(w, rows[r][whole / S::q8_blocks], sum[r]);
      }
      for (int r = 0; r < R; ++r) out[r * out_stride + c] = Columns::unit * S::sum(sum[r]);
    }
  }

  // Many rows: one step after the other, whose activations stay in the first cache with the sums of some columns, and
  // each column's weights, decoded once, in registers.
  static constexpr int kManyRows = 16, kManyColumns = 16;

  // A step of C columns from `first` on; sums[c][r].
  template <int C, bool whole, typename Columns>
  [[gnu::always_inline]] static void q8_step(const Columns& weight, int first, int b, const Tail& tail,
                                             const Bytes* const* rows, int count, V (*sums)[kManyRows]) {
    Weights w[C];
    for (int c = 0; c < C; ++c) w[c] = weight.template load<whole>(first + c, b, tail);
    // Steps of neighbouring columns are streams too many for the hardware.
    for (int c = 0; c < C; ++c) weight.ask(first + c + kManyColumns, b);
    for (int r = 0; r < count; ++r) {
      const Bytes& x = rows[r][b / S::q8_blocks];
      V sum[C];
      for (int c = 0; c < C; ++c) sum[c] = Columns::add(w[c], x, sums[c][r]);
      for (int c = 0; c < C; ++c) sums[c][r] = sum[c];
    }
  }

  template <bool whole, typename Columns>
  [[gnu::always_inline]] static void q8_steps(const Columns& weight, int first, int columns, int b, const Tail& tail,
                                              const Bytes* const* rows, int count, V (*sums)[kManyRows]) {
    constexpr int C = S::q8_columns;
    int c = 0;
    for (; c + C <= columns; c += C) q8_step<C, whole>(weight, first + c, b, tail, rows, count, sums + c);
    for (; c < columns; ++c) q8_step<1, whole>(weight, first + c, b, tail, rows, count, sums + c);
  }

  template <typename Columns>
  static void q8_many(const Rows<uint8_t>& x, int count, const Columns& weight, int columns, int blocks, float* out,
                      size_t out_stride) {
    const Bytes* rows[kManyRows];
    for (int r = 0; r < count; ++r) rows[r] = reinterpret_cast<const Bytes*>(x[r]);
    const int whole = blocks / S::q8_blocks * S::q8_blocks;
    const Tail tail(blocks - whole);
    for (int first = 0; first < columns; first += kManyColumns) {
      const int some = columns - first < kManyColumns ? columns - first : kManyColumns;
      V sum[kManyColumns][kManyRows];
      for (int c = 0; c < some; ++c)
        for (int r = 0; r < count; ++r) sum[c][r] = S::set(0.0f);
      for (int b = 0; b < whole; b += S::q8_blocks) q8_steps<true>(weight, first, some, b, tail, rows, count, sum);
      if (whole < blocks) q8_steps<false>(weight, first, some, whole, tail, rows, count, sum);
      for (int r = 0; r < count; ++r)
        for (int c = 0; c < some; ++c) out[r * out_stride + first + c] = Columns::unit * S::sum(sum[c][r]);
    }
  }

  template <typename Columns>
  static void q8_matmul(const Rows<uint8_t>& x, int rows, const Columns& weight, int columns, int blocks, float* out,
                        size_t out_stride) {
    constexpr int kHidden = 2880 / kMxfp4Block, kAttended = 4096 / kMxfp4Block;  // of the released models
    if (rows == 1 && blocks == kHidden) return q8_few<1, kHidden>(x, weight, columns, blocks, out, out_stride);
    if constexpr (std::is_same_v<Columns, Q8Columns>)
      if (rows == 1 && blocks == kAttended) return q8_few<1, kAttended>(x, weight, columns, blocks, out, out_stride);
    if (rows == 1) return q8_few<1>(x, weight, columns, blocks, out, out_stride);
    if (rows == 2) return q8_few<2>(x, weight, columns, blocks, out, out_stride);
    for (int r = 0; r < rows; r += kManyRows)
      q8_many(x.from(r), rows - r < kManyRows ? rows - r : kManyRows, weight, columns, blocks, out + r * out_stride,
              out_stride);
  }

  static void matmul_mxfp4_q8(Rows<uint8_t> x, int rows, Mxfp4Tile weight, int columns, int width, float* out,
                              size_t out_stride) {
    const int blocks = width / kMxfp4Block;
    q8_matmul(x, rows, Mxfp4Columns{weight, blocks}, columns, blocks, out, out_stride);
  }

  static void matmul_q8(Rows<uint8_t> x, int rows, Q8Tile weight, int columns, int width, float* out,
                        size_t out_stride) {
    const int blocks = width / kMxfp4Block;
    q8_matmul(x, rows, Q8Columns{weight, blocks}, columns, blocks, out, out_stride);
  }

  static void matmul_screen(Rows<uint8_t> x, int rows, ScreenTile weight, int columns, int width, float* out,
                            size_t out_stride) {
    const int blocks = width / kMxfp4Block;
    q8_matmul(x, rows, ScreenColumns{weight, blocks}, columns, blocks, out, out_stride);
  }
};

}  // namespace gptoss::cpu
