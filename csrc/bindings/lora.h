// Adapters from NumPy arrays: as an argument of one op, or loaded to stay.
#pragma once

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/handles.h"
#include "model/adapter.h"

namespace gptoss::bindings {

// What an op adds for its rows' adapters, from None or (slot int32 [rows], product float32 [products, stride], of each
// slot float32 b [rank, out] or [experts, rank, out], or None).
class LoraArgument {
 public:
  // experts: 0 where the matrix is one of a layer's own
  LoraArgument(const std::string& name, const py::object& given, int rows, int products, int experts, int out);
  Lora stage(Staging&) const;

 private:
  std::vector<int32_t> slots_;
  const float* product_ = nullptr;
  int products_ = 0, stride_ = 0;
  std::vector<std::pair<const float*, size_t>> b_;  // and how many numbers
  std::vector<int> rank_;
};

// An adapter on a device.
struct LoadedAdapter {
  // matrices: (name, layer, float32 a [rank, in] or [experts, rank, in], b [rank, out] or [experts, rank, out], scaled)
  using Matrix = std::tuple<std::string, int, py::object, py::object>;
  LoadedAdapter(std::shared_ptr<BackendHandle> device, const Config& config, const std::vector<Matrix>& matrices);
  ~LoadedAdapter();

  std::shared_ptr<BackendHandle> backend;
  Adapter adapter;
};

}  // namespace gptoss::bindings
