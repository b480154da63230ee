#include "bindings/watch.h"

#include <pybind11/stl.h>

namespace gptoss::bindings {

template <typename T>
void Watch::add(const char* name, int layer, const T* device, std::vector<py::ssize_t> shape) {
  CHECK(layer >= 0 && layer < model_.config.layers, name, ": layer is ", layer, ", expected 0 to ",
        model_.config.layers - 1);
  py::array_t<T> host(shape);
  copies_.push_back({layer, device, host.mutable_data(), size_t(host.nbytes())});
  results_[py::make_tuple(name, layer)] = host;
}

Watch::Watch(Model& model, int rows, const py::object& wanted) : model_(model) {
  if (wanted.is_none()) return;
  using Layers = std::vector<int>;
  const auto [residual, router, queries] = wanted.cast<std::tuple<Layers, Layers, Layers>>();
  const Config& config = model.config;
  Activations& act = model.activations;
  for (int layer : residual) add("residual", layer, act.residual.data(), {rows, config.hidden});
  for (int layer : router) {
    add("expert", layer, act.expert.data(), {rows, config.chosen});
    add("routing_weight", layer, act.routing_weight.data(), {rows, config.chosen});
  }
  for (int layer : queries) add("queries", layer, act.queries.data(), {rows, config.heads, kHeadDim});
}

void Watch::layer_done(int layer) {
  for (const Copy& copy : copies_)
    if (copy.layer == layer) model_.backend->backend->copy_out(copy.host, copy.device, copy.bytes);
}

}  // namespace gptoss::bindings
