// Weights for tiles: 16 columns' blocks as signed bytes, a column a lane.
//
// A block of 32 is a tile of eight rows. Row j holds four elements of every column, side by side: j = 2 i the even ones
// of elements 8 i .. 8 i + 7, j = 2 i + 1 the odd ones.
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "cpu/q8_weights.h"
#include "model/ops.h"

namespace gptoss::cpu {

// In a template, as all code that several instruction sets are compiled for: so that no two objects share a symbol.
template <class Tiles>
struct TileColumns {
  static constexpr int kColumns = 16, kStep = 16;  // blocks of a step, as avx512 has them
  static constexpr int kBytes = kColumns * kMxfp4Block;

  // Where rows of 16 columns begin. One that is not there repeats the last: nobody reads its sums.
  struct Sixteen {
    const uint8_t* row[kColumns];

    Sixteen(const void* data, size_t stride, int columns) {
      for (int c = 0; c < kColumns; ++c)
        row[c] = static_cast<const uint8_t*>(data) + stride * size_t(c < columns ? c : columns - 1);
    }
    void ask(size_t at, size_t bytes) const {
      for (const uint8_t* each : row) ask_for(each + at, bytes);
    }
  };

  // 16 bytes of each column: register i holds their four-byte piece i.
  [[gnu::always_inline]] static void load(const Sixteen& from, size_t at, __m512i* x) {
    const auto quarter = [&](int c) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.row[c] + at)); };
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p) {
      x[p] = _mm512_castsi128_si512(quarter(p));
      x[p] = _mm512_inserti32x4(x[p], quarter(4 + p), 1);
      x[p] = _mm512_inserti32x4(x[p], quarter(8 + p), 2);
      x[p] = _mm512_inserti32x4(x[p], quarter(12 + p), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c), x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d), x[3] = _mm512_unpackhi_epi64(b, d);
  }

  // The same of `bytes` bytes, up to 16, where there are no more to read.
  static void load_some(const Sixteen& from, size_t at, int bytes, __m512i* x) {
    if (bytes >= 16) return load(from, at, x);
    alignas(64) uint8_t copy[kColumns][16] = {};
    for (int c = 0; c < kColumns; ++c) __builtin_memcpy(copy[c], from.row[c] + at, static_cast<size_t>(bytes));
    load(Sixteen(copy, 16, kColumns), 0, x);
  }

  // Where to put a block's tile, 512 bytes, and its scales, 16 floats.
  struct Target {
    int8_t* tile;
    float* scale;
  };

  // `to(b)` is the target of block b. `ahead` columns on are those that will be wanted next.
  struct Mxfp4 {
    Mxfp4Tile tile;
    int blocks;
    static constexpr float unit = 0.5f;  // codes count in halves

    template <typename To>
    void unpack(int first, int columns, int ahead, const To& to) const {
      const size_t row = size_t(blocks) * kMxfp4BlockBytes;
      const Sixteen codes(tile.blocks + size_t(first) * row, row, columns);
      const Sixteen exponents(tile.scales + size_t(first) * blocks, static_cast<size_t>(blocks), columns);
      const __m512i mask = _mm512_set1_epi8(15);
      const __m512i table =
          _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
      for (int step = 0; step < blocks; step += kStep) {
        const int count = blocks - step < kStep ? blocks - step : kStep;
        const size_t at = size_t(step) * kMxfp4BlockBytes;
        codes.ask(at + size_t(ahead) * row, size_t(count) * kMxfp4BlockBytes);
        __m512i spread[4];  // exponents of four blocks in each lane
        load_some(exponents, static_cast<size_t>(step), count, spread);
        for (int b = 0; b < count; ++b) {
          const Target target = to(step + b);
          // The byte becomes the exponent. 2^-127, a denormal, comes out as 0; no model holds the NaN, 255.
          const __m512i exponent = _mm512_srl_epi32(spread[b / 4], _mm_cvtsi32_si128(8 * (b % 4)));
          _mm512_store_si512(target.scale, _mm512_slli_epi32(_mm512_and_si512(exponent, _mm512_set1_epi32(255)), 23));
          __m512i packed[4];
          load(codes, at + size_t(b) * kMxfp4BlockBytes, packed);
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            const __m512i even = _mm512_and_si512(packed[i], mask);
            const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(packed[i], 4), mask);
            _mm512_store_si512(target.tile + 128 * i, _mm512_shuffle_epi8(table, even));
            _mm512_store_si512(target.tile + 128 * i + 64, _mm512_shuffle_epi8(table, odd));
          }
        }
      }
    }
  };

  // Signed bytes lie in steps as avx512's registers take them (q8_weights.h): piece j of all its blocks, then the next,
  // each in the order 0, 4, 8, .. 1, 5, ..
  struct Q8 {
    Q8Tile tile;
    int blocks;
    static constexpr float unit = 1.0f;

    template <typename To>
    void unpack(int first, int columns, int ahead, const To& to) const {
      const int padded = static_cast<int>(q8_row_scales(blocks * kMxfp4Block));
      const size_t row = size_t(padded) * kMxfp4Block;
      const Sixteen bytes(tile.q8 + size_t(first) * row, row, columns);
      const Sixteen scales(tile.scale + size_t(first) * padded, size_t(padded) * sizeof(bf16), columns);
      for (int step = 0; step < blocks; step += kStep) {
        const int count = padded - step < kStep ? padded - step : kStep;
        const auto block = [&](int place) { return step + place % (count / 4) * 4 + place / (count / 4); };
        const size_t at = size_t(step) * kMxfp4Block;
        bytes.ask(at + size_t(ahead) * row, size_t(count) * kMxfp4Block);
        __m512i x[4];
        for (int place = 0; place < count; place += 8) {
          load_some(scales, size_t(step + place) * sizeof(bf16), 2 * (count - place), x);
          for (int i = 0; i < 8 && place + i < count; ++i) {
            if (block(place + i) >= blocks) continue;
            const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
            const __m512i scale = i % 2 ? _mm512_and_si512(x[i / 2], high) : _mm512_slli_epi32(x[i / 2], 16);
            _mm512_store_si512(to(block(place + i)).scale, scale);
          }
        }
        for (int place = 0; place < count; place += 4) {
          int8_t* tiles[4];
          for (int i = 0; i < 4; ++i) tiles[i] = block(place + i) < blocks ? to(block(place + i)).tile : nullptr;
          for (int j = 0; j < 8; ++j) {
            load(bytes, at + size_t(4 * (j * count + place)), x);
            for (int i = 0; i < 4; ++i)
              if (tiles[i]) _mm512_store_si512(tiles[i] + 64 * j, x[i]);
          }
        }
      }
    }
  };
};

}  // namespace gptoss::cpu
