// The kernels, written once over a vector type S (simd_*.h) and compiled by kernels_*.cpp for each
// instruction set. Only templates on S live here, so no two objects share a symbol.
#pragma once

#include "cpu/kernels.h"
#include "model/ops.h"

namespace gptoss::cpu {

template <class S>
struct KernelsFor {
  using V = typename S::V;

  // Columns at once when there are fewer rows than a tile: enough independent sums to hide the latency of a
  // multiply-add.
  static constexpr int kLone = 8;

  // ---- dot products ----------------------------------------------------------------------------------

  // R x C dot products at once. Each keeps its own vector of partial sums over the width and reduces it at
  // the end, so the tile's shape changes speed and nothing else.
  template <int R, int C, typename W>
  static void dot_tile(const float* const* x, const W* weight, size_t weight_stride, int width, float* out,
                       size_t out_stride) {
    V sum[R][C];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum[r][c] = S::set(0.0f);
    for (int k = 0; k < width; k += S::lanes) {
      V xs[R];
      for (int r = 0; r < R; ++r) xs[r] = S::load(x[r] + k);
      for (int c = 0; c < C; ++c) {
        const V w = S::load(weight + c * weight_stride + k);
        for (int r = 0; r < R; ++r) sum[r][c] = S::fma(xs[r], w, sum[r][c]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) out[r * out_stride + c] = S::sum(sum[r][c]);
  }

  // Rows in tiles of dot_rows, the rest one at a time; likewise columns.
  template <int C, typename W>
  static void dot_rows(const Rows<float>& x, int rows, const W* weight, int width, float* out, size_t out_stride) {
    constexpr int R = S::dot_rows;
    int r = 0;
    for (; r + R <= rows; r += R) {
      const float* tile[R];
      for (int i = 0; i < R; ++i) tile[i] = x[r + i];
      dot_tile<R, C>(tile, weight, width, width, out + r * out_stride, out_stride);
    }
    for (; r < rows; ++r) {
      const float* row = x[r];
      dot_tile<1, C>(&row, weight, width, width, out + r * out_stride, out_stride);
    }
  }

  static void matmul_bf16(Rows<float> x, int rows, const bf16* weight, int columns, int width, float* out,
                          size_t out_stride) {
    constexpr int C = S::dot_columns;
    int c = 0;
    if (rows < S::dot_rows)
      for (; c + kLone <= columns; c += kLone)
        dot_rows<kLone>(x, rows, weight + size_t(c) * width, width, out + c, out_stride);
    for (; c + C <= columns; c += C) dot_rows<C>(x, rows, weight + size_t(c) * width, width, out + c, out_stride);
    for (; c < columns; ++c) dot_rows<1>(x, rows, weight + size_t(c) * width, width, out + c, out_stride);
  }

  static void matmul_mxfp4(Rows<float> x, int rows, Mxfp4Tile weight, int columns, int width, float* scratch,
                           float* out, size_t out_stride) {
    constexpr int C = S::dot_columns;
    const int blocks = width / kMxfp4Block;
    int c = 0;
    while (c < columns) {
      const int take = c + C <= columns ? C : 1;
      for (int b = 0; b < take * blocks; ++b) {
        const size_t at = size_t(c) * blocks + b;
        S::decode_block(weight.blocks + at * kMxfp4BlockBytes, e8m0_to_float(weight.scales[at]),
                        scratch + b * kMxfp4Block);
      }
      if (take == C)
        dot_rows<C>(x, rows, scratch, width, out + c, out_stride);
      else
        dot_rows<1>(x, rows, scratch, width, out + c, out_stride);
      c += take;
    }
  }

  // ---- 8-bit dot products ----------------------------------------------------------------------------

  template <int R, int C>
  static void q8_tile(const int8_t* const* q8, const float* const* scale, Mxfp4Tile weight, int blocks, float* out,
                      size_t out_stride) {
    V sum[R][C];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum[r][c] = S::set(0.0f);
    for (int b = 0; b < blocks; b += S::q8_blocks) {
      const int left = blocks - b;
      typename S::Codes codes[C];
      typename S::Scales weight_scale[C];
      for (int c = 0; c < C; ++c) {
        const size_t at = size_t(c) * blocks + b;
        codes[c] = S::codes(weight.blocks + at * kMxfp4BlockBytes, left);
        weight_scale[c] = S::weight_scales(weight.scales + at, left);
      }
      for (int r = 0; r < R; ++r) {
        const typename S::Bytes bytes = S::bytes(q8[r] + b * kMxfp4Block, left);
        const typename S::Scales input_scale = S::input_scales(scale[r] + b, left);
        for (int c = 0; c < C; ++c) sum[r][c] = S::dot_step(codes[c], bytes, weight_scale[c], input_scale, sum[r][c]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) out[r * out_stride + c] = 0.5f * S::sum(sum[r][c]);
  }

  template <int C>
  static void q8_rows(const Q8Rows& x, int rows, Mxfp4Tile weight, int blocks, float* out, size_t out_stride) {
    constexpr int R = S::q8_rows;
    int r = 0;
    for (; r + R <= rows; r += R) {
      const int8_t* q8[R];
      const float* scale[R];
      for (int i = 0; i < R; ++i) q8[i] = x.q8[r + i], scale[i] = x.scale[r + i];
      q8_tile<R, C>(q8, scale, weight, blocks, out + r * out_stride, out_stride);
    }
    for (; r < rows; ++r) {
      const int8_t* q8 = x.q8[r];
      const float* scale = x.scale[r];
      q8_tile<1, C>(&q8, &scale, weight, blocks, out + r * out_stride, out_stride);
    }
  }

  static void matmul_mxfp4_q8(Q8Rows x, int rows, Mxfp4Tile weight, int columns, int width, float* out,
                              size_t out_stride) {
    constexpr int C = S::q8_columns;
    const int blocks = width / kMxfp4Block;
    auto tile = [&](int c) {
      return Mxfp4Tile{weight.blocks + size_t(c) * blocks * kMxfp4BlockBytes, weight.scales + size_t(c) * blocks};
    };
    int c = 0;
    if (rows < S::q8_rows)
      for (; c + kLone <= columns; c += kLone) q8_rows<kLone>(x, rows, tile(c), blocks, out + c, out_stride);
    for (; c + C <= columns; c += C) q8_rows<C>(x, rows, tile(c), blocks, out + c, out_stride);
    for (; c < columns; ++c) q8_rows<1>(x, rows, tile(c), blocks, out + c, out_stride);
  }

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
      for (int k = 0; k < kMxfp4Block; k += S::lanes) {
        float rounded[S::lanes];
        S::save(rounded, S::round(S::mul(S::load(x + k), inverse)));
        for (int i = 0; i < S::lanes; ++i) q8[k + i] = static_cast<int8_t>(rounded[i]);
      }
    }
  }

  // ---- element-wise ----------------------------------------------------------------------------------

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
      float gates[S::lanes], ups[S::lanes];
      for (int i = 0; i < S::lanes; ++i) gates[i] = gate_up[2 * (k + i)], ups[i] = gate_up[2 * (k + i) + 1];
      const V gate = S::min(S::set(limit), S::load(gates));
      const V up = S::max(S::set(-limit), S::min(S::set(limit), S::load(ups)));
      const V sigmoid = S::div(one, S::add(one, exp(S::mul(gate, S::set(-1.702f)))));
      S::save(out + k, S::mul(S::mul(gate, sigmoid), S::add(up, one)));
    }
  }

