// Rounding to 8 and to 6 bits: activations, and weights as the kernels' registers take them (cpu/q8_weights.h,
// cpu/screen_weights.h).
#pragma once

#include <bit>

#include "cpu/kernels.h"
#include "cpu/q8_weights.h"
#include "cpu/screen_weights.h"
#include "model/ops.h"

namespace gptoss::cpu {

template <class S>
struct QuantizeFor {
  using V = typename S::V;

  static constexpr int kStepBytes = S::q8_blocks * kMxfp4Block;

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

  // Whether there is neither NaN nor infinity, of which 0 times is NaN.
  template <typename T>
  static bool is_finite(const T* x, int count) {
    V poison[2] = {S::set(0.0f), S::set(0.0f)};
    for (int k = 0; k < count; k += 2 * S::lanes)
      for (int i = 0; i < 2; ++i) poison[i] = S::fma(S::load(x + k + i * S::lanes), S::set(0.0f), poison[i]);
    const float check = S::sum(S::add(poison[0], poison[1]));
    return check == check;
  }

  // The scale of one block of weights, bf16 or floats, whose largest becomes at most `most`: rounded up, so that no
  // value leaves that range; 0 for very small ones, NaN where one is not finite, which may be if `doubtful`.
  template <int most, typename T>
  static bf16 scale_of(const T* weight, bool doubtful) {
    constexpr float kSmallest = 1e-30f;
    if (doubtful && !is_finite(weight, kMxfp4Block)) return {0x7fc0};
    V largest = S::set(0.0f);
    for (int k = 0; k < kMxfp4Block; k += S::lanes) {
      const V v = S::load(weight + k);
      largest = S::max(largest, S::max(v, S::sub(S::set(0.0f), v)));
    }
    const float limit = S::largest(largest);
    if (limit < kSmallest) return {0};
    return {static_cast<uint16_t>((std::bit_cast<uint32_t>(limit / float{most}) + 0xffffu) >> 16)};
  }

  // Codes of a block's weights, with the scale that this returns.
  static bf16 round_to_bytes(const bf16* weight, bool doubtful, int8_t* codes) {
    const bf16 scale = scale_of<127>(weight, doubtful);
    const float factor = to_float(scale);
    if (!(factor > 0)) {
      __builtin_memset(codes, 0, kMxfp4Block);
      return scale;
    }
    const V inverse = S::set(1.0f / factor);
    for (int k = 0; k < kMxfp4Block; k += S::lanes) S::save_bytes(codes + k, S::mul(S::load(weight + k), inverse));
    return scale;
  }

  struct Sums {
    V squares = S::set(0.0f), lost = S::set(0.0f);
    RowLoss loss() const { return {S::sum(squares), S::sum(lost)}; }
  };

