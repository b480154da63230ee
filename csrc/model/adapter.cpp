#include "model/adapter.h"

#include <algorithm>

namespace gptoss {

AdaptedShape adapted_shape(const Config& c, Adapted matrix) {
  const int q_width = c.heads * kHeadDim, kv_width = c.kv_heads * kHeadDim;
  switch (matrix) {
    case Adapted::q:
      return {1, q_width, c.hidden};
    case Adapted::k:
    case Adapted::v:
      return {1, kv_width, c.hidden};
    case Adapted::attention_out:
      return {1, c.hidden, q_width};
    case Adapted::router:
      return {1, c.experts, c.hidden};
    case Adapted::gate_up:
      return {c.experts, 2 * c.inner, c.hidden};
    case Adapted::down:
      return {c.experts, c.hidden, c.inner};
    default:
      return {1, c.vocab, c.hidden};
  }
}

void Adapter::add(Adapted matrix, int layer, const AdaptedShape& shape, int rank, const float* a, const float* b) {
  const auto keep = [&](const float* host, size_t width) {
    auto& copy = storage_.emplace_back(device_, size_t(shape.experts) * rank * width);
    device_.copy_in(copy.data(), host, copy.bytes());
    return copy.data();
  };
  matrices_[{matrix, layer}] = {keep(a, shape.in), keep(b, shape.out), rank};
  rank_ = std::max(rank_, rank);
}

void Adapter::clear() {
  matrices_.clear();
  storage_.clear();
}

const LoraMatrix* Adapter::find(Adapted matrix, int layer) const {
  const auto found = matrices_.find({matrix, layer});
  return found == matrices_.end() ? nullptr : &found->second;
}

size_t Adapter::bytes() const {
  size_t total = 0;
  for (const DeviceBuffer<float>& each : storage_) total += each.bytes();
  return total;
}

}  // namespace gptoss
