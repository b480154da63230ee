// The parts of the extension module.
#pragma once

#include "bindings/handles.h"

namespace gptoss::bindings {

using BackendClass = py::class_<BackendHandle, std::shared_ptr<BackendHandle>>;

void bind_ops(BackendClass&);                   // eight of the nine ops
void bind_sample(py::module_&, BackendClass&);  // the ninth, and the layout of its rows
void bind_model(py::module_&);                  // Model, KvCache, forward

}  // namespace gptoss::bindings
