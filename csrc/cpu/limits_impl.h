// What an instruction set can do at most: arithmetic that touches no memory, and reads that compute next to
// nothing. Compiled once for each, as kernels_impl.h.
#pragma once

#include "cpu/kernels.h"

namespace gptoss::cpu {

template <class S>
struct LimitsFor {
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int kSums = S::limit_sums;  // independent ones, enough to hide an instruction's latency

  static double multiply_add(int rounds) {
    V sum[kSums], a = S::set(0.5f), b = S::set(1.0f);
    for (V& each : sum) each = S::set(0.0f);
    for (int round = 0; round < rounds; ++round) {
      // As if they changed: nothing may be moved out of the loop or computed beforehand.
      S::opaque(a);
      S::opaque(b);
#pragma GCC unroll 16
      for (V& each : sum) each = S::fma(each, a, b);
    }
    for (V each : sum) S::opaque(each);  // of a copy: the sums themselves stay in registers
    return 2.0 * S::lanes * kSums * rounds;
  }

  static double dot_bytes(int rounds) {
    constexpr int sums = S::limit_byte_sums;
    I sum[sums], a = S::bytes_of(5), b = S::bytes_of(3);
    for (I& each : sum) each = S::bytes_of(0);
    for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
      for (I& each : sum) {
        S::opaque(a);  // each product is made, equal ones too
        each = S::dot_bytes(each, a, b);
      }
    }
    for (I each : sum) S::opaque(each);
    return 2.0 * S::limit_bytes * sums * rounds;
  }

  static float read(const float* data, size_t count) {
    constexpr int sums = 4;
    V sum[sums];
    for (V& each : sum) each = S::set(0.0f);
    for (size_t at = 0; at + sums * S::lanes <= count; at += sums * S::lanes)
#pragma GCC unroll 4
      for (int i = 0; i < sums; ++i) sum[i] = S::add(sum[i], S::load(data + at + i * S::lanes));
    return S::sum(S::add(S::add(sum[0], sum[1]), S::add(sum[2], sum[3])));
  }

  static constexpr LimitKernels table{multiply_add, dot_bytes, read};
};

}  // namespace gptoss::cpu
