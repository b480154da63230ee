// Eight floats in plain C++: what every compiler takes, and the yardstick of the other instruction sets.
#pragma once

#include <cmath>
#include <cstring>

#include "core/types.h"

namespace gptoss::cpu {

struct Portable {
  static constexpr const char* name = "portable";
  static constexpr int lanes = 8;
  static constexpr int dot_rows = 2, dot_columns = 2;
  static constexpr int stream_rows = 0;    // up to so many, bf16 weights are read as one stream
  static constexpr int packed_rows = 1;    // up to so many, fewer bytes outweigh unpacking
  static constexpr int q8_columns = 1;     // that share a load of activations, where there are many rows
  static constexpr int score_vectors = 1;  // vectors of keys that share a load of a query
  static constexpr int value_heads = 1;    // heads that share a load of a value vector
  static constexpr int ahead = 0;

  struct V {
    float f[lanes];
  };

  template <typename F>
  static V each(F f) {
    V r;
    for (int i = 0; i < lanes; ++i) r.f[i] = f(i);
    return r;
  }

  static V set(float x) {
    return each([&](int) { return x; });
  }
  static V load(const float* p) {
    V r;
    std::memcpy(r.f, p, sizeof r.f);
    return r;
  }
  static V load(const bf16* p) {
    return each([&](int i) { return to_float(p[i]); });
  }
  static void save(float* p, V a) { std::memcpy(p, a.f, sizeof a.f); }
  // To the nearest integer; of two the even one. Values are within a byte.
  static void save_bytes(int8_t* p, V a) {
    for (int i = 0; i < lanes; ++i) p[i] = static_cast<int8_t>(std::nearbyint(a.f[i]));
  }
  // Floats of `lanes` unsigned bytes, the lowest first.
  static V from_bytes(const uint64_t* eights) {
    return each([&](int i) { return static_cast<float>(eights[i / 8] >> i % 8 * 8 & 255); });
  }
  // p[0], p[2], ... and p[1], p[3], ...
  static void load_pairs(const float* p, V& first, V& second) {
    first = each([&](int i) { return p[2 * i]; });
    second = each([&](int i) { return p[2 * i + 1]; });
  }
  static V add(V a, V b) {
    return each([&](int i) { return a.f[i] + b.f[i]; });
  }
  static V sub(V a, V b) {
    return each([&](int i) { return a.f[i] - b.f[i]; });
  }
  static V mul(V a, V b) {
    return each([&](int i) { return a.f[i] * b.f[i]; });
  }
  static V div(V a, V b) {
    return each([&](int i) { return a.f[i] / b.f[i]; });
  }
  static V fma(V a, V b, V c) {
    return each([&](int i) { return a.f[i] * b.f[i] + c.f[i]; });
  }
  // Both keep a NaN of the second operand, as the x86 instructions do.
  static V min(V a, V b) {
    return each([&](int i) { return a.f[i] < b.f[i] ? a.f[i] : b.f[i]; });
  }
  static V max(V a, V b) {
    return each([&](int i) { return a.f[i] > b.f[i] ? a.f[i] : b.f[i]; });
  }
  static V round(V a) {
    return each([&](int i) { return std::nearbyintf(a.f[i]); });
  }
  // 2^n for whole n in [-126, 127].
  static V exp2_int(V n) {
    return each([&](int i) {
      return std::bit_cast<float>((static_cast<uint32_t>(static_cast<int32_t>(n.f[i] == n.f[i] ? n.f[i] : 0.0f) + 127))
                                  << 23);
    });
  }
  static float sum(V a) { return ((a.f[0] + a.f[4]) + (a.f[2] + a.f[6])) + ((a.f[1] + a.f[5]) + (a.f[3] + a.f[7])); }
  static float largest(V a) {
    float m = a.f[0];
    for (int i = 1; i < lanes; ++i) m = a.f[i] > m ? a.f[i] : m;
    return m;
  }

