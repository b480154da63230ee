// Eight floats in AVX2 and FMA registers.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace gptoss::cpu {

struct Avx2 {
  static constexpr const char* name = "avx2";
  static constexpr int lanes = 8;
  static constexpr int q8_rows = 4;
  static constexpr int dot_rows = 3, dot_columns = 4;
  static constexpr int value_heads = 2;

  using V = __m256;

  static V set(float x) { return _mm256_set1_ps(x); }
  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static V load(const bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static void save(float* p, V a) { _mm256_storeu_ps(p, a); }
  // To the nearest integer; of two the even one. Values are within a byte.
  static void save_bytes(int8_t* p, V a) {
    const __m256i whole = _mm256_cvtps_epi32(a);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  // p[0], p[2], ... and p[1], p[3], ...
  static void load_pairs(const float* p, V& first, V& second) {
    const V front = load(p), back = load(p + lanes);
    const V low = _mm256_permute2f128_ps(front, back, 0x20), high = _mm256_permute2f128_ps(front, back, 0x31);
    first = _mm256_shuffle_ps(low, high, 0x88);
    second = _mm256_shuffle_ps(low, high, 0xdd);
  }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V exp2_int(V n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
  static float sum(V a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float largest(V a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static unsigned at_least(V a, V b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
  }
  static V zero_unless_at_least(V a, V b, V value) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), value); }

  using U = __m256i;
  static U broadcast(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static U ascending(uint32_t first) {
    return _mm256_add_epi32(broadcast(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static U exclusive_or(U a, U b, U c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  // Products of even lanes and of odd lanes are 64 bits wide; their halves go back to the lanes they are of.
  static void multiply(U a, uint32_t by, U& high, U& low) {
    const U even = _mm256_mul_epu32(a, broadcast(by));
    const U odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), broadcast(by));
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
  static V half_complement(U a) {
    return _mm256_cvtepi32_ps(_mm256_srli_epi32(_mm256_xor_si256(a, broadcast(~0u)), 1));
  }

  // 16 packed bytes -> 32 codes in element order: each byte widens to a pair, low nibble first.
  static __m256i nibbles(const uint8_t* block) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    return _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), _mm256_set1_epi16(0x0f0f));
  }

  static void decode_block(const uint8_t* block, float scale, float* out) {
    // Twice the value is a small integer, so that one byte shuffle decodes all 32.
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m256i twice = _mm256_shuffle_epi8(table, nibbles(block));
    const V half = set(0.5f * scale);
    const __m128i low = _mm256_castsi256_si128(twice), high = _mm256_extracti128_si256(twice, 1);
    auto convert = [&](__m128i eight) { return mul(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), half); };
    save(out, convert(low));
    save(out + 8, convert(_mm_srli_si128(low, 8)));
    save(out + 16, convert(high));
    save(out + 24, convert(_mm_srli_si128(high, 8)));
  }

  // For the measure of the arithmetic peak: see LimitsFor.
  using I = __m256i;
  static constexpr int limit_sums = 12, limit_byte_sums = 6, limit_bytes = 32;
  template <typename T>
  [[gnu::always_inline]] static void opaque(T& x) {
    asm volatile("" : "+x"(x));
  }
  static I bytes_of(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static I dot_bytes(I sum, I a, I b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
  }

  // Two blocks a step, one in each half of the registers, so that a half's four sums are of one block and share its
  // scales: `even` holds the even elements of both, `odd` the odd ones, as the nibbles have them. maddubs wants one
  // unsigned operand: codes carry +12 (0..24), and 12 * x is taken off again. Two products of pairs, 4 * 24 * 127 at
  // most, fit 16 bits. When one block is `left`, the other half is zero.
  static constexpr int q8_blocks = 2;
  struct Codes {
    __m256i even, odd;
  };
  struct Bytes {
    __m256i even, odd;
    __m256i minus12;  // -12 * (sums of eight)
    V scale;
  };

  static __m256i eight_sums(__m256i codes, __m256i bytes, __m256i more_codes, __m256i more_bytes) {
    const __m256i pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(codes, bytes), _mm256_maddubs_epi16(more_codes, more_bytes));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static Codes codes(const uint8_t* blocks, int left) {
    const __m256i packed = left >= 2
                               ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks))
                               : _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks)));
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return {_mm256_shuffle_epi8(table, _mm256_and_si256(packed, mask)),
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask))};
  }
  static Bytes bytes(const int8_t* q8, const float* scales, int left) {
    __m256i front = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q8));
    __m256i back = left >= 2 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q8 + 32)) : _mm256_setzero_si256();
    // Even bytes to the lower half of each half, odd ones to the upper; then the quarters of a block together.
    const __m256i apart =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    front = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(front, apart), 0xd8);
    back = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(back, apart), 0xd8);
    const __m256i even = _mm256_permute2x128_si256(front, back, 0x20);
    const __m256i odd = _mm256_permute2x128_si256(front, back, 0x31);
    const __m256i twelve = _mm256_set1_epi8(12);
    return {even, odd, _mm256_sub_epi32(_mm256_setzero_si256(), eight_sums(twelve, even, twelve, odd)),
            _mm256_insertf128_ps(set(scales[0]), _mm_set1_ps(left >= 2 ? scales[1] : 0.0f), 1)};
  }
  // sum[r] += the products of one column's blocks and those of row r, x[r * stride].
  template <int R>
  [[gnu::always_inline]] static void mxfp4_step(const uint8_t* blocks, const uint8_t* scales, int left, const Bytes* x,
                                                int stride, V* sum) {
    // The byte becomes the exponent. 2^-127, a denormal, comes out as 0; no model holds the NaN, 255.
    const int both = left >= 2 ? scales[0] | scales[1] << 8 : scales[0];
    const __m256i place = _mm256_setr_epi32(0x80808000, 0x80808000, 0x80808000, 0x80808000,  //
                                            0x80808001, 0x80808001, 0x80808001, 0x80808001);
    const V scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_shuffle_epi8(_mm256_set1_epi32(both), place), 23));
    const Codes c = codes(blocks, left);
    for (int r = 0; r < R; ++r) {
      const Bytes& row = x[r * stride];
      const __m256i dot = _mm256_add_epi32(row.minus12, eight_sums(c.even, row.even, c.odd, row.odd));
      sum[r] = fma(_mm256_cvtepi32_ps(dot), mul(scale, row.scale), sum[r]);
    }
  }

  // The same of half a group of 8-bit weights (cpu/q8_weights.h). The unsigned operand is the weight's size; its sign
  // goes to the activation. Two products of pairs, 4 * 127 * 127 at most, would not fit 16 bits.
  template <int R>
  [[gnu::always_inline]] static void q8_step(const int8_t* group, const bf16* scales, int, const Bytes* x, int stride,
                                             V* sum) {
    const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group));
    const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 64));
    const __m256i even_size = _mm256_abs_epi8(even), odd_size = _mm256_abs_epi8(odd), ones = _mm256_set1_epi16(1);
    int both;
    __builtin_memcpy(&both, scales, sizeof both);
    const __m256i place = _mm256_setr_epi32(0x01008080, 0x01008080, 0x01008080, 0x01008080,  //
                                            0x03028080, 0x03028080, 0x03028080, 0x03028080);
    const V scale = _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_set1_epi32(both), place));
    for (int r = 0; r < R; ++r) {
      const Bytes& row = x[r * stride];
      const __m256i first = _mm256_maddubs_epi16(even_size, _mm256_sign_epi8(row.even, even));
      const __m256i second = _mm256_maddubs_epi16(odd_size, _mm256_sign_epi8(row.odd, odd));
      const __m256i dot = _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones));
      sum[r] = fma(_mm256_cvtepi32_ps(dot), mul(scale, row.scale), sum[r]);
    }
  }
};

}  // namespace gptoss::cpu
