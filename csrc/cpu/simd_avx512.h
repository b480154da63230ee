// Sixteen floats in AVX-512 registers (F, BW, DQ, VL), 8-bit dot products by VNNI.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace gptoss::cpu {

struct Avx512 {
  static constexpr const char* name = "avx512";
  static constexpr int lanes = 16;
  static constexpr int q8_rows = 4, q8_columns = 4;
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

  // Two blocks a step: lanes 0-7 hold the first, 8-15 the second. vpdpbusd wants one unsigned operand: codes
  // carry +12 (0..24), and 12 * x is taken off by the accumulator's start. `left` is 1 when only one block
  // is left; the other half is then zero.
  static constexpr int q8_blocks = 2;
  struct Bytes {
    __m512i q8;
    __m512i minus12;  // -12 * (sum of each four)
  };
  using Codes = __m512i;
  using Scales = V;

  static Codes codes(const uint8_t* blocks, int left) {
    const __m256i packed = left >= 2
                               ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks))
                               : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks)));
    const __m512i wide = _mm512_cvtepu8_epi16(packed);
    const __m512i nibbles =
        _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi16(0x0f0f));
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm512_shuffle_epi8(table, nibbles);
  }
  static Bytes bytes(const int8_t* q8, int left) {
    const __m512i x = _mm512_maskz_loadu_epi8(left >= 2 ? ~__mmask64{0} : __mmask64{0xffffffffu}, q8);
    const __m512i zero = _mm512_setzero_si512();
    return {x, _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(12), x))};
  }
  // The byte becomes the exponent. 2^-127, a denormal, comes out as 0; no model holds the NaN, 255.
  static Scales weight_scales(const uint8_t* scales, int left) {
    const int both = left >= 2 ? scales[0] | scales[1] << 8 : scales[0];
    const __m512i spread = _mm512_set1_epi16(static_cast<int16_t>(both));
    const __m512i place = _mm512_inserti64x4(_mm512_set1_epi32(0x80808000), _mm256_set1_epi32(0x80808001), 1);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_shuffle_epi8(spread, place), 23));
  }
  static Scales input_scales(const float* scales, int left) {
    const V both = _mm512_maskz_loadu_ps(left >= 2 ? 3 : 1, scales);
    return _mm512_permutexvar_ps(_mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(1), 1), both);
  }
  static V dot_step(Codes c, const Bytes& x, Scales w, Scales s, V sum) {
    const __m512i dot = _mm512_dpbusd_epi32(x.minus12, c, x.q8);
    return fma(_mm512_cvtepi32_ps(dot), mul(w, s), sum);
  }
};

}  // namespace gptoss::cpu
