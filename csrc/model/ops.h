// The nine operations of a gpt-oss step, and `lora` for the rows that have an adapter: what each reads and writes.
// A backend implements all of them.
//
// Shapes use: rows = tokens in the step, hidden, heads, kv_heads, head_dim = 64, experts, chosen = experts
// per token (4), inner = intermediate size, vocab. Matrices are row-major [out, in]. All pointers are
// memory of the backend's device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace gptoss {

namespace cpu {
struct PackedRow;
}

inline constexpr int kHeadDim = 64;
inline constexpr int kMaxPageSize = 256;  // tokens of a KV page: kernels keep a page's scores on the stack

// A dense layer as stored in the checkpoint: y = W x + b.
struct Linear {
  const bf16* weight;  // [out, in]
  const bf16* bias;    // [out], or null
  int out;
  int in;
  // Where the CPU backend was asked for 8-bit dense weights, what it multiplies with; see cpu/q8_weights.h.
  const int8_t* q8 = nullptr;
  const bf16* scale = nullptr;
  // Where it was asked for packed ones; see cpu/packed_weights.h.
  const uint8_t* packed = nullptr;
  const cpu::PackedRow* packed_rows = nullptr;
  int first_upper = 0;

  bool has_copy() const { return q8 != nullptr || packed != nullptr; }
};

// lm_head once more, rounded to six bits, and what that takes from each row: with it a CPU draws tokens without
// computing all logits, see cpu/screen.h. Empty where a backend has none.
struct Screen {
  const uint8_t* codes = nullptr;  // see cpu/screen_weights.h
  const bf16* scale = nullptr;     // likewise
  const float* error = nullptr;    // [vocab, 2]

  explicit operator bool() const { return codes != nullptr; }
};

// The same layer of every expert, packed in MXFP4.
struct ExpertLinear {
  const uint8_t* blocks;  // [experts, out, in / 32, 16]
  const uint8_t* scales;  // [experts, out, in / 32], 0 to 254: Weights::bind refuses NaN
  const bf16* bias;       // [experts, out]
  int experts;
  int out;
  int in;
};

// Which rows belong to which sequence, and where their keys and values live. A ragged batch: sequence s
// owns rows [row_start[s], row_start[s + 1]), the newest tokens of its context.
struct Batch {
  int rows;
  int sequences;
  const int32_t* row_start;  // [sequences + 1]
  const int32_t* sequence;   // [rows] owner of the row
  const int32_t* position;   // [rows] place of the token in its context, from 0
  // Rows [0, decode_rows) are their sequences' only ones in this step. A GPU computes them by other kernels than the
  // rows of prompts, so that a row's bits depend on which of the two it is, and on nothing else in the batch.
  int decode_rows;
};

// One layer's pages. Position p of sequence s lives in page table[s * table_stride + p / page_size], slot
// p % page_size. A table entry of -1 is a page given back: no query may look at it any more.
// Keys are stored transposed, so that a vector of keys is one load: [pages, kv_heads, head_dim, page_size];
// values are stored as rows: [pages, kv_heads, page_size, head_dim]. On a GPU it is the other way round, because
// its matrix units want pairs along the axis that is summed over.
struct KvLayer {
  void* keys;
  void* values;
  DType dtype;
  int page_size;  // a multiple of 16
  int kv_heads;
  const int32_t* table;
  int table_stride;
};

// Input of an expert layer, in the form the backend's experts read: float rows; or, when `q8` is set, rows in
// blocks of 32 signed bytes that share one float scale (value = q8 * scale); or bf16 rows, on a GPU.
struct ExpertInput {
  float* f32 = nullptr;    // [n, width]
  int8_t* q8 = nullptr;    // [n, width]
  float* scale = nullptr;  // [n, width / 32]
  bf16* b16 = nullptr;     // [n, width]
};

// Tokens grouped by expert. An assignment a = row * chosen + slot is one (token, expert) pair; expert e
// works on assignments order[start[e]] .. order[start[e + 1] - 1], in ascending order.
struct ExpertGroups {
  int32_t* start;  // [experts + 1]
  int32_t* order;  // [rows * chosen]
};

// What an adapter adds to one matrix of a layer: y += B A x, to each expert's outputs its own.
struct LoraMatrix {
  const float* a;  // [rank, in], or [experts, rank, in]
  const float* b;  // [rank, out], or [experts, rank, out]: B transposed, times the adapter's scale
  int rank;        // 0: nothing
};

// The rows' adapters of one matrix. `lora` computes A x; the op that multiplies by the matrix adds B (A x) where it
// adds the bias.
struct Lora {
  const LoraMatrix* matrices = nullptr;  // [slots], or null: of no row
  const int32_t* slot = nullptr;         // [rows] of `matrices`, -1: none
  float* product = nullptr;              // [n, stride] A x, by row, by assignment, or by row of logits
  int stride = 0;                        // the largest rank, at least