  // Signed codes of a block's weights in six bits (cpu/screen_weights.h), with the scale that this returns. Of sixteen,
  // those of elements 9, 11, 13 and 15 are rounded first: their bits are the low ones of 0, 2, 4 and 6, of 1, 3, 5 and
  // 7, and of 8, 10, 12 and 14.
  template <typename T>
  static bf16 round_to_six_bits(const T* weight, bool doubtful, int8_t* codes, Sums& sums) {
    const bf16 scale = scale_of<124>(weight, doubtful);
    const float factor = to_float(scale);
    if (!(factor > 0)) {
      __builtin_memset(codes, 0, kMxfp4Block);
      return scale;
    }
    static_assert(std::endian::native == std::endian::little);
    constexpr uint64_t kEven = 0x0003000300030003, kMiddle = 0x2020202020202020;
    constexpr int kVectors = 16 / S::lanes;
    const V quarter = S::set(0.25f), four = S::set(4.0f), inverse = S::set(0.25f / factor);
    for (int k = 0; k < kMxfp4Block; k += 16, weight += 16, codes += 16) {
      V value[kVectors], fours[kVectors];  // multiples of four that it would be
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        value[i] = S::load(weight + i * S::lanes);
        fours[i] = S::mul(value[i], inverse);
        S::save_bytes(codes + i * S::lanes, fours[i]);
      }
      uint64_t fourths;
      __builtin_memcpy(&fourths, codes + 8, sizeof fourths);
      fourths = (fourths ^ kMiddle) >> 8 & 0x003f003f003f003f;
      const uint64_t low[] = {(fourths & kEven) | (fourths << 6 & kEven << 8), fourths >> 4 & kEven};
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        const V bits = S::from_bytes(low + i * S::lanes / 8);
        const V code = S::fma(four, S::round(S::sub(fours[i], S::mul(quarter, bits))), bits);
        S::save_bytes(codes + i * S::lanes, code);
        const V loss = S::sub(value[i], S::mul(S::set(factor), code));
        sums.squares = S::fma(value[i], value[i], sums.squares);
        sums.lost = S::fma(loss, loss, sums.lost);
      }
    }
    return scale;
  }

  // What a block's weights are when rounded to signed bytes.
  static void through_bytes(const bf16* weight, bool doubtful, float* to) {
    const float factor = to_float(scale_of<127>(weight, doubtful));
    const V scale = S::set(factor), inverse = S::set(factor > 0 ? 1.0f / factor : 0.0f);
    for (int k = 0; k < kMxfp4Block; k += S::lanes)
      S::save(to + k, S::mul(scale, S::round(S::mul(S::load(weight + k), inverse))));
  }

  // Codes of `count` blocks as their step has them: as lay_out brings those of activations into lanes, with the lanes
  // that have no block left out.
  static void lay_out_step(const int8_t* codes, int count, int8_t* to) {
    constexpr float kNone[S::q8_blocks] = {};
    constexpr size_t kGroups = S::blocks_a_load, kGroup = kStepBytes / 8 / kGroups;
    const typename S::Bytes x = S::bytes(codes, kNone, count);
    const size_t used = kGroup * static_cast<size_t>(count) / S::q8_blocks;
    for (size_t piece = 0; piece < 8; ++piece) {
      const auto* all = reinterpret_cast<const int8_t*>(piece % 2 ? x.odd : x.even) + piece / 2 * kGroups * kGroup;
      for (size_t g = 0; g < kGroups; ++g) __builtin_memcpy(to + (piece * kGroups + g) * used, all + g * kGroup, used);
    }
  }

  // A step's codes, laid out, without those that the others hold.
  static void pack_step(const int8_t* codes, int count, uint8_t* to) {
    const int piece = 4 * count;
    for (int i = 0; i < 8; ++i, codes += piece) {
      if (i % 4 == 3) continue;
      for (int t = 0; t < piece; ++t) to[t] = static_cast<uint8_t>(codes[t] ^ -128);
      to += piece;
    }
  }

  // The steps of a row, filled up: block(b, codes) rounds one and returns its scale; step(first, count, codes) takes
  // what they are together.
  template <typename Block, typename Step>
  static void each_step(int width, bf16* scale, const Block& block, const Step& step) {
    const int blocks = width / kMxfp4Block, padded = static_cast<int>(q8_row_scales(width));
    for (int first = 0; first < padded; first += S::q8_blocks) {
      const int count = padded - first < S::q8_blocks ? padded - first : S::q8_blocks;
      alignas(64) int8_t codes[kStepBytes] = {};
      for (int b = 0; b < count; ++b) {
        const int lane = b % S::blocks_a_load * (count / S::blocks_a_load) + b / S::blocks_a_load;
        scale[first + lane] = first + b < blocks ? block(first + b, codes + b * kMxfp4Block) : bf16{0};
      }
      step(first, count, codes);
    }
  }

  static void quantize_weights(const bf16* weight, int width, int8_t* q8, bf16* scale) {
    const bool doubtful = !is_finite(weight, width);
    each_step(
        width, scale,
        [&](int b, int8_t* codes) { return round_to_bytes(weight + size_t(b) * kMxfp4Block, doubtful, codes); },
        [&](int first, int count, const int8_t* codes) {
          lay_out_step(codes, count, q8 + size_t(first) * kMxfp4Block);
        });
  }

  static RowLoss quantize_screen(const bf16* weight, int width, bool of_bytes, uint8_t* screen, bf16* scale) {
    const bool doubtful = !is_finite(weight, width);
    Sums sums;
    each_step(
        width, scale,
        [&](int b, int8_t* codes) {
          const bf16* block = weight + size_t(b) * kMxfp4Block;
          if (!of_bytes) return round_to_six_bits(block, doubtful, codes, sums);
          float rounded[kMxfp4Block];
          through_bytes(block, doubtful, rounded);
          return round_to_six_bits(rounded, doubtful, codes, sums);
        },
        [&](int first, int count, const int8_t* codes) {
          alignas(64) int8_t step[kStepBytes];
          lay_out_step(codes, count, step);
          pack_step(step, count, screen + size_t(first) * kScreenBlockBytes);
        });
    return sums.loss();
  }
};

}  // namespace gptoss::cpu
