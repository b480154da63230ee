#include "model/interventions.h"

namespace gptoss {

Interventions::Interventions(Device& device, const Config& config, int slots)
    : device_(device), hidden_(config.hidden), experts_(config.experts), slots_(slots), tables_(config.layers) {}

template <typename T>
void Interventions::write(DeviceBuffer<T>& table, int slot, const T* row, int width) {
  if (table.data() == nullptr) {
    if (row == nullptr) return;
    table = DeviceBuffer<T>(device_, size_t(slots_) * width);
    const std::vector<T> neutral(table.size(), T{});
    device_.copy_in(table.data(), neutral.data(), table.bytes());
    ++version_;
  }
  const std::vector<T> neutral(width, T{});
  device_.copy_in(table.data() + size_t(slot) * width, row ? row : neutral.data(), sizeof(T) * width);
}

void Interventions::set(int slot, const std::vector<LayerIntervention>& layers) {
  std::vector<LayerIntervention> all(tables_.size());
  for (const LayerIntervention& each : layers) all[each.layer] = each;
  for (size_t layer = 0; layer < all.size(); ++layer) {
    write(tables_[layer].steering, slot, all[layer].steering, hidden_);
    write(tables_[layer].controls, slot, all[layer].controls, experts_);
  }
}

}  // namespace gptoss
