// Products of float rows with dense and MXFP4 matrices.
#pragma once

#include "cpu/kernels.h"
#include "cpu/prefetch.h"

namespace gptoss::cpu {

template <class S>
struct FloatFor {
  using V = typename S::V;

  // Columns at once for one row: enough independent sums to hide the latency of a multiply-add. Where one column's sum
  // keeps up with memory (S::stream_rows), they are one stream instead.
  static constexpr int kLone = 8, kAhead = 8;

  // R x C dot products at once. Each keeps its own vector of partial sums over the width and reduces it at
  // the end, so the tile's shape changes speed and nothing else.
  template <int R, int C, typename W>
  static void dot_tile(const float* const* x, const W* weight, size_t weight_stride, int width, bool ask, float* out,
                       size_t out_stride) {
    V sum[R][C];
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sum[r][c] = S::set(0.0f);
    for (int k = 0; k < width; k += S::lanes) {
      // So many streams are more than the hardware runs ahead of; and a single one it leaves now and then.
      if (ask && k % 32 == 0)
        for (int c = 0; c < C; ++c) ask_for(weight + (C == 1 ? kAhead : C + c) * weight_stride + k, 64);
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

  // Up to R rows.
  template <int R, int C, typename W>
  static void dot_up_to(const Rows<float>& x, int rows, const W* weight, int width, bool ask, float* out,
                        size_t out_stride) {
    if constexpr (R > 1)
      if (rows < R) return dot_up_to<R - 1, C>(x, rows, weight, width, ask, out, out_stride);
    const float* tile[R];
    for (int r = 0; r < R; ++r) tile[r] = x[r];
    dot_tile<R, C>(tile, weight, width, width, ask, out, out_stride);
  }

  // ask: for the weights that come next, beside the first rows.
  template <int C, typename W>
  static void dot_rows(const Rows<float>& x, int rows, const W* weight, int width, bool ask, float* out,
                       size_t out_stride) {
    constexpr int R = S::dot_rows;
    for (int r = 0; r < rows; r += R)
      dot_up_to<R, C>(x.from(r), rows - r < R ? rows - r : R, weight, width, ask && r == 0, out + r * out_stride,
                      out_stride);
  }

  // Up to a tile's columns.
  static void dot_some(const Rows<float>& x, int rows, const float* weight, int columns, int width, float* out,
                       size_t out_stride) {
    constexpr int C = S::dot_columns;
    if (columns == C) return dot_rows<C>(x, rows, weight, width, false, out, out_stride);
    for (int c = 0; c < columns; ++c)
      dot_rows<1>(x, rows, weight + size_t(c) * width, width, false, out + c, out_stride);
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
      const auto column = [&](int c) { return weight + size_t(c) * width; };
      int c = 0;
      if (some <= S::stream_rows)  // a few columns are no stream
        for (; c < columns; ++c) dot_rows<1>(block, some, column(c), width, columns > kAhead, to + c, out_stride);
      if (some == 1)
        for (; c + kLone <= columns; c += kLone)
          dot_rows<kLone>(block, some, column(c), width, true, to + c, out_stride);
      for (; c + C <= columns; c += C) dot_rows<C>(block, some, column(c), width, true, to + c, out_stride);
      for (; c < columns; ++c) dot_rows<1>(block, some, column(c), width, false, to + c, out_stride);
    }
  }

  static void matmul_mxfp4(Rows<float> x, int rows, Mxfp4Tile weight, int columns, int width, float* scratch,
                           float* out, size_t out_stride) {
    constexpr int C = S::dot_columns;
    const int blocks = width / kMxfp4Block;
    for (int c = 0; c < columns; c += C) {
      const int take = columns - c < C ? columns - c : C;
      for (int b = 0; b < take * blocks; ++b) {
        const size_t at = size_t(c) * blocks + b;
        S::decode_block(weight.blocks + at * kMxfp4BlockBytes, e8m0_to_float(weight.scales[at]),
                        scratch + b * kMxfp4Block);
      }
      dot_some(x, rows, scratch, take, width, out + c, out_stride);
    }
  }
};

}  // namespace gptoss::cpu
