#include "model/interventions.h"

#include <algorithm>

namespace gptoss {

Interventions::Interventions(Device& device, const Config& config, int slots, int rows)
    : device_(device),
      hidden_(config.hidden),
      experts_(config.experts),
      slots_(slots),
      rows_(rows),
      row_products_(std::max(LoraParams::kMaxTargets, config.chosen)),
      tables_(config.layers + 1) {}

template <typename T>
void Interventions::write(DeviceBuffer<T>& table, int slot, const T* row, int width) {
  if (table.data() == nullptr) {
    if (row == nullptr) return;
    DeviceBuffer<T> made(device_, size_t(slots_) * width);
    const std::vector<T> neutral(made.size(), T{});
    device_.copy_in(made.data(), neutral.data(), made.bytes());
    table = std::move(made);
    ++version_;
  }
  const std::vector<T> neutral(width, T{});
  device_.copy_in(table.data() + size_t(slot) * width, row ? row : neutral.data(), sizeof(T) * width);
}

void Interventions::reserve(int rank) {
  if (rank <= stride_) return;
  // Those that there are stay until there are larger ones: the slots' adapters need them, also when this fails.
  DeviceBuffer<float> larger(device_, size_t(rows_) * row_products_ * rank);
  device_.wait_for(device_.mark());
  products_ = std::move(larger);
  stride_ = rank;
  ++version_;
}

Lora Interventions::lora(Adapted matrix, int layer, const int32_t* slots, int place) const {
  const LoraMatrix* matrices = tables_[layer].adapters[static_cast<int>(matrix)].data();
  if (matrices == nullptr) return {};
  return {matrices, slots, const_cast<float*>(products_.data()) + size_t(place) * rows_ * stride_, stride_};
}

void Interventions::set(int slot, const std::vector<LayerIntervention>& layers, const Adapter* adapter) {
  if (adapter) reserve(adapter->rank());
  std::vector<LayerIntervention> all(tables_.size());
  for (const LayerIntervention& each : layers) all[each.layer] = each;
  for (size_t layer = 0; layer < all.size(); ++layer) {
    write(tables_[layer].steering, slot, all[layer].steering, hidden_);
    write(tables_[layer].controls, slot, all[layer].controls, experts_);
    for (int matrix = 0; matrix < kAdapted; ++matrix)
      write(tables_[layer].adapters[matrix], slot,
            adapter ? adapter->find(static_cast<Adapted>(matrix), static_cast<int>(layer)) : nullptr, 1);
  }
}

}  // namespace gptoss
