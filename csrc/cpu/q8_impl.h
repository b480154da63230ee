// Products with 8-bit activations: exact integers inside a block of 32, floats between blocks. Weights are MXFP4, or
// dense in signed bytes. A step takes S::q8_blocks blocks; see simd_*.h for where they lie in registers.
//
// Products of few rows are as fast as memory brings the weights. Their rows are short, and several side by side would
// be streams too many for the hardware to run ahead of: they are read one after the other, as one stream.
#pragma once

#include <bit>

#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "cpu/q8_weights.h"
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

  // Few rows: their sums stay in registers while a column goes by.
  template <int R, typename Columns>
  static void q8_few(const Rows<uint8_t>& x, const Columns& weight, int columns, int blocks, float* out,
                     size_t out_stride) {
    const Bytes* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const Bytes*>(x[r]);
    const int whole = blocks / S::q8_blocks * S::q8_blocks;
    const Tail tail(blocks - whole);
    for (int c = 0; c < columns; ++c) {
      V sum[R];
      for (int r = 0; r < R; ++r) sum[r] = S::set(0.0f);
      for (int b = 0; b < whole; b += S::q8_blocks) {
        const Weights w = weight.template load<true>(c, b, tail);
        for (int r = 0; r < R; ++r) sum[r] = Columns::add(w, rows[r][b / S::q8_blocks], sum[r]);
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

  static void quantize_q8(const float* x, int width, int8_t* q8, float* scale) {
    for (int b = 0; b < width / kMxfp4Block; ++b, x += kMxfp4Block, q8 += kMxfp4Block) {
      V largest = S::set(0.0f), poison = S::set(0.0f);
      for (int k = 0; k < kMxfp4Block; k += S::lanes) {
        const V v = S::load(x + k);
        largest = S::max(largest, S::max(v, S::sub(S::set(0.0f), v)));
        poison = S::fma(v, S::set(0.0f), poison);
      }
      // x * 0 is NaN for NaN and infinity, which 8 bits cannot hold: the scale carries it on.
      const float check = S::sum(poison);
      const bool finite = check == check;
      // Below this 127 / limit is infinite; such a block is stored as zeros.
      constexpr float kSmallest = 1e-36f;
      const float found = finite ? S::largest(largest) : 0.0f;
      const float limit = found >= kSmallest ? found : 0.0f;
      scale[b] = finite ? limit / 127.0f : check;
      const V inverse = S::set(limit > 0.0f ? 127.0f / limit : 0.0f);
      if (!finite) {
        for (int k = 0; k < kMxfp4Block; ++k) q8[k] = 0;
        continue;
      }
      for (int k = 0; k < kMxfp4Block; k += S::lanes) S::save_bytes(q8 + k, S::mul(S::load(x + k), inverse));
    }
  }

  struct Sums {
    V squares, lost;
  };

  // Of one block: returns its scale, and bytes in the order of its elements.
  static bf16 quantize_block(const bf16* weight, int8_t* bytes, Sums& sums) {
    constexpr float kSmallest = 1e-30f;
    V largest = S::set(0.0f), poison = S::set(0.0f);
    for (int k = 0; k < kMxfp4Block; k += S::lanes) {
      const V v = S::load(weight + k);
      largest = S::max(largest, S::max(v, S::sub(S::set(0.0f), v)));
      poison = S::fma(v, S::set(0.0f), poison);
    }
    const float check = S::sum(poison), limit = S::largest(largest);
    if (check != check) return to_bf16(check);
    if (limit < kSmallest) return {0};
    // The least bf16 that is not below: so no value leaves the bytes' range.
    const bf16 scale{static_cast<uint16_t>((std::bit_cast<uint32_t>(limit / 127.0f) + 0xffffu) >> 16)};
    const V inverse = S::set(1.0f / to_float(scale));
    float rounded[kMxfp4Block];
    for (int k = 0; k < kMxfp4Block; k += S::lanes) S::save_bytes(bytes + k, S::mul(S::load(weight + k), inverse));
    for (int k = 0; k < kMxfp4Block; ++k) rounded[k] = to_float(scale) * static_cast<float>(bytes[k]);
    for (int k = 0; k < kMxfp4Block; k += S::lanes) {
      const V v = S::load(weight + k), loss = S::sub(v, S::load(rounded + k));
      sums.squares = S::fma(v, v, sums.squares);
      sums.lost = S::fma(loss, loss, sums.lost);
    }
    return scale;
  }

  // A step's blocks lie as its lanes do: four even elements of each block, then four odd ones, and so on.
  static void scatter(const int8_t* bytes, int count, int lane, int8_t* step) {
    for (int eight = 0; eight < kMxfp4Block / 8; ++eight) {
      uint64_t all;
      __builtin_memcpy(&all, bytes + 8 * eight, 8);
      for (int odd = 0; odd < 2; ++odd) {
        uint64_t four = all >> 8 * odd & 0x00ff00ff00ff00ff;
        four = (four | four >> 8) & 0x0000ffff0000ffff;
        const uint32_t together = static_cast<uint32_t>(four | four >> 16);
        __builtin_memcpy(step + (2 * eight + odd) * 4 * count + 4 * lane, &together, 4);
      }
    }
  }

  static RowLoss quantize_weights(const bf16* weight, int width, int8_t* q8, bf16* scale) {
    const int blocks = width / kMxfp4Block, padded = static_cast<int>(q8_row_scales(width));
    Sums sums{S::set(0.0f), S::set(0.0f)};
    for (int first = 0; first < padded; first += S::q8_blocks) {
      const int count = padded - first < S::q8_blocks ? padded - first : S::q8_blocks;
      for (int b = 0; b < count; ++b) {
        int8_t bytes[kMxfp4Block] = {};
        const int lane = b % S::blocks_a_load * (count / S::blocks_a_load) + b / S::blocks_a_load;
        scale[first + lane] =
            first + b < blocks ? quantize_block(weight + size_t(first + b) * kMxfp4Block, bytes, sums) : bf16{0};
        scatter(bytes, count, lane, q8 + size_t(first) * kMxfp4Block);
      }
    }
    return {S::sum(sums.squares), S::sum(sums.lost)};
  }
};

}  // namespace gptoss::cpu