  // ---- attention -------------------------------------------------------------------------------------

  static constexpr int kHeadGroup = 8;  // query heads whose scores share one load of a key vector

  template <int H, typename T>
  static void page_scores(const float* queries, const T* keys, int size, float (*scores)[kMaxPageSize]) {
    for (int at = 0; at < size; at += S::lanes) {
      V sum[H];
      for (int h = 0; h < H; ++h) sum[h] = S::set(0.0f);
      for (int d = 0; d < 64; ++d) {
        const V key = S::load(keys + d * size + at);
        for (int h = 0; h < H; ++h) sum[h] = S::fma(S::set(queries[h * 64 + d]), key, sum[h]);
      }
      for (int h = 0; h < H; ++h) S::save(scores[h] + at, sum[h]);
    }
  }

  // Turns scores into weights relative to the running maximum and rescales what was summed before.
  static void update_softmax(float* scores, int size, int first, int last, AttentionState& state) {
    float max = state.max;
    for (int i = first; i < last; ++i) max = scores[i] > max ? scores[i] : max;
    for (int at = 0; at < size; at += S::lanes) S::save(scores + at, exp(S::sub(S::load(scores + at), S::set(max))));
    float page_sum = 0.0f;
    for (int i = first; i < last; ++i) page_sum += scores[i];

    float rescale[S::lanes];
    S::save(rescale, exp(S::set(state.max - max)));
    state.sum = state.sum * rescale[0] + page_sum;
    state.max = max;
    for (int d = 0; d < 64; d += S::lanes)
      S::save(state.output + d, S::mul(S::load(state.output + d), S::set(rescale[0])));
  }

