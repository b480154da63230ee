// What the host can do at most, as a CPU backend's threads meet it: what the benches compare with.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "cpu/backend.h"

namespace gptoss::bindings {
namespace {

cpu::CpuBackend& cpu_of(BackendHandle& handle) {
  auto* found = dynamic_cast<cpu::CpuBackend*>(handle.backend.get());
  CHECK(found != nullptr, "device is '", handle.device, "', expected 'cpu': only a CPU's limits are measured so");
  return *found;
}

cpu::Arithmetic arithmetic(const std::string& kind) {
  CHECK(kind == "f32" || kind == "int8", "kind is '", kind, "', expected f32 or int8");
  return kind == "f32" ? cpu::Arithmetic::f32 : cpu::Arithmetic::int8;
}

}  // namespace

void bind_limits(BackendClass& backend) {
  backend
      .def(
          "read_bandwidth",
          [](BackendHandle& handle, size_t nbytes, int tries) {
            std::vector<double> found;
            handle.run([&] { found = cpu_of(handle).read_bandwidth(nbytes, tries); });
            return found;
          },
          py::arg("nbytes") = size_t{256} << 20, py::arg("tries") = 5,
          "Bytes a second that all threads together read from `nbytes` bytes in huge pages, where the system has "
          "them; a number for each try.")
      .def(
          "peak",
          [](BackendHandle& handle, const std::string& kind, double seconds, int tries) {
            const cpu::Arithmetic wanted = arithmetic(kind);
            std::vector<double> found;
            handle.run([&] { found = cpu_of(handle).peak(wanted, seconds, tries); });
            return found;
          },
          py::arg("kind"), py::arg("seconds") = 0.05, py::arg("tries") = 5,
          "Operations a second of all threads together, in registers: kind 'f32' is multiply-adds of floats, 'int8' "
          "dot "
          "products of bytes, as this backend's instruction set has them; a multiply-add counts 2. A number for each "
          "try of about `seconds`.");
}

}  // namespace gptoss::bindings
