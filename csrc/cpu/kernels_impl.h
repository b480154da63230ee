// The kernels, written once over a vector type S (simd_*.h) and compiled by kernels_*.cpp for each
// instruction set. Only templates on S live here and in the other *_impl.h, so no two objects share a symbol.
#pragma once

#include "cpu/attention_impl.h"
#include "cpu/elementwise_impl.h"
#include "cpu/kernels.h"
#include "cpu/q8_impl.h"
#include "model/ops.h"

namespace gptoss::cpu {

// Products of float rows, and the table of all kernels.
template <class S>
struct KernelsFor {
  using V = typename S::V;

  // Columns at once when there are fewer rows than a tile: enough independent sums to hide the latency of a
  // multiply-add.
  static constexpr int kLone = 8;

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

  // Rows that stay in a core's second cache while all columns are multiplied with them: 350 KB of 2880 floats.
  static constexpr int kRowsInCache = 32;

  static void matmul_bf16(Rows<float> x, int rows, const bf16* weight, int columns, int width, float* out,
                          size_t out_stride) {
    constexpr int C = S::dot_columns;
    for (int first = 0; first < rows; first += kRowsInCache) {
      const int some = rows - first < kRowsInCache ? rows - first : kRowsInCache;
      const Rows<float> block = x.from(first);
      float* to = out + first * out_stride;
      int c = 0;
      if (some < S::dot_rows)
        for (; c + kLone <= columns; c += kLone)
          dot_rows<kLone>(block, some, weight + size_t(c) * width, width, to + c, out_stride);
      for (; c + C <= columns; c += C) dot_rows<C>(block, some, weight + size_t(c) * width, width, to + c, out_stride);
      for (; c < columns; ++c) dot_rows<1>(block, some, weight + size_t(c) * width, width, to + c, out_stride);
    }
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

  static constexpr Kernels table(const SamplingKernels& sampling, const LimitKernels& limits) {
    using Q8 = Q8For<S>;
    using Elementwise = ElementwiseFor<S>;
    return {.isa = S::name,
            .matmul_bf16 = matmul_bf16,
            .matmul_mxfp4 = matmul_mxfp4,
            .laid_out_bytes = Q8::laid_out_bytes,
            .lay_out = Q8::lay_out,
            .matmul_mxfp4_q8 = Q8::matmul_mxfp4_q8,
            .matmul_q8 = Q8::matmul_q8,
            .quantize_q8 = Q8::quantize_q8,
            .quantize_weights = Q8::quantize_weights,
            .rmsnorm = Elementwise::rmsnorm,
            .swiglu = Elementwise::swiglu,
            .attend_page = AttentionFor<S>::attend_page,
            .sampling = sampling,
            .limits = limits};
  }
};

}  // namespace gptoss::cpu
