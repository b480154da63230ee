// The CPU backend: a thread pool, one table of kernels, and scratch memory for each worker.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/buffer.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"
#include "cpu/token_row.h"
#include "model/backend.h"

namespace gptoss::cpu {

// Neighbouring rows of one sequence that attend together.
struct RowBlock {
  int first_row;
  int rows;
};

enum class Arithmetic { f32, int8 };

// What the model's dense matrices, the router's and the embedding aside, are multiplied as: the checkpoint's own
// numbers; a copy of them in 12 bits a number (cpu/packed_weights.h); or rounded to signed bytes (cpu/q8_weights.h),
// with 8-bit activations.
enum class DenseForm { bf16, packed, q8 };

class CpuBackend final : public Backend {
 public:
  // threads = 0 takes every usable core; isa = "" the best of the host.
  CpuBackend(int threads, const std::string& isa, DenseForm = DenseForm::bf16);

  int threads() const { return pool_.threads(); }
  const char* isa() const { return kernels_.isa; }
  int64_t rows_settled() const { return rows_settled_; }  // drawn by bounds of their logits, since the beginning

  // What all threads together reach, each try on its own: bytes a second read of so much memory, operations a second
  // (two a multiply-add) without memory, in about so many seconds.
  std::vector<double> read_bandwidth(size_t bytes, int tries);
  std::vector<double> peak(Arithmetic, double seconds, int tries);

  void* allocate(size_t bytes) override;
  void release(void* memory) override;
  void copy_in(void* device, const void* host, size_t bytes) override;
  void copy_out(void* host, const void* device, size_t bytes) override;
  bool is_host() const override { return true; }
  Linear prepare(const Linear& stored, MatrixUse, DeviceStorage&) override;
  ExpertLinear prepare(const ExpertLinear& stored, DeviceStorage&) override { return stored; }
  Screen prepare_screen(const Linear&, DeviceStorage&) override;
  void read_rows(const Place&, int64_t first, int64_t count, unsigned char* to) override;
  void write_rows(const Place&, int64_t first, int64_t count, const unsigned char* from) override;

  ExpertForm fast_form() const override { return ExpertForm::q8; }
  bool has_exact() const override { return true; }
  bool keys_are_transposed() const override { return true; }

  void lora(const LoraParams&) override;
  void embed(const EmbedParams&) override;
  void attention_in(const AttentionInParams&) override;
  void paged_attention(const PagedAttentionParams&) override;
  void attention_out(const AttentionOutParams&) override;
  void moe_gate(const MoeGateParams&) override;
  void moe_up(const MoeUpParams&) override;
  void moe_down(const MoeDownParams&) override;
  void unembed(const UnembedParams&) override;
  void sample(const SampleParams&) override;

 private:
  // How many tiles of a matrix, each of so many numbers, make a task. Many rows: one, which stays in a core's cache for
  // all of them. Few: long streams, since each task begins its own and stops it for what follows the products; but
  // tasks enough to share, and none so long that the others wait for it.
  int tiles_of_task(int tiles, size_t tile_numbers, int rows) const;
  static constexpr int kFewRows = 3;

  // Likewise, in how many tasks of about the same length each of `active` experts is done; every one has a tile.
  int pieces_of_expert(int active, int tiles, size_t tile_numbers, int rows) const;

  // Makes every worker's scratch hold `count` floats. It only grows.
  void reserve_scratch(size_t count);
  float* scratch(int worker) { return scratch_[worker].data(); }

  // Floats of scratch that expert_matmul needs for rows of this width.
  static size_t expert_scratch(int width) { return 4 * size_t(width); }

  // Finds the experts that have rows, and returns the most rows of one.
  int find_active(const ExpertGroups& groups, int experts);

  void reserve_laid_out(int rows, int width);
  // 8-bit rows of an expert layer as the kernels read them, for expert_matmul. Others stay as they are.
  void lay_out(const ExpertInput& input, int rows, int width);

  // out[r, c] = dot(input[r], W_e[c]) for the expert's columns [first, first + columns), in the input's format.
  void expert_matmul(const ExpertInput& input, const int32_t* order, int divisor, int rows, const ExpertLinear& layer,
                     int expert, int first, int columns, float* scratch, float* out, size_t out_stride);
  void moe_down_few(const MoeDownParams&, int most_rows);
  void moe_down_many(const MoeDownParams&, int most_rows);

  // Rows [first, first + count) of a dense matrix into its copy.
  void fill_copy(const Linear& layer, int64_t first, int64_t count);
  void fill_screen(const Linear& layer, const Screen& screen, int64_t first, int64_t count);

  // Makes room for 8-bit copies of `rows` inputs.
  void reserve_bytes(int rows, int width);
  // The 8-bit copy of one of them.
  void quantize_row(const float* x, int row, int width);
  // The same if the layer multiplies with those.
  void reserve_dense(const Linear& layer, int rows);
  void quantize_dense(const Linear& layer, const float* x, int row);
  TokenRow token_row(const float* logits, int vocab, int worker);
  // Makes exact what the draws of screened logits depend on.
  void settle_rows(const SampleParams&);

  // Sizes of a row of `unembed`'s input for bounds: of what lm_head is multiplied with, and of what its copy lacks.
  std::pair<float, float> norms_of_copy(const float* x, int row, int width) const;
  // Upper bounds of the logits of tokens [first, first + columns).
  void bound_logits(const UnembedParams&, int first, int columns);

  // out[r, c] = dot(x[row + r], W[c]) for the layer's columns [first, first + columns).
  void dense_matmul(const float* x, int row, int rows, const Linear& layer, int first, int columns, float* out,
                    size_t out_stride);

  ThreadPool pool_;
  const Kernels& kernels_;
  const DenseForm dense_form_;
  // All kept between calls, so that a steady stream of steps allocates nothing.
  std::vector<Buffer<float>> scratch_;             // one a worker
  std::vector<std::vector<uint64_t>> candidates_;  // one a worker, for `sample`
  Buffer<int8_t> dense_bytes_;                     // [rows, width] of the dense op in progress
  Buffer<float> dense_scale_;                      // [rows, width / 32]
  std::vector<std::pair<float, float>> norms_;     // [rows] of `unembed`, see norms_of_copy
  Buffer<uint8_t> laid_out_;                       // 8-bit rows of the op in progress, see Kernels::lay_out
  Buffer<float> products_;                         // [rows, chosen, hidden] of `moe_down`, by expert
  Buffer<float> rotations_;                        // [rows, 64], of `attention_in`
  int64_t rows_settled_ = 0;
  std::vector<char> settled_;         // of each row of screened logits, whether few had to be exact
  std::vector<RowBlock> row_blocks_;  // of `paged_attention`
  std::vector<int> active_experts_;   // of the expert op in progress, ascending
};

}  // namespace gptoss::cpu
