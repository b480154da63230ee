// The parts of the extension module.
#pragma once

#include <optional>

#include "bindings/handles.h"

namespace gptoss::bindings {

using BackendClass = py::class_<BackendHandle, std::shared_ptr<BackendHandle>>;

void bind_ops(BackendClass&);                   // the dense ops
void bind_expert_ops(BackendClass&);            // moe_gate, moe_up, moe_down
void bind_sample(py::module_&, BackendClass&);  // the ninth, and the layout of its rows
void bind_model(py::module_&);                  // Model, KvCache, forward
void bind_recording(py::module_&);              // ops kept on the device and timed

// How many of `rows` rows are decoded (see Batch): all where nothing is said. Only a GPU looks at it.
int checked_decode_rows(std::optional<int> decode_rows, int rows);

// A dense layer of `in` columns from its arrays; `bias` may be null.
Linear linear(const std::string& name, const py::object& weight, const py::object* bias, int in);

}  // namespace gptoss::bindings
