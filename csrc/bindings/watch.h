// What Python asks to see of a step: copies of activations, layer by layer.
#pragma once

#include <vector>

#include "bindings/model.h"

namespace gptoss::bindings {

// Layers of which to keep the residual stream after them, the router's choice, the queries. Made and read with the GIL.
class Watch final : public Watcher {
 public:
  Watch(Model& model, int rows, const py::object& wanted);
  void layer_done(int layer) override;
  bool watches() const { return !copies_.empty(); }
  py::dict results() const { return results_; }

 private:
  struct Copy {
    int layer;
    const void* device;
    void* host;
    size_t bytes;
  };
  template <typename T>
  void add(const char* name, int layer, const T* device, std::vector<py::ssize_t> shape);

  Model& model_;
  std::vector<Copy> copies_;
  py::dict results_;
};

}  // namespace gptoss::bindings