  // Bit i of the result: a.f[i] >= b.f[i]. Every comparison with NaN is false.
  static unsigned at_least(V a, V b) {
    unsigned bits = 0;
    for (int i = 0; i < lanes; ++i) bits |= unsigned{a.f[i] >= b.f[i]} << i;
    return bits;
  }
  static V zero_unless_at_least(V a, V b, V value) {
    return each([&](int i) { return a.f[i] >= b.f[i] ? value.f[i] : 0.0f; });
  }

  // Unsigned integers, as many as floats.
  struct U {
    uint32_t u[lanes];
  };
  static U broadcast(uint32_t x) {
    U r;
    for (int i = 0; i < lanes; ++i) r.u[i] = x;
    return r;
  }
  static U ascending(uint32_t first) {
    U r;
    for (int i = 0; i < lanes; ++i) r.u[i] = first + static_cast<uint32_t>(i);
    return r;
  }
  static U exclusive_or(U a, U b, U c) {
    U r;
    for (int i = 0; i < lanes; ++i) r.u[i] = a.u[i] ^ b.u[i] ^ c.u[i];
    return r;
  }
  static void multiply(U a, uint32_t by, U& high, U& low) {
    for (int i = 0; i < lanes; ++i) {
      const uint64_t product = uint64_t{a.u[i]} * by;
      high.u[i] = static_cast<uint32_t>(product >> 32);
      low.u[i] = static_cast<uint32_t>(product);
    }
  }
  // Half of 2^32 - 1 - a, as a float.
  static V half_complement(U a) {
    return each([&](int i) { return static_cast<float>(static_cast<int32_t>(~a.u[i] >> 1)); });
  }

  // One block of 32 MXFP4 values as floats.
  static void decode_block(const uint8_t* block, float scale, float* out) {
    for (int i = 0; i < kMxfp4BlockBytes; ++i) {
      out[2 * i] = kE2m1Values[block[i] & 15] * scale;
      out[2 * i + 1] = kE2m1Values[block[i] >> 4] * scale;
    }
  }

  // Packed numbers (cpu/packed_weights.h), 32 at a time: their lower bytes, and 32 bytes of codes of which each has
  // two, for these numbers the lower or the upper. Number 8 v + 4 q + p lies where AVX2 has it.
  struct UpperBytes {
    const uint8_t* of;
  };
  static UpperBytes upper_bytes(const uint8_t* all) { return {all}; }
  template <bool upper>
  static void unpack(const uint8_t* bytes, const uint8_t* codes, UpperBytes table, V* to) {
    for (int v = 0; v < 4; ++v)
      to[v] = each([&](int i) {
        const uint32_t both = codes[packed_place(v, i)], code = upper ? both >> 4 : both & 15;
        return std::bit_cast<float>(uint32_t{table.of[code]} << 24 | uint32_t{bytes[packed_place(v, i)]} << 16);
      });
  }

  // The way back: writes the lower bytes, returns the codes; more than four bits where a number has none.
  struct Codes {
    uint8_t code[4 * lanes];
  };
  static Codes pack(const bf16* from, int first, uint8_t* bytes) {
    Codes codes;
    for (int n = 0; n < 4 * lanes; ++n) {
      const int place = packed_place(n / lanes, n % lanes), high = from[n].bits >> 8, above = (high & 127) - first;
      bytes[place] = static_cast<uint8_t>(from[n].bits & 255);
      codes.code[place] = above >= 0 && above < 8 ? static_cast<uint8_t>(above | (high >> 4 & 8)) : 255;
    }
    return codes;
  }
  static bool fit(const Codes& codes) {
    uint8_t all = 0;
    for (const uint8_t code : codes.code) all |= code;
    return all < 16;
  }
  // Of two groups that share bytes, the lower codes first.
  static void save(uint8_t* to, const Codes& codes, bool upper) {
    for (int i = 0; i < 4 * lanes; ++i) {
      const int code = codes.code[i] & 15;
      to[i] = static_cast<uint8_t>(upper ? to[i] | code << 4 : code);
    }
  }

