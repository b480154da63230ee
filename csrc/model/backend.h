// A backend: a device, the form in which it wants the weights, and the nine ops.
#pragma once

#include <chrono>
#include <functional>
#include <vector>

#include "model/config.h"
#include "model/device.h"
#include "model/ops.h"
#include "model/places.h"

namespace gptoss {

// How a dense matrix is read: in products, in products whose rows i and i + 32 of each head rotate together, or
// row by row as the checkpoint stores it.
enum class MatrixUse { product, rotary_product, rows };

// In what the experts' inputs are held in `fast` numerics.
enum class ExpertForm { q8, b16 };

// What tells one piece of repeated work from another: shapes, and addresses that are not fixed by them.
using RepeatKey = std::vector<uint64_t>;

// The largest step to come.
struct StepLimits {
  int rows;
  int sequences;
  int positions;  // of the longest sequence
  int logits;     // rows of them
};

class Backend : public Device {
 public:
  // Kernel form of checkpoint weights, in memory that `storage` keeps. A backend that reads weights as they are
  // stored returns its argument.
  virtual Linear prepare(const Linear& stored, MatrixUse, DeviceStorage&) { return stored; }
  virtual ExpertLinear prepare(const ExpertLinear& stored, DeviceStorage&) { return stored; }
  virtual Screen prepare_screen(const Linear&, DeviceStorage&) { return {}; }

  // Rows [first, first + count) of a tensor, in the checkpoint's form. A write comes after all ops before it.
  virtual void read_rows(const Place&, int64_t first, int64_t count, unsigned char* to) = 0;
  virtual void write_rows(const Place&, int64_t first, int64_t count, const unsigned char* from) = 0;

  // Takes all the memory that steps within the limits need, so that none has to be found while they run.
  virtual void reserve(const Config&, const StepLimits&) {}

  virtual ExpertForm fast_form() const = 0;
  virtual bool has_exact() const = 0;            // float activations and a float cache
  virtual bool keys_are_transposed() const = 0;  // of keys and values, the one that is: see KvLayer

  // Does `work`, a sequence of ops. For one key it must be the same ops with the same arguments every time, so that
  // a device may record it and replay the record.
  virtual void repeat(const RepeatKey&, const std::function<void()>& work) { work(); }

  // Seconds that `work`, a sequence of ops, takes: by the device's own clock where it has one.
  virtual double seconds(const std::function<void()>& work) {
    wait_for(mark());
    const auto begin = std::chrono::steady_clock::now();
    work();
    wait_for(mark());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  // Ops run in the order they are called; a device may still be at them on return.
  virtual void lora(const LoraParams&) = 0;
  virtual void embed(const EmbedParams&) = 0;
  virtual void attention_in(const AttentionInParams&) = 0;
  virtual void paged_attention(const PagedAttentionParams&) = 0;
  virtual void attention_out(const AttentionOutParams&) = 0;
  virtual void moe_gate(const MoeGateParams&) = 0;
  virtual void moe_up(const MoeUpParams&) = 0;
  virtual void moe_down(const MoeDownParams&) = 0;
  virtual void unembed(const UnembedParams&) = 0;
  virtual void sample(const SampleParams&) = 0;
};

}  // namespace gptoss
