// Sixteen floats in AVX-512 registers (F, BW, DQ, VL), 8-bit dot products by VNNI.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace gptoss::cpu {

struct Avx512 {
  static constexpr const char* name = "avx512";
  static constexpr int lanes = 16;
  static constexpr int q8_rows = 4;
  static constexpr int dot_rows = 4, dot_columns = 4;
  static constexpr int value_heads = 4;

  using V = __m512;

  static V set(float x) { return _mm512_set1_ps(x); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void save(float* p, V a) { _mm512_storeu_ps(p, a); }
  // To the nearest integer; of two the even one. Values are within a byte.
  static void save_bytes(int8_t* p, V a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
  }
  // p[0], p[2], ... and p[1], p[3], ...
  static void load_pairs(const float* p, V& first, V& second) {
    const V front = load(p), back = load(p + lanes);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    first = _mm512_permutex2var_ps(front, even, back);
    second = _mm512_permutex2var_ps(front, _mm512_add_epi32(even, _mm512_set1_epi32(1)), back);
  }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V exp2_int(V n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
  }
  static float sum(V a) { return _mm512_reduce_add_ps(a); }
  static float largest(V a) { return _mm512_reduce_max_ps(a); }

  static unsigned at_least(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static V zero_unless_at_least(V a, V b, V value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), value);
  }

  using U = __m512i;
  static U broadcast(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static U ascending(uint32_t first) {
    return _mm512_add_epi32(broadcast(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  }
  static U exclusive_or(U a, U b, U c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
  // Products of even lanes and of odd lanes are 64 bits wide; their halves go back to the lanes they are of.
  static void multiply(U a, uint32_t by, U& high, U& low) {
    const U even = _mm512_mul_epu32(a, broadcast(by));
    const U odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), broadcast(by));
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
    low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
  }
  static V half_complement(U a) {
    return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_xor_si512(a, broadcast(~0u)), 1));
  }

