// Eight floats in AVX2 and FMA registers.
#pragma once

#include <immintrin.h>

#include "core/types.h"

namespace gptoss::cpu {

struct Avx2 {
  static constexpr const char* name = "avx2";
  static constexpr int lanes = 8;
  static constexpr int dot_rows = 3, dot_columns = 4;
  static constexpr int stream_rows = 0;  // up to so many, bf16 weights are read as one stream
  static constexpr int packed_rows = 1;  // up to so many, fewer bytes outweigh unpacking
  static constexpr int q8_columns = 1;
  static constexpr int score_vectors = 1, value_heads = 2;
  static constexpr int ahead =
      2048;  // a step of MXFP4 asks for the lines so many bytes on; 0: the hardware does better

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
  // Floats of `lanes` unsigned bytes, the lowest first.
  static V from_bytes(const uint64_t* eights) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(*eights))));
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

  // Packed numbers (cpu/packed_weights.h), 32 at a time: their lower bytes, and 32 bytes of codes of which each has
  // two, for these numbers the lower or the upper. Number 8 v + 4 q + p has place 16 q + 8 (v / 2) + 2 p + v % 2: bytes
  // become words, and words numbers, within the quarter q where they are.
  using UpperBytes = __m256i;  // of each code
  static UpperBytes upper_bytes(const uint8_t* all) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(all)));
  }
  template <bool upper>
  [[gnu::always_inline]] static void unpack(const uint8_t* bytes, const uint8_t* codes, UpperBytes table, V* to) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)),
                  low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    const __m256i code = _mm256_and_si256(upper ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    const __m256i high = _mm256_shuffle_epi8(table, code), mask = _mm256_set1_epi32(-65536);
    const __m256i front = _mm256_unpacklo_epi8(low, high), back = _mm256_unpackhi_epi8(low, high);
    to[0] = _mm256_castsi256_ps(_mm256_slli_epi32(front, 16)),
    to[1] = _mm256_castsi256_ps(_mm256_and_si256(front, mask));
    to[2] = _mm256_castsi256_ps(_mm256_slli_epi32(back, 16)), to[3] = _mm256_castsi256_ps(_mm256_and_si256(back, mask));
  }

  // The way back: writes the lower bytes, returns the codes; more than four bits where a number has none.
  using Codes = __m256i;
  static Codes pack(const bf16* from, int first, uint8_t* bytes) {
    const auto words = [&](int at) {
      const __m256i even = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
      const __m256i odd = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at + 8)));
      return _mm256_or_si256(even, _mm256_slli_epi32(odd, 16));
    };
    const __m256i front = words(0), back = words(16), byte = _mm256_set1_epi16(255), sign = _mm256_set1_epi8(-128);
    const __m256i low = _mm256_packus_epi16(_mm256_and_si256(front, byte), _mm256_and_si256(back, byte));
    const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(front, 8), _mm256_srli_epi16(back, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), low);
    const __m256i above = _mm256_sub_epi8(_mm256_andnot_si256(sign, high), _mm256_set1_epi8(static_cast<char>(first)));
    const __m256i outside = _mm256_and_si256(above, _mm256_set1_epi8(-8));
    const __m256i negative = _mm256_and_si256(_mm256_srli_epi16(_mm256_and_si256(high, sign), 4), _mm256_set1_epi8(8));
    return _mm256_or_si256(_mm256_or_si256(above, negative), _mm256_add_epi8(outside, outside));
  }
  static bool fit(Codes codes) {
    const __m256i outside = _mm256_and_si256(codes, _mm256_set1_epi8(-16));
    return _mm256_testz_si256(outside, outside) != 0;
  }
  // Of two groups that share bytes, the lower codes first.
  static void save(uint8_t* to, Codes codes, bool upper) {
    auto* at = reinterpret_cast<__m256i*>(to);
    const __m256i code = _mm256_and_si256(codes, _mm256_set1_epi8(15)), old = _mm256_loadu_si256(at);
    _mm256_storeu_si256(at, upper ? _mm256_or_si256(old, _mm256_slli_epi16(code, 4)) : code);
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

  // Eight blocks a step, each in a 32-bit lane of its own: register i holds four elements of every block, so that its
  // eight products of four end up in one lane and share their scales. A load of codes brings two blocks, one in each
  // half; four loads are transposed, which puts block 2 p + q into lane 4 q + p. `even` and `odd` elements lie apart,
  // as the nibbles have them. maddubs wants one unsigned operand: codes carry +12 (0..24), and so many times the
  // block's sum is taken off again; of bytes and six bits it is the size, at most 128, whose pairs of products fit 16
  // bits.
  static constexpr int q8_blocks = 8;
  static constexpr int blocks_a_load = 2;
  struct Bytes {
    __m256i even[4], odd[4];
    __m256i minus12;  // the block's sum, so many times
    V scale;
  };

  // What there is of the last step, of `left` blocks. 8- and 6-bit weights are filled up to fours.
  struct Tail {
    explicit Tail(int blocks) : left(blocks) {}
    int left;
  };

  static Bytes bytes(const int8_t* q8, const float* scales, int left) {
    alignas(32) int8_t copy[q8_blocks * kMxfp4Block] = {};
    alignas(32) float scale_copy[q8_blocks] = {};
    if (left < q8_blocks) {
      __builtin_memcpy(copy, q8, size_t(left) * kMxfp4Block);
      __builtin_memcpy(scale_copy, scales, size_t(left) * sizeof(float));
      q8 = copy;
      scales = scale_copy;
    }
    const __m256i apart =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    Bytes x;
    for (int i = 0; i < 4; ++i) {
      // Even bytes to the lower half of each half, odd ones to the upper; then the quarters of a block together.
      const __m256i front = _mm256_shuffle_epi8(load_bytes(q8 + 64 * i), apart);
      const __m256i back = _mm256_shuffle_epi8(load_bytes(q8 + 64 * i + 32), apart);
      const __m256i first = _mm256_permute4x64_epi64(front, 0xd8), second = _mm256_permute4x64_epi64(back, 0xd8);
      x.even[i] = _mm256_permute2x128_si256(first, second, 0x20);
      x.odd[i] = _mm256_permute2x128_si256(first, second, 0x31);
    }
    transpose(x.even);
    transpose(x.odd);
    const __m256i four = _mm256_set1_epi8(4), all[4] = {four, four, four, four};
    const __m256i sum = _mm256_sub_epi32(_mm256_setzero_si256(), dot_codes(all, all, x));
    x.minus12 = _mm256_mullo_epi32(sum, _mm256_set1_epi32(3));
    x.scale = _mm256_permutevar8x32_ps(_mm256_loadu_ps(scales), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    return x;
  }

  // A step's weights of one column: codes as the multiplication takes them, a scale for each block.
  struct Weights {
    __m256i even[4], odd[4];
    V scale;
  };

  template <bool whole>
  [[gnu::always_inline]] static Weights mxfp4_weights(const uint8_t* blocks, const uint8_t* scales, const Tail& tail) {
    __m256i packed[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) packed[i] = whole ? load_bytes(blocks + 32 * i) : load_blocks(blocks, 2 * i, tail.left);
    transpose(packed);
    const __m256i mask = _mm256_set1_epi8(15);
    const __m256i table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    Weights w;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      w.even[i] = _mm256_shuffle_epi8(table, _mm256_and_si256(packed[i], mask));
      w.odd[i] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(packed[i], 4), mask));
    }
    // The byte becomes the exponent. 2^-127, a denormal, comes out as 0; no model holds the NaN, 255.
    uint64_t exponents = 0;
    __builtin_memcpy(&exponents, scales, whole ? 8 : size_t(tail.left));
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i spread =
        _mm256_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(exponents)), order));
    w.scale = _mm256_castsi256_ps(_mm256_slli_epi32(spread, 23));
    return w;
  }

  // The same of 8-bit weights (cpu/q8_weights.h).
  template <bool whole>
  [[gnu::always_inline]] static Weights q8_weights(const int8_t* bytes, const bf16* scales, const Tail& tail) {
    const bool eight = whole || tail.left > 4;  // or four: then lanes 0, 1, 4 and 5 hold them, and others meet zeros
    const auto load = [&](int i) { return load_piece(bytes, i, eight); };
    Weights w;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) w.even[i] = load(2 * i), w.odd[i] = load(2 * i + 1);
    w.scale = load_scales(scales, eight);
    return w;
  }

  // The same of six bits, for add_q8 (cpu/screen_weights.h).
  template <bool whole>
  [[gnu::always_inline]] static Weights screen_weights(const uint8_t* codes, const bf16* scales, const Tail& tail) {
    const bool eight = whole || tail.left > 4;
    const auto load = [&](int i) { return load_piece(codes, i, eight); };
    const __m256i top = _mm256_set1_epi8(-128);  // bytes less 128 are signed
    const auto bits = [](__m256i a, int mask) {
      return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(mask)));
    };
    Weights w;
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      const __m256i a = load(3 * i / 2), b = load(3 * i / 2 + 1), c = load(3 * i / 2 + 2);
      const __m256i lower = _mm256_or_si256(bits(_mm256_slli_epi16(a, 2), 12), bits(_mm256_slli_epi16(b, 4), 48));
      const __m256i fourth = _mm256_or_si256(lower, bits(_mm256_slli_epi16(c, 6), 192));
      w.even[i] = _mm256_xor_si256(a, top), w.odd[i] = _mm256_xor_si256(b, top);
      w.even[i + 1] = _mm256_xor_si256(c, top), w.odd[i + 1] = _mm256_xor_si256(fourth, top);
    }
    w.scale = load_scales(scales, eight);
    return w;
  }

  // sum + the products of a step's weights and activations.
  [[gnu::always_inline]] static V add_mxfp4(const Weights& w, const Bytes& x, V sum) {
    const __m256i dot = _mm256_add_epi32(x.minus12, dot_codes(w.even, w.odd, x));
    return fma(_mm256_cvtepi32_ps(dot), mul(w.scale, x.scale), sum);
  }
  // The unsigned operand is the weight's size; its sign goes to the activation.
  [[gnu::always_inline]] static V add_q8(const Weights& w, const Bytes& x, V sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    const auto products = [&](__m256i weight, __m256i bytes) {
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), _mm256_sign_epi8(bytes, weight));
      return _mm256_madd_epi16(pairs, ones);
    };
    __m256i dot = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      dot = _mm256_add_epi32(dot, _mm256_add_epi32(products(w.even[i], x.even[i]), products(w.odd[i], x.odd[i])));
    return fma(_mm256_cvtepi32_ps(dot), mul(w.scale, x.scale), sum);
  }

 private:
  static constexpr int kFour = 0x50;  // of quadwords: the first twice, the second twice

  static __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  // Of weights that are filled up to fours: piece i of a step of eight blocks, or of four.
  [[gnu::always_inline]] static __m256i load_piece(const void* step, int i, bool eight) {
    const char* p = static_cast<const char*>(step);
    if (eight) return load_bytes(p + 32 * i);
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
    return _mm256_permute4x64_epi64(_mm256_castsi128_si256(four), kFour);
  }
  [[gnu::always_inline]] static V load_scales(const bf16* scales, bool eight) {
    const __m128i half = eight ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales))
                               : _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales));
    __m256i spread = _mm256_cvtepu16_epi32(half);
    if (!eight) spread = _mm256_permute4x64_epi64(spread, kFour);
    return _mm256_castsi256_ps(_mm256_slli_epi32(spread, 16));
  }
  // Blocks i and i + 1 of `left`; zeros for what is not there.
  static __m256i load_blocks(const uint8_t* blocks, int i, int left) {
    const uint8_t* p = blocks + i * kMxfp4BlockBytes;
    if (i + 2 <= left) return load_bytes(p);
    return i < left ? _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
                    : _mm256_setzero_si256();
  }

  // Of 4 x 4 numbers in each half.
  [[gnu::always_inline]] static void transpose(__m256i* x) {
    const __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
    const __m256i c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    x[0] = _mm256_unpacklo_epi64(a, c), x[1] = _mm256_unpackhi_epi64(a, c);
    x[2] = _mm256_unpacklo_epi64(b, d), x[3] = _mm256_unpackhi_epi64(b, d);
  }

  // Products of eight, 8 * 24 * 127 at most, fit 16 bits.
  [[gnu::always_inline]] static __m256i dot_codes(const __m256i* even, const __m256i* odd, const Bytes& row) {
    const auto pairs = [&](int i) {
      return _mm256_add_epi16(_mm256_maddubs_epi16(even[i], row.even[i]), _mm256_maddubs_epi16(odd[i], row.odd[i]));
    };
    const __m256i ones = _mm256_set1_epi16(1);
    return _mm256_add_epi32(_mm256_madd_epi16(_mm256_add_epi16(pairs(0), pairs(1)), ones),
                            _mm256_madd_epi16(_mm256_add_epi16(pairs(2), pairs(3)), ones));
  }
};

}  // namespace gptoss::cpu
