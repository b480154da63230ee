// The innermost loops of the CPU ops: one table per instruction set, filled from the same source.
//
// Every sum of a dot product runs over its width in one fixed order, whatever the number of rows or
// columns asked for: a row's result never depends on its neighbours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/types.h"
#include "cpu/candidates.h"
#include "cpu/packed_weights.h"

namespace gptoss::cpu {

// Rows of a matrix, all of them or those that `index` names: row r is data + stride * (index[r] / divisor).
template <typename T>
struct Rows {
  const T* data;
  size_t stride;
  const int32_t* index = nullptr;
  int divisor = 1;

  // Inlined always: a copy of its own would be shared by files compiled for different instruction sets.
  [[gnu::always_inline]] const T* operator[](int row) const {
    return data + stride * static_cast<size_t>(index ? index[row] / divisor : row);
  }
  // Those from `first` on.
  [[gnu::always_inline]] Rows from(int first) const {
    return index ? Rows{data, stride, index + first, divisor} : Rows{data + stride * first, stride};
  }
};

// `columns` rows of one expert's packed matrix.
struct Mxfp4Tile {
  const uint8_t* blocks;  // [columns, width / 32, 16]
  const uint8_t* scales;  // [columns, width / 32]
};

// `columns` rows of a packed dense matrix; see cpu/packed_weights.h.
struct PackedTile {
  const uint8_t* packed;  // [columns, packed_row_bytes(width)]
  const PackedRow* rows;  // [columns]
  const bf16* weight;     // [columns, width] what was packed
  int first;              // see common_upper_bytes
};

// `columns` rows of a dense matrix in signed bytes; see cpu/q8_weights.h.
struct Q8Tile {
  const int8_t* q8;   // [columns, q8_row_bytes(width)]
  const bf16* scale;  // [columns, q8_row_scales(width)]
};

// `columns` rows of a dense matrix in six bits; see cpu/screen_weights.h.
struct ScreenTile {
  const uint8_t* codes;  // [columns, screen_row_bytes(width)]
  const bf16* scale;     // [columns, q8_row_scales(width)]
};

// What rounding a row to fewer bits takes from it: sums over its numbers. Blocks of zeros do not count.
struct RowLoss {
  float squares;       // of the numbers
  float lost_squares;  // of the differences
};

// Softmax of one query head while it walks over pages of keys.
struct alignas(64) AttentionState {
  float output[64];  // sum of exp(score - max) * value
  float max;
  float sum;  // sum of exp(score - max)
};

// One page of one kv head; keys [64, size] transposed, values [size, 64], of which slots [first, last) count.
struct KvPage {
  const void* keys;
  const void* values;
  DType dtype;
  int size;
  int first;
  int last;
  const void* next_keys = nullptr;  // the page that comes next, so that it is under way by then, or null
  const void* next_values = nullptr;
};

// Passes over one row of `count` logits, of which some may be -infinity (forbidden).
struct SamplingKernels {
  Peak (*peak)(const float* logits, int count);

  // maxima[g] = the largest of logits 64 g .. 64 g + 63
  void (*group_maxima)(const float* logits, int count, float* maxima);

  // How many logits are >= least, a number above -infinity; and those as candidates, by ascending token.
  int (*count_at_least)(const float* logits, int count, float least);
  void (*collect)(const float* logits, int count, float least, uint64_t* candidates);

  // Sum of the weights of logits >= least.
  double (*mass)(const float* logits, int count, float least, Softmax);

  // argmax of (logit - largest) / temperature + gumbel(seed, position, token) over the tokens that `cut`
  // keeps; `start` is one of them, best a likely one. Equal scores go to the lower token.
  int (*race)(const float* logits, int count, Softmax, Cut cut, uint64_t seed, uint64_t position, int start);

  // Tokens whose race_score is at least `least`: how many, and the first `most` of them as candidates.
  int (*rivals)(const float* logits, int count, Softmax, float least, uint64_t seed, uint64_t position, int most,
                uint64_t* candidates);
};

// What the limits of a host are measured with.
struct LimitKernels {
  // So many rounds of arithmetic in registers, on floats and on bytes; return the operations, two a multiply-add.
  double (*multiply_add)(int rounds);
  double (*dot_bytes)(int rounds);

