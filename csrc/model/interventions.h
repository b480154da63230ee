// What users do to the rows of their requests on the way through the layers: vectors added to the residual stream, a
// say in the choice of experts, adapters. Rows name a slot of the tables here; a table is there once a layer needs it.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/adapter.h"
#include "model/config.h"
#include "model/device.h"
#include "model/ops.h"

namespace gptoss {

// What a slot does in one layer; null: nothing. On the host.
struct LayerIntervention {
  int layer;
  const float* steering;          // [hidden]
  const ExpertControl* controls;  // [experts]
};

class Interventions {
 public:
  // In memory of the device, which must outlive this. slots: different ones in a step, at most; rows: of a step.
  Interventions(Device& device, const Config& config, int slots, int rows);

  int slots() const { return slots_; }
  // Grows whenever there is a new table: what was recorded before does not know it.
  uint64_t version() const { return version_; }

  // Makes room for what rows have of adapters of a rank; throws Error, and all is as before, when there is none.
  void reserve(int rank);

  // Everything that a slot does from now on; comes after all work enqueued before. The adapter, or null, must stay
  // until the slot does something else.
  void set(int slot, const std::vector<LayerIntervention>& layers, const Adapter* adapter);

  const float* steering(int layer) const { return tables_[layer].steering.data(); }  // [slots, hidden], or null
  const ExpertControl* controls(int layer) const {
    return tables_[layer].controls.data();
  }  // [slots, experts], or null
  // Of a matrix, for rows of these slots; false when no slot adapts it. `place`: q, k and v have products of their own.
  Lora lora(Adapted matrix, int layer, const int32_t* slots, int place = 0) const;

 private:
  struct Tables {
    DeviceBuffer<float> steering;
    DeviceBuffer<ExpertControl> controls;
    std::array<DeviceBuffer<LoraMatrix>, kAdapted> adapters;
  };
  // Writes a slot's row of a table, which it makes when it is missing and there is something to write.
  template <typename T>
  void write(DeviceBuffer<T>& table, int slot, const T* row, int width);

  Device& device_;
  int hidden_, experts_, slots_, rows_, row_products_;
  std::vector<Tables> tables_;    // one a layer, and one for what is after the layers
  DeviceBuffer<float> products_;  // [rows * row_products, stride]
  int stride_ = 0;
  uint64_t version_ = 0;
};

}  // namespace gptoss