  template <int H, typename T>
  static void add_values(const T* values, int first, int last, const float (*weights)[kMaxPageSize],
                         AttentionState* states) {
    constexpr int vectors = 4;
    for (int d = 0; d < 64; d += vectors * S::lanes) {
      V sum[H][vectors];
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < vectors; ++v) sum[h][v] = S::load(states[h].output + d + v * S::lanes);
      for (int i = first; i < last; ++i) {
        V value[vectors];
        for (int v = 0; v < vectors; ++v) value[v] = S::load(values + i * 64 + d + v * S::lanes);
        for (int h = 0; h < H; ++h)
          for (int v = 0; v < vectors; ++v) sum[h][v] = S::fma(S::set(weights[h][i]), value[v], sum[h][v]);
      }
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < vectors; ++v) S::save(states[h].output + d + v * S::lanes, sum[h][v]);
    }
  }

  template <int H, typename T>
  static void attend_heads(const float* queries, const KvPage& page, AttentionState* states) {
    alignas(64) float scores[H][kMaxPageSize];
    page_scores<H>(queries, static_cast<const T*>(page.keys), page.size, scores);
    for (int h = 0; h < H; ++h) update_softmax(scores[h], page.size, page.first, page.last, states[h]);
    constexpr int G = S::value_heads;
    const T* values = static_cast<const T*>(page.values);
    int h = 0;
    for (; h + G <= H; h += G) add_values<G>(values, page.first, page.last, scores + h, states + h);
    for (; h < H; ++h) add_values<1>(values, page.first, page.last, scores + h, states + h);
  }

  template <typename T>
  static void attend(const float* queries, int heads, const KvPage& page, AttentionState* states) {
    int h = 0;
    for (; h + kHeadGroup <= heads; h += kHeadGroup) attend_heads<kHeadGroup, T>(queries + h * 64, page, states + h);
    for (; h + 2 <= heads; h += 2) attend_heads<2, T>(queries + h * 64, page, states + h);
    for (; h < heads; ++h) attend_heads<1, T>(queries + h * 64, page, states + h);
  }

  static void attend_page(const float* queries, int heads, const KvPage& page, AttentionState* states) {
    if (page.dtype == DType::f32)
      attend<float>(queries, heads, page, states);
    else
      attend<bf16>(queries, heads, page, states);
  }

  static constexpr Kernels table(const SamplingKernels& sampling, const LimitKernels& limits) {
    return {S::name, matmul_bf16, matmul_mxfp4, matmul_mxfp4_q8, quantize_q8,
            rmsnorm, swiglu,      attend_page,  sampling,        limits};
  }
};

}  // namespace gptoss::cpu
