// Sixteen floats in AVX-512 registers (F, BW, DQ, VL), 8-bit dot products by VNNI.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace gptoss::cpu {

struct Avx512 {
  static constexpr const char* name = "avx512";
  static constexpr int lanes = 16;
  static constexpr int dot_rows = 4, dot_columns = 4;
  static constexpr int stream_rows = 2;  // up to so many, bf16 weights are read as one stream
  static constexpr int packed_rows = 4;  // up to so many, fewer bytes outweigh unpacking
  static constexpr int q8_columns = 2;
  static constexpr int score_vectors = 2, value_heads = 4;
  static constexpr int ahead = 0;

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
  // Floats of `lanes` unsigned bytes, the lowest first.
  static V from_bytes(const uint64_t* eights) {
    const __m128i bytes = _mm_set_epi64x(static_cast<int64_t>(eights[1]), static_cast<int64_t>(eights[0]));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
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
  // Lanes l and l + 8, then l and l + 4, l + 2, l + 1. Tiles add theirs in the same order (amx_impl.h).
  static float sum(V a) {
    const __m256 eight = _mm256_add_ps(_mm512_extractf32x8_ps(a, 1), _mm512_castps512_ps256(a));
    const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    const __m128 two = _mm_add_ps(_mm_movehl_ps(four, four), four);
    return _mm_cvtss_f32(_mm_add_ss(_mm_shuffle_ps(two, two, 1), two));
  }
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

  // Packed numbers (cpu/packed_weights.h), 64 at a time: their lower bytes, and 64 bytes of codes of which each has
  // two, for these numbers the lower or the upper. Number 16 v + 4 q + p has place 16 q + 8 (v / 2) + 2 p + v % 2:
  // bytes become words, and words numbers, within the quarter q where they are.
  using UpperBytes = __m512i;  // of each code
  static UpperBytes upper_bytes(const uint8_t* all) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(all)));
  }
  template <bool upper>
  [[gnu::always_inline]] static void unpack(const uint8_t* bytes, const uint8_t* codes, UpperBytes table, V* to) {
    const __m512i both = _mm512_loadu_si512(codes), low = _mm512_loadu_si512(bytes);
    const __m512i code = _mm512_and_si512(upper ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
    const __m512i high = _mm512_shuffle_epi8(table, code), mask = _mm512_set1_epi32(-65536);
    const __m512i front = _mm512_unpacklo_epi8(low, high), back = _mm512_unpackhi_epi8(low, high);
    to[0] = _mm512_castsi512_ps(_mm512_slli_epi32(front, 16)),
    to[1] = _mm512_castsi512_ps(_mm512_and_si512(front, mask));
    to[2] = _mm512_castsi512_ps(_mm512_slli_epi32(back, 16)), to[3] = _mm512_castsi512_ps(_mm512_and_si512(back, mask));
  }

  // The way back: writes the lower bytes, returns the codes; more than four bits where a number has none.
  using Codes = __m512i;
  static Codes pack(const bf16* from, int first, uint8_t* bytes) {
    const auto words = [&](int at) {
      const __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at)));
      const __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + 16)));
      return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    };
    const __m512i front = words(0), back = words(32), byte = _mm512_set1_epi16(255), sign = _mm512_set1_epi8(-128);
    const __m512i low = _mm512_packus_epi16(_mm512_and_si512(front, byte), _mm512_and_si512(back, byte));
    const __m512i high = _mm512_packus_epi16(_mm512_srli_epi16(front, 8), _mm512_srli_epi16(back, 8));
    _mm512_storeu_si512(bytes, low);
    const __m512i above = _mm512_sub_epi8(_mm512_andnot_si512(sign, high), _mm512_set1_epi8(static_cast<char>(first)));
    const __m512i outside = _mm512_and_si512(above, _mm512_set1_epi8(-8));
    const __m512i negative = _mm512_and_si512(_mm512_srli_epi16(_mm512_and_si512(high, sign), 4), _mm512_set1_epi8(8));
    return _mm512_or_si512(_mm512_or_si512(above, negative), _mm512_add_epi8(outside, outside));
  }
  static bool fit(Codes codes) {
    const __m512i outside = _mm512_and_si512(codes, _mm512_set1_epi8(-16));
    return _mm512_test_epi8_mask(outside, outside) == 0;
  }
  // Of two groups that share bytes, the lower codes first.
  static void save(uint8_t* to, Codes codes, bool upper) {
    const __m512i code = _mm512_and_si512(codes, _mm512_set1_epi8(15)), old = _mm512_loadu_si512(to);
    _mm512_storeu_si512(to, upper ? _mm512_or_si512(old, _mm512_slli_epi16(code, 4)) : code);
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

  // Sixteen blocks a step, each in a 32-bit lane of its own: register i holds four elements of every block, so that its
  // eight products of four end up in one lane and share their scales. A load of codes brings four blocks, one in each
  // quarter; four loads are transposed, which puts block 4 p + q into lane 4 q + p. `even` and `odd` elements lie
  // apart, as the nibbles have them. vpdpbusd wants one unsigned operand: codes carry +12 (0..24), bytes and
  // six bits +128, and what that adds is taken off by the accumulator's start.
  static constexpr int q8_blocks = 16;
  static constexpr int blocks_a_load = 4;
  struct Bytes {
    __m512i even[4], odd[4];
    __m512i minus12, minus128;  // the block's sum, so many times
    V scale;
  };

  // What there is of the last step, of `left` blocks. 8- and 6-bit weights are filled up to fours.
  struct Tail {
    explicit Tail(int left) : blocks(first(left)), dword(4 * ((left + 3) / 4 * 4)) {
      for (int i = 0; i < 4; ++i) words[i] = static_cast<__mmask8>(first(2 * (left - 4 * i)));
      filled = first(dword / 4);
      lanes = static_cast<__mmask16>(0x1111 * first(dword / 16));
    }
    __mmask16 blocks;  // one a block
    __mmask16 filled;  // the same with those filled up
    __mmask16 lanes;   // of these
    __mmask8 words[4];
    int dword;  // bytes of four elements of all its blocks
  };

  static Bytes bytes(const int8_t* q8, const float* scales, int left) {
    alignas(64) int8_t copy[q8_blocks * kMxfp4Block] = {};
    if (left < q8_blocks) {
      __builtin_memcpy(copy, q8, size_t(left) * kMxfp4Block);
      q8 = copy;
    }
    const __m512i apart = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    const __m512i lower = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14),
                  upper = _mm512_add_epi64(lower, _mm512_set1_epi64(1));
    const __m512i ones = _mm512_set1_epi8(1);
    Bytes x;
    for (int i = 0; i < 4; ++i) {
      // Even bytes to the lower half of each quarter, odd ones to the upper; then the halves of a block together.
      const __m512i front = _mm512_shuffle_epi8(_mm512_loadu_si512(q8 + 128 * i), apart);
      const __m512i back = _mm512_shuffle_epi8(_mm512_loadu_si512(q8 + 128 * i + 64), apart);
      x.even[i] = _mm512_permutex2var_epi64(front, lower, back);
      x.odd[i] = _mm512_permutex2var_epi64(front, upper, back);
    }
    transpose(x.even);
    transpose(x.odd);
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < 4; ++i) sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, ones, x.even[i]), ones, x.odd[i]);
    x.minus12 = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-12));
    x.minus128 = _mm512_mullo_epi32(sum, _mm512_set1_epi32(-128));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    x.scale = _mm512_permutexvar_ps(order, _mm512_maskz_loadu_ps(first(left), scales));
    return x;
  }

  // A step's weights of one column: codes as the multiplication takes them, a scale for each block.
  struct Weights {
    __m512i even[4], odd[4];
    V scale;
  };

  template <bool whole>
  [[gnu::always_inline]] static Weights mxfp4_weights(const uint8_t* blocks, const uint8_t* scales, const Tail& tail) {
    __m512i packed[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      packed[i] =
          whole ? _mm512_loadu_si512(blocks + 64 * i) : _mm512_maskz_loadu_epi64(tail.words[i], blocks + 64 * i);
    transpose(packed);
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    Weights w;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      w.even[i] = _mm512_shuffle_epi8(table, _mm512_and_si512(packed[i], mask));
      w.odd[i] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(packed[i], 4), mask));
    }
    // The byte becomes the exponent. 2^-127, a denormal, comes out as 0; no model holds the NaN, 255.
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i exponents =
        whole ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)) : _mm_maskz_loadu_epi8(tail.blocks, scales);
    const __m512i spread = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(exponents, order));
    w.scale = _mm512_castsi512_ps(_mm512_slli_epi32(spread, 23));
    return w;
  }

  // The same of 8-bit weights (cpu/q8_weights.h).
  template <bool whole>
  [[gnu::always_inline]] static Weights q8_weights(const int8_t* bytes, const bf16* scales, const Tail& tail) {
    const __m512i offset = _mm512_set1_epi8(-128);
    const auto load = [&](int i) {
      return whole ? _mm512_loadu_si512(bytes + 64 * i)
                   : _mm512_maskz_expandloadu_epi32(tail.lanes, bytes + tail.dword * i);
    };
    Weights w;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      w.even[i] = _mm512_xor_si512(load(2 * i), offset);
      w.odd[i] = _mm512_xor_si512(load(2 * i + 1), offset);
    }
    w.scale = load_scales<whole>(scales, tail);
    return w;
  }

  // The same of six bits, for add_q8 (cpu/screen_weights.h).
  template <bool whole>
  [[gnu::always_inline]] static Weights screen_weights(const uint8_t* codes, const bf16* scales, const Tail& tail) {
    const auto load = [&](int i) {
      return whole ? _mm512_loadu_si512(codes + 64 * i)
                   : _mm512_maskz_expandloadu_epi32(tail.lanes, codes + tail.dword * i);
    };
    // a | b & mask
    const auto with = [](__m512i a, __m512i b, int mask) {
      return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(static_cast<char>(mask)), 0xf8);
    };
    Weights w;
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      const __m512i a = load(3 * i / 2), b = load(3 * i / 2 + 1), c = load(3 * i / 2 + 2);
      const __m512i lowest = _mm512_and_si512(_mm512_slli_epi16(a, 2), _mm512_set1_epi8(12));
      w.even[i] = a, w.odd[i] = b, w.even[i + 1] = c;
      w.odd[i + 1] = with(with(lowest, _mm512_slli_epi16(b, 4), 48), _mm512_slli_epi16(c, 6), 192);
    }
    w.scale = load_scales<whole>(scales, tail);
    return w;
  }

  // sum + the products of a step's weights and activations.
  [[gnu::always_inline]] static V add_mxfp4(const Weights& w, const Bytes& x, V sum) {
    return add_products(w, x, x.minus12, sum);
  }
  [[gnu::always_inline]] static V add_q8(const Weights& w, const Bytes& x, V sum) {
    return add_products(w, x, x.minus128, sum);
  }

 private:
  static __mmask16 first(int count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0);
  }

  // Of 4 x 4 numbers in each quarter.
  [[gnu::always_inline]] static void transpose(__m512i* x) {
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi64(a, c), x[1] = _mm512_unpackhi_epi64(a, c);
    x[2] = _mm512_unpacklo_epi64(b, d), x[3] = _mm512_unpackhi_epi64(b, d);
  }

  // Of a step whose blocks are filled up to fours.
  template <bool whole>
  [[gnu::always_inline]] static V load_scales(const bf16* scales, const Tail& tail) {
    const __m256i half = whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales))
                               : _mm256_maskz_loadu_epi16(tail.filled, scales);
    __m512i scale = _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
    if (!whole) scale = _mm512_maskz_expand_epi32(tail.lanes, scale);
    return _mm512_castsi512_ps(scale);
  }

  [[gnu::always_inline]] static V add_products(const Weights& w, const Bytes& x, __m512i start, V sum) {
    __m512i more = _mm512_setzero_si512();  // two chains: one row alone waits for each link
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      start = _mm512_dpbusd_epi32(start, w.even[i], x.even[i]);
      more = _mm512_dpbusd_epi32(more, w.odd[i], x.odd[i]);
    }
    return fma(_mm512_cvtepi32_ps(_mm512_add_epi32(start, more)), mul(w.scale, x.scale), sum);
  }
};

}  // namespace gptoss::cpu