  static void decode_block(const uint8_t* block, float scale, float* out) {
    const V table = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    const V factor = set(scale);
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
    const __m128i mask = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(packed, mask), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
    auto convert = [&](__m128i codes) {
      return mul(_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table), factor);
    };
    save(out, convert(_mm_unpacklo_epi8(even, odd)));
    save(out + 16, convert(_mm_unpackhi_epi8(even, odd)));
  }

  // For the measure of the arithmetic peak: see LimitsFor.
  using I = __m512i;
  static constexpr int limit_sums = 12, limit_byte_sums = 12, limit_bytes = 64;
  template <typename T>
  [[gnu::always_inline]] static void opaque(T& x) {
    asm volatile("" : "+v"(x));
  }
  static I bytes_of(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static I dot_bytes(I sum, I a, I b) { return _mm512_dpbusd_epi32(sum, a, b); }

  // Sixteen blocks a step, in four parts of four: one block in each quarter of a register, so that a quarter's four
  // sums are of one block and share its scales. `even` holds the even elements of each, `odd` the odd ones, as the
  // nibbles have them. vpdpbusd wants one unsigned operand: weights carry +128, and 128 * x is taken off by the
  // accumulator's start. What lies behind the last `left` blocks is zero.
  static constexpr int q8_blocks = 16;
  static constexpr int kParts = 4;
  struct Bytes {
    __m512i even[kParts], odd[kParts];
    __m512i minus128[kParts];  // -128 * (sums of eight)
    V scale;                   // one a block
  };
  struct Codes {
    __m512i even, odd;
  };

  static Bytes bytes(const int8_t* q8, const float* scales, int left) {
    const __m512i apart = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const __m512i lower = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14),
                  upper = _mm512_add_epi64(lower, _mm512_set1_epi64(1));
    const __m512i zero = _mm512_setzero_si512(), offset = _mm512_set1_epi8(-128);
    Bytes x;
    x.scale = _mm512_maskz_loadu_ps(first(left), scales);
    for (int part = 0; part < kParts; ++part) {
      const int words = 4 * (left - 4 * part);  // of eight bytes
      // Even bytes to the lower half of each quarter, odd ones to the upper; then the halves of a block together.
      const __m512i front = _mm512_shuffle_epi8(load_words(q8 + 128 * part, words), apart);
      const __m512i back = _mm512_shuffle_epi8(load_words(q8 + 128 * part + 64, words - 8), apart);
      x.even[part] = _mm512_permutex2var_epi64(front, lower, back);
      x.odd[part] = _mm512_permutex2var_epi64(front, upper, back);
      const __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, offset, x.even[part]), offset, x.odd[part]);
      x.minus128[part] = _mm512_sub_epi32(zero, sums);
    }
    return x;
  }

  // sum[r] += the products of one column's blocks and those of row r, x[r * stride].
  template <int R>
  [[gnu::always_inline]] static void mxfp4_step(const uint8_t* blocks, const uint8_t* scales, int left, const Bytes* x,
                                                int stride, V* sum) {
    // The byte becomes the exponent. 2^-127, a denormal, comes out as 0; no model holds the NaN, 255.
    const __m512i exponents =
        _mm512_cvtepu8_epi32(left >= q8_blocks ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales))
                                               : _mm_maskz_loadu_epi8(first(left), scales));
    const V scale = _mm512_castsi512_ps(_mm512_slli_epi32(exponents, 23));
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_xor_si128(_mm_set1_epi8(-128), _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)));
    multiply_add<R>(
        [&](int part) {
          const int words = left >= q8_blocks ? 8 : 2 * (left - 4 * part);
          const __m512i packed = load_words(blocks + 64 * part, words);
          return Codes{_mm512_shuffle_epi8(table, _mm512_and_si512(packed, mask)),
                       _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask))};
        },
        scale, left, x, stride, sum);
  }

  // The same of 8-bit weights (cpu/q8_weights.h), whose rows are filled up with zeros to four blocks.
  template <int R>
  [[gnu::always_inline]] static void q8_step(const int8_t* groups, const bf16* scales, int left, const Bytes* x,
                                             int stride, V* sum) {
    const __m256i half = left >= q8_blocks ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales))
                                           : _mm256_maskz_loadu_epi16(first(left), scales);
    const V scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    const __m512i offset = _mm512_set1_epi8(-128);
    multiply_add<R>(
        [&](int part) {
          return Codes{_mm512_xor_si512(_mm512_loadu_si512(groups + 128 * part), offset),
                       _mm512_xor_si512(_mm512_loadu_si512(groups + 128 * part + 64), offset)};
        },
        scale, left, x, stride, sum);
  }

 private:
  static __mmask16 first(int count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1); }
  static __m512i load_words(const void* p, int words) {
    if (words >= 8) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi64(static_cast<__mmask8>(words > 0 ? (1 << words) - 1 : 0), p);
  }

  template <int R, typename Load>
  [[gnu::always_inline]] static void multiply_add(const Load& codes, V scale, int left, const Bytes* x, int stride,
                                                  V* sum) {
    V both[R];
    for (int r = 0; r < R; ++r) both[r] = mul(scale, x[r * stride].scale);
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      if (4 * part >= left) break;
      const Codes c = codes(part);
      const int i = 4 * part;
      const __m512i blocks = _mm512_setr_epi32(i, i, i, i, i + 1, i + 1, i + 1, i + 1, i + 2, i + 2, i + 2, i + 2,
                                               i + 3, i + 3, i + 3, i + 3);
      for (int r = 0; r < R; ++r) {
        const Bytes& row = x[r * stride];
        const __m512i dot =
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(row.minus128[part], c.even, row.even[part]), c.odd, row.odd[part]);
        sum[r] = fma(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(blocks, both[r]), sum[r]);
      }
    }
  }
};

}  // namespace gptoss::cpu