  explicit operator bool() const { return matrices != nullptr; }
  // Of a row, or null.
  GPTOSS_BOTH const LoraMatrix* of(int row) const {
    return matrices && slot[row] >= 0 && matrices[slot[row]].rank > 0 ? matrices + slot[row] : nullptr;
  }
};

// lora[i].product[n] = A x[n] for each of the targets, where the row has an adapter. x = RMSNorm(input), or the input
// itself. Of experts, n is an assignment.
struct LoraParams {
  static constexpr int kMaxTargets = 3;
  ExpertInput input;                  // [rows, width], or [rows * chosen, width] where `by_assignment`
  const bf16* norm_weight = nullptr;  // [width], or null: no norm; the input is float rows then
  float norm_eps = 0.0f;
  int width = 0;
  int count = 0;                    // of products
  const int32_t* rows = nullptr;    // [count] whose products they are, or null: n / chosen
  int chosen = 1;                   // products of a row
  const int32_t* expert = nullptr;  // [count], or null: the matrix is one of a layer's own
  bool by_assignment = false;
  Lora target[kMaxTargets] = {};  // some may be of no row

  GPTOSS_BOTH int row_of(int n) const { return rows ? rows[n] : n / chosen; }
  GPTOSS_BOTH size_t input_of(int n) const { return size_t(by_assignment ? n : row_of(n)) * width; }
  // Of a target's matrix.
  GPTOSS_BOTH const float* a_of(const LoraMatrix& matrix, int n) const {
    return matrix.a + (expert ? size_t(expert[n]) * matrix.rank * width : 0);
  }
};

// residual[r] = weight[token_ids[r]]
struct EmbedParams {
  const int32_t* token_ids;  // [rows], each in [0, vocab), or -1 - i for drawn[i]
  const bf16* weight;        // [vocab, hidden]
  float* residual;           // [rows, hidden]
  int rows;
  int hidden;
  const int32_t* drawn;  // tokens of the latest draw, which the host may not know yet; null where none is meant

  GPTOSS_BOTH int token(int row) const { return token_ids[row] < 0 ? drawn[-1 - token_ids[row]] : token_ids[row]; }
};

// x = RMSNorm(residual); q, k, v = Wx + b; rotate q and k; append k and v to the cache; write q.
struct AttentionInParams {
  Batch batch;
  const float* residual;    // [rows, hidden]
  const bf16* norm_weight;  // [hidden]
  float norm_eps;
  Linear q, k, v;
  const float* inv_freq;  // [head_dim / 2], YaRN-scaled
  float rope_scale;       // multiplies cos and sin
  KvLayer cache;
  float* normed;   // [rows, hidden] scratch
  float* queries;  // [rows, heads, head_dim]
  Lora q_lora = {}, k_lora = {}, v_lora = {};
};

// Attention of every row over its sequence's pages. `window` = 0 looks at everything up to the row itself;
// otherwise key j is visible to row i iff 0 <= i - j < window. `sinks` joins the softmax's denominator.
struct PagedAttentionParams {
  Batch batch;
  const float* queries;  // [rows, heads, head_dim]
  KvLayer cache;
  const bf16* sinks;  // [heads]
  int heads;
  int window;
  float* output;  // [rows, heads, head_dim]
};

// residual += W x + b
struct AttentionOutParams {
  const float* input;  // [rows, heads * head_dim]
  Linear projection;
  float* residual;  // [rows, hidden]
  int rows;
  int decode_rows;  // see Batch
  Lora lora = {};
};

// What a user says about one expert: an amount added to its logit, and whether it is chosen before others (rank 1),
// by its logit (0), or only where no other is left (-1).
struct ExpertControl {
  float boost;
  int32_t rank;
};

// x = RMSNorm(residual); the `chosen` largest router logits, softmax over them, tokens grouped by expert.
// Equal logits go to the lower expert.
struct MoeGateParams {
  const float* residual;    // [rows, hidden]
  const bf16* norm_weight;  // [hidden]
  float norm_eps;
  Linear router;  // [experts, hidden]
  int chosen;
  ExpertInput normed;     // [rows, hidden]; `f32` is always written, `q8` when set
  int32_t* expert;        // [rows, chosen], largest logit first
  float* routing_weight;  // [rows, chosen]
  ExpertGroups groups;
  int rows;
  const int32_t* slot = nullptr;            // [rows] of `controls`, -1: none; null: of no row
  const ExpertControl* controls = nullptr;  // [slots, experts], or null
  Lora lora = {};                           // of the router

  // Of a row's experts, or null.
  GPTOSS_BOTH const ExpertControl* control_of(int row) const {
    return controls && slot && slot[row] >= 0 ? controls + size_t(slot[row]) * router.out : nullptr;
  }
};