  // For the measure of the arithmetic peak: see LimitsFor.
  static constexpr int limit_sums = 6, limit_byte_sums = 4, limit_bytes = 32;
  struct I {
    int8_t byte[limit_bytes];
    int sum[lanes];
  };
  template <typename T>
  [[gnu::always_inline]] static void opaque(T& x) {
    asm volatile("" : "+m"(x));
  }
  static I bytes_of(int x) {
    I r;
    for (int i = 0; i < limit_bytes; ++i) r.byte[i] = static_cast<int8_t>(x);
    for (int i = 0; i < lanes; ++i) r.sum[i] = 0;
    return r;
  }
  static I dot_bytes(I sum, const I& a, const I& b) {
    int total[lanes] = {};
    for (int i = 0; i < limit_bytes; ++i) total[i % lanes] += a.byte[i] * b.byte[i];
    for (int i = 0; i < lanes; ++i) sum.sum[i] += total[i];
    return sum;
  }

  // 8-bit matmul: one block a step. Codes count in halves, so sums come out twice too large.
  static constexpr int q8_blocks = 1;
  static constexpr int blocks_a_load = 1;
  struct Bytes {
    int8_t even[16], odd[16];
    float scale;
  };
  struct Tail {
    explicit Tail(int) {}
  };
  static Bytes bytes(const int8_t* q8, const float* scales, int) {
    Bytes x;
    for (int i = 0; i < 16; ++i) x.even[i] = q8[2 * i], x.odd[i] = q8[2 * i + 1];
    x.scale = *scales;
    return x;
  }

  // A step's weights of one column.
  struct Weights {
    int8_t even[16], odd[16];
    float scale;
  };
  template <bool whole>
  static Weights mxfp4_weights(const uint8_t* block, const uint8_t* scale, Tail) {
    Weights w;
    for (int i = 0; i < kMxfp4BlockBytes; ++i) {
      w.even[i] = static_cast<int8_t>(2 * kE2m1Values[block[i] & 15]);
      w.odd[i] = static_cast<int8_t>(2 * kE2m1Values[block[i] >> 4]);
    }
    w.scale = e8m0_to_float(*scale);
    return w;
  }
  // The same of 8-bit weights (cpu/q8_weights.h).
  template <bool whole>
  static Weights q8_weights(const int8_t* bytes, const bf16* scale, Tail) {
    Weights w;
    for (int i = 0; i < 16; ++i) {
      w.even[i] = bytes[i / 4 * 8 + i % 4];
      w.odd[i] = bytes[i / 4 * 8 + 4 + i % 4];
    }
    w.scale = to_float(*scale);
    return w;
  }

  // The same of six bits, for add_q8 (cpu/screen_weights.h).
  template <bool whole>
  static Weights screen_weights(const uint8_t* codes, const bf16* scale, Tail) {
    Weights w;
    const auto signed_byte = [](int byte) { return static_cast<int8_t>(byte - 128); };
    for (int i = 0; i < 16; i += 8, codes += 12)
      for (int j = i; j < i + 4; ++j) {
        const int a = codes[j - i], b = codes[j - i + 4], c = codes[j - i + 8];
        w.even[j] = signed_byte(a), w.odd[j] = signed_byte(b), w.even[j + 4] = signed_byte(c);
        w.odd[j + 4] = signed_byte((a & 3) << 2 | (b & 3) << 4 | (c & 3) << 6);
      }
    w.scale = to_float(*scale);
    return w;
  }

  // sum + the products of a step's weights and activations.
  static V add_mxfp4(const Weights& w, const Bytes& x, V sum) {
    int total[lanes] = {};
    for (int i = 0; i < 16; ++i) total[i % lanes] += w.even[i] * x.even[i] + w.odd[i] * x.odd[i];
    for (int i = 0; i < lanes; ++i) sum.f[i] += static_cast<float>(total[i]) * (w.scale * x.scale);
    return sum;
  }
  static V add_q8(const Weights& w, const Bytes& x, V sum) { return add_mxfp4(w, x, sum); }
};

}  // namespace gptoss::cpu
