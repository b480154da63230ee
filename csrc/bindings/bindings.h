// The parts of the extension module.
#pragma once

#include <optional>

#include "bindings/handles.h"

namespace gptoss::bindings {

struct Model;
using BackendClass = py::class_<BackendHandle, std::shared_ptr<BackendHandle>>;
using ModelClass = py::class_<Model, std::shared_ptr<Model>>;

void bind_ops(BackendClass&);                   // the dense ops
void bind_expert_ops(BackendClass&);            // moe_gate, moe_up, moe_down
void bind_lora(py::module_&, BackendClass&);    // adapters, and the op that multiplies by them
void bind_sample(py::module_&, BackendClass&);  // the ninth, and the layout of its rows
void bind_model(py::module_&);                  // Model, KvCache, forward
void bind_numbers(py::module_&, ModelClass&);   // rows of its weights, and their formats
void bind_recording(py::module_&);              // ops kept on the device and timed
void bind_limits(BackendClass&);                // what the host can do at most
void bind_amx(py::module_&);                    // emulated tiles, in builds for tests

// How many of `rows` rows are decoded (see Batch): all where nothing is said. Only a GPU looks at it.
int checked_decode_rows(std::optional<int> decode_rows, int rows);

// Float rows, bf16 rows, or the pair of 8-bit rows and scales. takes_float: also where the experts' are bf16.
ExpertInput expert_rows(const BackendHandle& device, const char* name, const py::object& rows_f32_b16,
                        const py::object& q8, const py::object& scale, int rows, int width, bool takes_float = false);

// A dense layer of `in` columns from its arrays; `bias` may be null.
Linear linear(const std::string& name, const py::object& weight, const py::object* bias, int in);

}  // namespace gptoss::bindings