// h = SwiGLU(W_e x + b_e). Rows of W interleave gate (even) and up (odd); gate = min(gate, limit),
// up = clamp(up, -limit, limit); h = gate * sigmoid(1.702 gate) * (up + 1).
struct MoeUpParams {
  ExpertInput input;  // [rows, hidden]
  ExpertGroups groups;
  ExpertLinear gate_up;  // out = 2 * inner
  float limit;
  int chosen;
  ExpertInput output;  // [rows * chosen, inner], by assignment; `q8` when set, otherwise `f32`
  int rows;
  int decode_rows;  // see Batch
  Lora lora = {};
};

// residual[r] += sum over r's experts e of routing_weight * (W_e h + b_e), added in ascending e.
struct MoeDownParams {
  ExpertInput input;  // [rows * chosen, inner], by assignment
  ExpertGroups groups;
  ExpertLinear down;
  const float* routing_weight;  // [rows, chosen]
  int chosen;
  float* residual;  // [rows, hidden]
  int rows;
  int decode_rows;                  // see Batch
  const int32_t* slot = nullptr;    // [rows] of `steering`, -1: none; null: of no row
  const float* steering = nullptr;  // [slots, hidden] added to the residual at last, or null
  Lora lora = {};

  // What a row is steered by, or null.
  GPTOSS_BOTH const float* steering_of(int row) const {
    return steering && slot && slot[row] >= 0 ? steering + size_t(slot[row]) * down.out : nullptr;
  }
};

// logits[i] = lm_head RMSNorm(residual[logit_rows[i]])
struct UnembedParams {
  const float* residual;      // [rows, hidden]
  const int32_t* logit_rows;  // [count]
  int count;
  const bf16* norm_weight;  // [hidden]
  float norm_eps;
  Linear lm_head;  // [vocab, hidden], no bias
  float* normed;   // [count, hidden] scratch
  float* logits;   // [count, vocab]
  Lora lora = {};
  Screen screen = {};  // not empty: logits become upper bounds of the products; there is no lora then
};

// Logits that are upper bounds, and what they are bounds of.
struct ScreenedLogits {
  float* logits;        // [count, vocab]; the draw makes exact what it depends on
  const float* normed;  // [count, hidden]
  Linear lm_head;       // [vocab, hidden]
};

// One row of the sampler. Ragged lists are slices of SampleParams' arrays.
struct SampleRow {
  float temperature;         // 0 = greedy
  float top_p;               // 1 = off
  float min_p;               // 0 = off
  float repetition_penalty;  // 1 = off; divides positive and multiplies negative logits of seen tokens
  float presence_penalty;    // 0 = off; subtracted once from generated tokens
  float frequency_penalty;   // 0 = off; subtracted per occurrence
  int32_t top_k;             // 0 = off
  uint64_t seed;
  uint64_t position;             // index of the drawn token in its sequence: a draw depends on (seed, position) only
  int32_t bias_start, bias_end;  // logit_bias of this row
  int32_t prompt_start, prompt_end;  // prompt tokens of this row, for the repetition penalty
  int32_t output_start, output_end;  // generated tokens of this row
  int32_t mask_row;                  // row of `allowed`, or -1 = every token is allowed
  int32_t skip_report;               // 1 = no log-probability, no rank, no top tokens: they cost a sum over the row

  // Whether some of a vocabulary's tokens may be left out of the draw.
  GPTOSS_BOTH bool cuts(int vocab) const {
    return temperature != 0.0f && (top_p < 1.0f || min_p > 0.0f || (top_k > 0 && top_k < vocab));
  }
};

// How the sampling of one row went. A failed row is reported, not thrown: the other rows' tokens stand, and a
// device need not wait for its host to look.
enum class SampleStatus : int32_t {
  drawn = 0,
  not_finite = 1,  // the row's logits hold NaN or infinity
};

// Order of effects: mask, logit bias, penalties, temperature, min-p, top-k, top-p, then the Gumbel-max draw
// token = argmax(logit + gumbel(seed, position, token)). Log-probabilities are of the untouched logits.
//
// A row that fails gets token 0, so that a step already enqueued behind it stays inside the vocabulary. What a
// row does not report is NaN for log-probabilities and 0 for ranks and top tokens.
struct SampleParams {
  const float* logits;  // [count, vocab]
  int count;
  int vocab;
  const SampleRow* rows;      // [count]
  const int32_t* bias_token;  // ragged
  const float* bias_value;    // ragged
  const int32_t* history;     // ragged; prompt and output slices
  const uint32_t* allowed;    // [mask rows, ceil(vocab / 32)] bit i%32 of word i/32, or null
  int logprobs;               // how many most likely tokens to report
  SampleStatus* status;       // [count]
  int32_t* token;             // [count]
  float* token_logprob;       // [count]
  int32_t* token_rank;        // [count] 1 = most likely
  int32_t* top_token;         // [count, logprobs], most likely first
  float* top_logprob;         // [count, logprobs]
  // Whether any row cuts or reports, for a device whose host does not read `rows`.
  bool any_cuts = true, any_reports = true;
  ScreenedLogits screened = {};  // where `logits` are its bounds
};

}  // namespace gptoss
