// The GPU backend: one stream and the memory that ops need between their kernels. Each op is in a file of its own.
#pragma once

#include <algorithm>
#include <map>

#include "cuda/device.h"
#include "cuda/graphs.h"
#include "cuda/launch.h"
#include "cuda/layout.h"
#include "cuda/marks.h"
#include "cuda/workspace.h"
#include "model/backend.h"
#include "model/upload.h"

namespace gptoss::GPTOSS_GPU {

// Device memory that grows to the largest size asked for. `zeroed` memory is zero when it is new; kernels that
// count in it leave it zero again.
class Workspace {
 public:
  explicit Workspace(bool zeroed) : zeroed_(zeroed) {}
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <typename T>
  T* reserve(size_t bytes, Stream stream) {
    return static_cast<T*>(reserve_bytes(bytes, stream));
  }
  size_t bytes() const { return bytes_; }
  uint64_t moves() const { return moves_; }  // how often it got other memory

 private:
  void* reserve_bytes(size_t bytes, Stream stream);

  void* memory_ = nullptr;
  size_t bytes_ = 0;
  uint64_t moves_ = 0;
  bool zeroed_;
};

class GpuBackend final : public Backend {
 public:
  GpuBackend();
  ~GpuBackend() override;

  void* allocate(size_t bytes) override;
  void release(void* memory) override;
  void copy_in(void* device, const void* host, size_t bytes) override;
  void copy_out(void* host, const void* device, size_t bytes) override;
  bool is_host() const override { return false; }
  std::optional<DeviceMemory> memory() override;
  size_t allocated() const override { return allocated_ + partial_.bytes() + counters_.bytes() + staging_.bytes(); }
  void* allocate_pinned(size_t bytes) override;
  void release_pinned(void* memory) override;
  void enqueue_copy_in(void* device, const void* pinned, size_t bytes) override;
  void enqueue_copy_out(void* pinned, const void* device, size_t bytes) override;
  uint64_t mark() override;
  void wait_for(uint64_t) override;
  void repeat(const RepeatKey&, const std::function<void()>& work) override;
  double seconds(const std::function<void()>& work) override;  // in stopwatch.cu

  Linear prepare(const Linear& stored, MatrixUse, DeviceStorage&) override;
  ExpertLinear prepare(const ExpertLinear& stored, DeviceStorage&) override;
  void read_rows(const Place&, int64_t first, int64_t count, unsigned char* to) override;  // both in rows.cu
  void write_rows(const Place&, int64_t first, int64_t count, const unsigned char* from) override;
  void reserve(const Config&, const StepLimits&) override;

  ExpertForm fast_form() const override { return ExpertForm::b16; }
  bool has_exact() const override { return false; }
  bool keys_are_transposed() const override { return false; }

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
  // Whether prompts run on wgmma: what runs is code for sm_90a.
  bool uses_wgmma() const;

  // out[r] = bf16(RMSNorm(x[row r or rows[r]]) * weight), r < decoded in the order of decoded rows; in rmsnorm.cu
  void rmsnorm(const char* op, const float* x, const int32_t* rows, int count, int width, const bf16* weight, float eps,
               int decoded, bf16* out);

  Stream stream_;
  std::map<void*, size_t> sizes_;  // of what `allocate` gave
  size_t allocated_ = 0;
  bool has_wgmma_ = false;    // see uses_wgmma
  Workspace partial_{false};  // partial results of split work
  Workspace counters_{true};  // arrivals of the blocks that share a result
  Workspace staging_{false};  // weights on their way into kernel form
  Uploader uploader_{*this};
  uint64_t recorded_at_ = 0;  // moves of the workspaces, as graphs_ knows them
  Graphs graphs_;
  Marks marks_;
};

}  // namespace gptoss::GPTOSS_GPU
