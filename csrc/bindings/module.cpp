// gptoss_native._native: pybind11 only, no logic.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "core/error.h"
#include "cpu/amx.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/usable_cores.h"
#include "cuda/make_backend.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native core of gptoss_native: the nine ops, the KV cache and the forward pass.";
  m.attr("__version__") = GPTOSS_VERSION;

  // The package's own exception types, so that Python sees one class whoever found the mistake.
  const auto type_of = [](const char* name) {
    return py::module_::import("gptoss_native.errors").attr(name).cast<py::object>().release().ptr();
  };
  static PyObject* error_type = type_of("GptossError");
  static PyObject* checkpoint_error_type = type_of("CheckpointError");
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const gptoss::CheckpointError& error) {
      PyErr_SetString(checkpoint_error_type, error.what());
    } catch (const gptoss::Error& error) {
      PyErr_SetString(error_type, error.what());
    }
  });

  m.def(
      "cpu_isas",
      [] {
        std::vector<std::string> names;
        for (const auto* kernels : gptoss::cpu::available_kernels()) names.push_back(kernels->isa);
        return names;
      },
      "Instruction sets the CPU backend can use on this host, plainest first.");
  m.def(
      "emulated_isas",
      [] {
        std::vector<std::string> names;
        for (const auto* kernels : gptoss::cpu::emulated_kernels()) names.push_back(kernels->isa);
        return names;
      },
      "More of them in builds for tests, which this host lacks: for tests, and slow.");

  m.def("usable_cores", &gptoss::cpu::usable_cores, py::arg("root") = "",
        "Cores that threads=0 uses: the affinity mask's, at most the CPU quota of the control groups. `root` is where "
        "proc and sys are.");

  using namespace gptoss::bindings;
  BackendClass backend(m, "Backend", "A device and the nine ops on it. Arguments are C-contiguous NumPy arrays.");
  backend
      .def(py::init<const std::string&, int, const std::string&, const std::string&>(), py::arg("device") = "cpu",
           py::arg("threads") = 0, py::arg("isa") = "", py::arg("dense_dtype") = "bf16")
      .def_readonly("device", &BackendHandle::device)
      .def_readonly("threads", &BackendHandle::threads)
      .def_readonly("isa", &BackendHandle::isa)
      .def_readonly("dense_dtype", &BackendHandle::dense_dtype)
      .def_property_readonly(
          "memory",
          [](const BackendHandle& handle) -> py::object {
            const auto found = handle.backend->memory();
            return found ? py::make_tuple(found->total, found->free) : py::object(py::none());
          },
          "Bytes of the device, total and free; None where its memory is the host's.")
      .def_property_readonly(
          "allocated", [](const BackendHandle& handle) { return handle.backend->allocated(); },
          "Bytes of a GPU's memory that are taken.")
      .def_property_readonly(
          "has_exact", [](const BackendHandle& handle) { return handle.backend->has_exact(); },
          "Whether it offers numerics='exact'.")
      .def_property_readonly(
          "is_host", [](const BackendHandle& device) { return device.backend->is_host(); },
          "Whether its memory is the host's; otherwise it works while the host goes on.")
      .def_property_readonly(
          "rows_settled",
          [](const BackendHandle& handle) {
            const auto* cpu = dynamic_cast<const gptoss::cpu::CpuBackend*>(handle.backend.get());
            return cpu != nullptr ? cpu->rows_settled() : 0;
          },
          "Rows drawn so far by bounds of their logits, as a CPU does.")
      .def_property_readonly("keys_are_transposed",
                             [](const BackendHandle& handle) { return handle.backend->keys_are_transposed(); });
  m.def("devices", &devices, "Devices of this build, cpu first.");
  m.def("device_problem", &device_problem, py::arg("device"),
        "Why a device cannot be used, and what to do about it; empty when it can.");
#ifdef GPTOSS_WITH_SIMT
  m.def("set_schedule", &gptoss::simulated::set_seed, py::arg("seed"),
        "Seed of the orders in which the simulated GPU runs its threads.");
  m.def("set_architecture", &gptoss::simulated::set_architecture, py::arg("architecture"),
        "What the simulated GPU is: 80, or 90 with the instructions of sm_90a.");
#endif
  bind_ops(backend);
  bind_expert_ops(backend);
  bind_lora(m, backend);
  bind_sample(m, backend);
  bind_model(m);
  bind_recording(m);
  bind_limits(backend);
#ifdef GPTOSS_EMULATED_AMX
  bind_amx(m);
#endif
}
