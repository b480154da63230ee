// The kernels, written once over a vector type S (simd_*.h) and compiled by kernels_*.cpp for each
// instruction set. Only templates on S live here, so no two objects share a symbol.
#pragma once

#include "cpu/kernels.h"
#include "cpu/q8_weights.h"
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

  // ---- 8-bit dot products ----------------------------------------------------------------------------

  // Products of few rows are as fast as memory brings the weights. Their rows are short, and several side by side would
  // be streams too many for the hardware to run ahead of: they are read one after the other, as one stream.

  using Bytes = typename S::Bytes;
  using Tail = typename S::Tail;
  using Weights = typename S::Weights;

  static constexpr int steps(int blocks) { return (blocks + S::q8_blocks - 1) / S::q8_blocks; }
  static size_t laid_out_bytes(int width) { return (steps(width / kMxfp4Block) * sizeof(Bytes) + 63) / 64 * 64; }

  static void lay_out(const int8_t* q8, const float* scale, int width, uint8_t* to) {
    const int blocks = width / kMxfp4Block;
    auto* step = reinterpret_cast<Bytes*>(to);
    for (int b = 0; b < blocks; b += S::q8_blocks)
      *step++ =
          S::bytes(q8 + size_t(b) * kMxfp4Block, scale + b, blocks - b < S::q8_blocks ? blocks - b : S::q8_blocks);
  }

  // Columns of a weight matrix: what a step from block b of column c multiplies with.
  struct Mxfp4Columns {
    Mxfp4Tile tile;
    int blocks;
    static constexpr float unit = 0.5f;  // codes count in halves

    template <bool whole>
    [[gnu::always_inline]] Weights load(int c, int b, const Tail& tail) const {
      const size_t at = size_t(c) * blocks + b;
      const uint8_t* codes = tile.blocks + at * kMxfp4BlockBytes;
      for (int line = 0; S::ahead > 0 && line < S::q8_blocks * kMxfp4BlockBytes; line += 64)
        __builtin_prefetch(codes + S::ahead + line);
      return S::template mxfp4_weights<whole>(codes, tile.scales + at, tail);
    }
    [[gnu::always_inline]] static V add(const Weights& w, const Bytes& x, V sum) { return S::add_mxfp4(w, x, sum); }
  };
  struct Q8Columns {
    Q8Tile tile;
    int blocks;
    static constexpr float unit = 1.0f;

    template <bool whole>
    [[gnu::always_inline]] Weights load(int c, int b, const Tail& tail) const {
      const size_t at = size_t(c) * q8_row_scales(blocks * kMxfp4Block) + b;
      return S::template q8_weights<whole>(tile.q8 + at * kMxfp4Block, tile.scale + at, tail);
    }
    [[gnu::always_inline]] static V add(const Weights& w, const Bytes& x, V sum) { return S::add_q8(w, x, sum); }
  };

  // Few rows: their sums stay in registers while a column goes by.
  template <int R, typename Columns>
  static void q8_few(const Rows<uint8_t>& x, const Columns& weight, int columns, int blocks, float* out,
                     size_t out_stride) {
    const Bytes* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = reinterpret_cast<const Bytes*>(x[r]);
    const int whole = blocks / S::q8_blocks * S::q8_blocks;
    const Tail tail(blocks - whole);
    for (int c = 0; c < columns; ++c) {
      V sum[R];
      for (int r = 0; r < R; ++r) sum[r] = S::set(0.0f);
      for (int b = 0; b < whole; b += S::q8_blocks) {
        const Weights w = weight.template load<true>(c, b, tail);
        for (int r = 0; r < R; ++r) sum[r] = Columns::add(w, rows[r][b / S::q8_blocks], sum[r]);
      }
      if (whole < blocks) {
        const Weights w = weight.template load<false>(c, whole, tail);
        for (int r = 0; r < R; ++r) sum[r] = Columns::add(w, rows[r][whole / S::q8_blocks], sum[r]);
      }
      for (int r = 0; r < R; ++r) out[r * out_stride + c] = Columns::unit * S::sum(sum[r]);
    }
  }

  // Many rows: one step after the other, whose activations stay in the first cache with the sums of some columns, and
  // each column's weights, decoded once, in registers.
  static constexpr int kManyRows = 16, kManyColumns = 16;

  // A step of C columns from `first` on; sums[c][r].
  template <int C, bool whole, typename Columns>
  [[gnu::always_inline]] static void q8_step(const Columns& weight, int first, int b, const Tail& tail,
                                             const Bytes* const* rows, int count, V (*sums)[kManyRows]) {
    Weights w[C];
    for (int c = 0; c < C; ++c) w[c] = weight.template load<whole>(first + c, b, tail);
    for (int r = 0; r < count; ++r) {
      const Bytes& x = rows[r][b / S::q8_blocks];
      V sum[C];
      for (int c = 0; c < C; ++c) sum[c] = Columns::add(w[c], x, sums[c][r]);
      for (int c = 0; c < C; ++c) sums[c][r] = sum[c];
    }
  }

  template <bool whole, typename Columns>
  [[gnu::always_inline]] static void q8_steps(const Columns& weight, int first, int columns, int b, const Tail& tail,
                                              const Bytes* const* rows, int count, V (*sums)[kManyRows]) {
    constexpr int C = S::q8_columns;
    int c = 0;
    for (; c + C <= columns; c += C) q8_step<C, whole>(weight, first + c, b, tail, rows, count, sums + c);
    for (; c < columns; ++c) q8_step<1, whole>(weight, first + c, b, tail, rows, count, sums + c);
  }

  template <typename Columns>
  static void q8_many(const Rows<uint8_t>& x, int count, const Columns& weight, int columns, int blocks, float* out,
                      size_t out_stride) {
    const Bytes* rows[kManyRows];
    for (int r = 0; r < count; ++r) rows[r] = reinterpret_cast<const Bytes*>(x[r]);
    const int whole = blocks / S::q8_blocks * S::q8_blocks;
    const Tail tail(blocks - whole);
    for (int first = 0; first < columns; first += kManyColumns) {
      const int some = columns - first < kManyColumns ? columns - first : kManyColumns;
      V sum[kManyColumns][kManyRows];
      for (int c = 0; c < some; ++c)
        for (int r = 0; r < count; ++r) sum[c][r] = S::set(0.0f);
      for (int b = 0; b < whole; b += S::q8_blocks) q8_steps<true>(weight, first, some, b, tail, rows, count, sum);
      if (whole < blocks) q8_steps<false>(weight, first, some, whole, tail, rows, count, sum);
      for (int r = 0; r < count; ++r)
        for (int c = 0; c < some; ++c) out[r * out_stride + first + c] = Columns::unit * S::sum(sum[c][r]);
    }
  }

  template <typename Columns>
  static void q8_matmul(const Rows<uint8_t>& x, int rows, const Columns& weight, int columns, int blocks, float* out,
                        size_t out_stride) {
    if (rows == 1) return q8_few<1>(x, weight, columns, blocks, out, out_stride);
    if (rows == 2) return q8_few<2>(x, weight, columns, blocks, out, out_stride);
    for (int r = 0; r < rows; r += kManyRows)
      q8_many(x.from(r), rows - r < kManyRows ? rows - r : kManyRows, weight, columns, blocks, out + r * out_stride,
              out_stride);
  }

  static void matmul_mxfp4_q8(Rows<uint8_t> x, int rows, Mxfp4Tile weight, int columns, int width, float* out,
                              size_t out_stride) {
    const int blocks = width / kMxfp4Block;
    q8_matmul(x, rows, Mxfp4Columns{weight, blocks}, columns, blocks, out, out_stride);
  }

  static void matmul_q8(Rows<uint8_t> x, int rows, Q8Tile weight, int columns, int width, float* out,
                        size_t out_stride) {
    const int blocks = width / kMxfp4Block;
    q8_matmul(x, rows, Q8Columns{weight, blocks}, columns, blocks, out, out_stride);
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
      for (int k = 0; k < kMxfp4Block; k += S::lanes) S::save_bytes(q8 + k, S::mul(S::load(x + k), inverse));
    }
  }

  // Of one block: returns its scale, and bytes in the order of its elements.
  static bf16 quantize_block(const bf16* weight, int8_t* bytes) {
    constexpr float kSmallest = 1e-30f;
    V largest = S::set(0.0f), poison = S::set(0.0f);
    for (int k = 0; k < kMxfp4Block; k += S::lanes) {
      const V v = S::load(weight + k);
      largest = S::max(largest, S::max(v, S::sub(S::set(0.0f), v)));
      poison = S::fma(v, S::set(0.0f), poison);
    }
    const float check = S::sum(poison), limit = S::largest(largest);
    if (check != check) return to_bf16(check);
    if (limit < kSmallest) return {0};
    // The least bf16 that is not below: so no value leaves the bytes' range.
    const bf16 scale{static_cast<uint16_t>((std::bit_cast<uint32_t>(limit / 127.0f) + 0xffffu) >> 16)};
    const V inverse = S::set(1.0f / to_float(scale));
    for (int k = 0; k < kMxfp4Block; k += S::lanes) S::save_bytes(bytes + k, S::mul(S::load(weight + k), inverse));
    return scale;
  }

  // A step's blocks lie as its lanes do: four even elements of each block, then four odd ones, and so on.
  static void quantize_weights(const bf16* weight, int width, int8_t* q8, bf16* scale) {
    const int blocks = width / kMxfp4Block, padded = static_cast<int>(q8_row_scales(width));
    for (int first = 0; first < padded; first += S::q8_blocks) {
      const int count = padded - first < S::q8_blocks ? padded - first : S::q8_blocks;
      int8_t* step = q8 + size_t(first) * kMxfp4Block;
      for (int b = 0; b < count; ++b) {
        int8_t bytes[kMxfp4Block] = {};
        const int lane = b % S::blocks_a_load * (count / S::blocks_a_load) + b / S::blocks_a_load;
        scale[first + lane] =
            first + b < blocks ? quantize_block(weight + size_t(first + b) * kMxfp4Block, bytes) : bf16{0};
        for (int k = 0; k < kMxfp4Block; ++k) step[(k / 8 * 2 + k % 2) * 4 * count + 4 * lane + k / 2 % 4] = bytes[k];
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
      V gate, up;
      S::load_pairs(gate_up + 2 * k, gate, up);
      gate = S::min(S::set(limit), gate);
      up = S::max(S::set(-limit), S::min(S::set(limit), up));
      const V sigmoid = S::div(one, S::add(one, exp(S::mul(gate, S::set(-1.702f)))));
      S::save(out + k, S::mul(S::mul(gate, sigmoid), S::add(up, one)));
    }
  }

  // ---- attention -------------------------------------------------------------------------------------

  static constexpr int kHeadGroup = 8;  // query heads whose scores share one load of a key vector
  static_assert(kHeadGroup <= S::lanes);

  // Asks for the lines of `bytes` bytes of the page that comes next, `at` bytes into its keys or values.
  [[gnu::always_inline]] static void ask_for(const void* next, size_t at, size_t bytes) {
    for (size_t line = 0; next && line < bytes; line += 64)
      __builtin_prefetch(static_cast<const char*>(next) + at + line, 0, 2);  // into the second cache
  }

  // Scores of N vectors of slots from `at` on.
  template <int H, int N, typename T>
  static void slot_scores(const float* queries, const KvPage& page, int at, float (*scores)[kMaxPageSize]) {
    const T* keys = static_cast<const T*>(page.keys) + at;
    V sum[H][N];
    for (int h = 0; h < H; ++h)
      for (int n = 0; n < N; ++n) sum[h][n] = S::set(0.0f);
    for (int d = 0; d < 64; ++d) {
      V key[N];
      for (int n = 0; n < N; ++n) key[n] = S::load(keys + d * page.size + n * S::lanes);
      for (int h = 0; h < H; ++h)
        for (int n = 0; n < N; ++n) sum[h][n] = S::fma(S::set(queries[h * 64 + d]), key[n], sum[h][n]);
      ask_for(page.next_keys, (d * page.size + at) * sizeof(T), N * S::lanes * sizeof(T));
    }
    for (int h = 0; h < H; ++h)
      for (int n = 0; n < N; ++n) S::save(scores[h] + at + n * S::lanes, sum[h][n]);
  }

  // Turns scores into weights relative to the running maxima and rescales what was summed before.
  template <int H>
  static void update_softmax(float (*scores)[kMaxPageSize], const KvPage& page, AttentionState* states) {
    float before[S::lanes] = {}, now[S::lanes] = {}, rescale[S::lanes] = {};
    bool larger = false;
    for (int h = 0; h < H; ++h) {
      // Slots that do not count may hold anything. -infinity becomes e^-87, which a sum of 1 or more does not see.
      for (int i = 0; i < page.first; ++i) scores[h][i] = -__builtin_inff();
      for (int i = page.last; i < page.size; ++i) scores[h][i] = -__builtin_inff();
      V largest = S::load(scores[h]);
      for (int at = S::lanes; at < page.size; at += S::lanes) largest = S::max(largest, S::load(scores[h] + at));
      before[h] = states[h].max;
      const float found = S::largest(largest);
      now[h] = found > before[h] ? found : before[h];
      larger = larger || found > before[h];
    }
    if (larger) S::save(rescale, exp(S::sub(S::load(before), S::load(now))));
    for (int h = 0; h < H; ++h) {
      AttentionState& state = states[h];
      V sum = S::set(0.0f);
      for (int at = 0; at < page.size; at += S::lanes) {
        const V weight = exp(S::sub(S::load(scores[h] + at), S::set(now[h])));
        S::save(scores[h] + at, weight);
        sum = S::add(sum, weight);
      }
      if (larger) {
        state.max = now[h];
        state.sum *= rescale[h];
        for (int d = 0; d < 64; d += S::lanes)
          S::save(state.output + d, S::mul(S::load(state.output + d), S::set(rescale[h])));
      }
      state.sum += S::sum(sum);
    }
  }

  template <int H, typename T>
  static void add_values(const KvPage& page, const void* next, const float (*weights)[kMaxPageSize],
                         AttentionState* states) {
    constexpr int vectors = 4;
    const T* values = static_cast<const T*>(page.values);
    for (int d = 0; d < 64; d += vectors * S::lanes) {
      V sum[H][vectors];
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < vectors; ++v) sum[h][v] = S::load(states[h].output + d + v * S::lanes);
      for (int i = page.first; i < page.last; ++i) {
        V value[vectors];
        for (int v = 0; v < vectors; ++v) value[v] = S::load(values + i * 64 + d + v * S::lanes);
        for (int h = 0; h < H; ++h)
          for (int v = 0; v < vectors; ++v) sum[h][v] = S::fma(S::set(weights[h][i]), value[v], sum[h][v]);
        ask_for(next, (i * 64 + d) * sizeof(T), vectors * S::lanes * sizeof(T));
      }
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < vectors; ++v) S::save(states[h].output + d + v * S::lanes, sum[h][v]);
    }
  }

  template <int H, typename T>
  static void attend_heads(const float* queries, const KvPage& page, AttentionState* states) {
    alignas(64) float scores[H][kMaxPageSize];
    constexpr int N = S::score_vectors;
    int at = 0;
    for (; at + N * S::lanes <= page.size; at += N * S::lanes) slot_scores<H, N, T>(queries, page, at, scores);
    for (; at < page.size; at += S::lanes) slot_scores<H, 1, T>(queries, page, at, scores);
    update_softmax<H>(scores, page, states);
    constexpr int G = S::value_heads;
    int h = 0;
    for (; h + G <= H; h += G) add_values<G, T>(page, h ? nullptr : page.next_values, scores + h, states + h);
    for (; h < H; ++h) add_values<1, T>(page, h ? nullptr : page.next_values, scores + h, states + h);
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
    return {S::name,     matmul_bf16,      matmul_mxfp4, laid_out_bytes, lay_out,     matmul_mxfp4_q8, matmul_q8,
            quantize_q8, quantize_weights, rmsnorm,      swiglu,         attend_page, sampling,        limits};
  }
};

}  // namespace gptoss::cpu
