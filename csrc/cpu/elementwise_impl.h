// What is done to each number of a row: the norm, the exponential, SwiGLU.
#pragma once

#include "cpu/kernels.h"

namespace gptoss::cpu {

template <class S>
struct ElementwiseFor {
  using V = typename S::V;

  static void rmsnorm(const float* x, const bf16* weight, float eps, int width, float* out) {
    V squares = S::set(0.0f);
    for (int k = 0; k < width; k += S::lanes) squares = S::fma(S::load(x + k), S::load(x + k), squares);
    const float scale = 1.0f / __builtin_sqrtf(S::sum(squares) / static_cast<float>(width) + eps);
    for (int k = 0; k < width; k += S::lanes)
      S::save(out + k, S::mul(S::mul(S::load(x + k), S::set(scale)), S::load(weight + k)));
  }

  // e^x to 2 units in the last place: x = n ln2 + r, |r| <= ln2 / 2, e^r by its Taylor polynomial of degree 7
  // (remainder 5e-9). Below -87 the result is e^-87 and above 88 e^88; NaN stays NaN.
  static V exp(V x) {
    x = S::min(S::set(88.0f), S::max(S::set(-87.0f), x));
    const V n = S::round(S::mul(x, S::set(1.44269504f)));
    V r = S::fma(n, S::set(-0.693359375f), x);  // ln2 in two parts: n * 0.693359375 is exact
    r = S::fma(n, S::set(2.12194440e-4f), r);
    V p = S::set(1.0f / 5040);
    for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
      p = S::fma(p, r, S::set(coefficient));
    return S::mul(p, S::exp2_int(n));
  }

  static void swiglu(const float* gate_up, int count, float limit, float* out) {
    const V one = S::set(1.0f);
    for (int k = 0; k < count; k += S::lanes) {
      V gate, up;
      S::load_pairs(gate_up + 2 * k, gate, up);
      gate = S::min(S::set(limit), gate);
      up = S::max(S::set(-limit), S::min(S::set(limit), up));
      const V sigmoid = S::div(one, S::add(one, exp(S::mul(gate, S::set(-1.702f)))));
      S::save(out + k, S::mul(S::mul(gate, sigmoid), S::add(up, one)));
    }
  }
};

}  // namespace gptoss::cpu
