// A LoRA adapter on a device: for some matrices of a model, two small ones whose product is added to it.
#pragma once

#include <map>
#include <utility>

#include "model/config.h"
#include "model/device.h"
#include "model/ops.h"

namespace gptoss {

// The matrices that can be adapted. lm_head counts as one of the layer after the last.
enum class Adapted { q, k, v, attention_out, router, gate_up, down, lm_head };
constexpr int kAdapted = 8;

// Of a matrix as the model has it; `experts` is 1 for what a layer has one of.
struct AdaptedShape {
  int experts, out, in;
};
AdaptedShape adapted_shape(const Config&, Adapted);

class Adapter {
 public:
  // In memory of the device, which must outlive this.
  explicit Adapter(Device& device) : device_(device) {}

  // a: [experts, rank, in]; b: [experts, rank, out], scaled; on the host.
  void add(Adapted, int layer, const AdaptedShape&, int rank, const float* a, const float* b);

  // Gives the memory back.
  void clear();

  // Or null.
  const LoraMatrix* find(Adapted, int layer) const;
  int rank() const { return rank_; }  // the largest
  size_t bytes() const;

 private:
  Device& device_;
  int rank_ = 0;
  std::map<std::pair<Adapted, int>, LoraMatrix> matrices_;
  std::vector<DeviceBuffer<float>> storage_;
};

}  // namespace gptoss