  // Sum of `count` floats, a multiple of 64: little enough work for any memory.
  float (*read)(const float* data, size_t count);
};

struct Kernels {
  const char* isa;

  // out[r * out_stride + c] = dot(x[r], weight[c]); weight is [columns, width].
  void (*matmul_bf16)(Rows<float> x, int rows, const bf16* weight, int columns, int width, float* out,
                      size_t out_stride);

  // The same over a packed matrix, and with the same bits as result.
  void (*matmul_packed)(Rows<float> x, int rows, PackedTile weight, int columns, int width, float* out,
                        size_t out_stride);

  // One row of a packed matrix.
  PackedRow (*pack_row)(const bf16* row, int width, int first, uint8_t* to);

  // As matmul_bf16 over MXFP4; `scratch` holds 4 * width floats.
  void (*matmul_mxfp4)(Rows<float> x, int rows, Mxfp4Tile weight, int columns, int width, float* scratch, float* out,
                       size_t out_stride);

  // 8-bit activations, value = q8 * scale with one scale for 32 neighbours, as the next three read them: so many bytes
  // a row, and on a cache line's border.
  size_t (*laid_out_bytes)(int width);
  void (*lay_out)(const int8_t* q8, const float* scale, int width, uint8_t* to);

  // The same with rows that lay_out has made: exact integer dot products inside a block of 32, floats between blocks.
  void (*matmul_mxfp4_q8)(Rows<uint8_t> x, int rows, Mxfp4Tile weight, int columns, int width, float* out,
                          size_t out_stride);

  // The same over a dense matrix in signed bytes.
  void (*matmul_q8)(Rows<uint8_t> x, int rows, Q8Tile weight, int columns, int width, float* out, size_t out_stride);

  // And over one in six bits.
  void (*matmul_screen)(Rows<uint8_t> x, int rows, ScreenTile weight, int columns, int width, float* out,
                        size_t out_stride);

  // scale = max|x| / 127 for each 32 values, q8 = x * (127 / max|x|) rounded to nearest even. A block whose max|x| is
  // below 1e-36, where 127 / max|x| overflows, becomes zeros with scale 0; one that holds NaN or infinity gets a NaN
  // scale.
  void (*quantize_q8)(const float* x, int width, int8_t* q8, float* scale);

  // One row of a dense matrix in signed bytes, see cpu/q8_weights.h: scale = max|w| / 127 rounded up to bf16, q8 = w *
  // (1 / scale) rounded to nearest even. A block with NaN or infinity gets a scale of NaN; one below 1e-30 becomes
  // zeros.
  void (*quantize_weights)(const bf16* weight, int width, int8_t* q8, bf16* scale);

  // One row in six bits, see cpu/screen_weights.h, or what it is in signed bytes in six bits; the same of blocks with
  // NaN, infinity or nothing above 1e-30.
  RowLoss (*quantize_screen)(const bf16* weight, int width, bool of_bytes, uint8_t* codes, bf16* scale);

  // out = x / sqrt(mean(x^2) + eps) * weight
  void (*rmsnorm)(const float* x, const bf16* weight, float eps, int width, float* out);

  // gate_up holds `count` (gate, up) pairs with their biases added; see MoeUpParams.
  void (*swiglu)(const float* gate_up, int count, float limit, float* out);

  // Adds one page to the softmax of `heads` query heads; queries [heads, 64] already scaled.
  void (*attend_page)(const float* queries, int heads, const KvPage& page, AttentionState* states);

  SamplingKernels sampling;
  LimitKernels limits;
};

// The tables this host can run, plainest first. `portable` is always there.
std::vector<const Kernels*> available_kernels();

// The named table; for an empty name the one of the environment variable GPTOSS_NATIVE_ISA, without it the best. Throws
// Error naming what this host has.
const Kernels& select_kernels(const std::string& isa);

}  // namespace gptoss::cpu
