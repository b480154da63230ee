#include "bindings/handles.h"

#include <algorithm>
#include <optional>
#include <sstream>

#include "cpu/backend.h"
#include "cuda/make_backend.h"

namespace gptoss::bindings {

std::vector<std::string> devices() {
  return {
      "cpu",
#ifdef GPTOSS_WITH_CUDA
      "cuda",
#endif
#ifdef GPTOSS_WITH_SIMT
      "simt",
#endif
  };
}

std::string device_problem(const std::string& device) {
  const std::vector<std::string> known = devices();
  if (std::find(known.begin(), known.end(), device) == known.end()) {
    std::ostringstream text;
    text << "this build has no '" << device << "'; "
         << (device == "cuda" ? "install one with CUDA, or use device='cpu'" : "use device='cpu'");
    return text.str();
  }
#ifdef GPTOSS_WITH_CUDA
  if (device == "cuda") return cuda::problem();
#endif
  return "";
}

namespace {

std::optional<cpu::DenseForm> dense_form(const std::string& name) {
  if (name == "bf16") return cpu::DenseForm::bf16;
  if (name == "packed") return cpu::DenseForm::packed;
  if (name == "q8") return cpu::DenseForm::q8;
  return std::nullopt;
}

}  // namespace

BackendHandle::BackendHandle(const std::string& name, int asked_threads, const std::string& asked_isa,
                             const std::string& asked_dense_dtype)
    : device(name), dense_dtype(asked_dense_dtype) {
  const std::optional<cpu::DenseForm> form = dense_form(dense_dtype);
  CHECK(form, "dense_dtype is '", dense_dtype, "', expected 'bf16', 'packed' or 'q8'");
  CHECK(device == "cpu" || dense_dtype == "bf16", "dense_dtype is '", dense_dtype, "', which ", device,
        " does not offer; use 'bf16', or device='cpu'");
  if (device == "cpu") {
    auto cpu = std::make_unique<cpu::CpuBackend>(asked_threads, asked_isa, *form);
    threads = cpu->threads();
    isa = cpu->isa();
    backend = std::move(cpu);
  }
#ifdef GPTOSS_WITH_CUDA
  if (device == "cuda") backend = cuda::make_backend();
#endif
#ifdef GPTOSS_WITH_SIMT
  if (device == "simt") backend = simulated::make_backend();
#endif
  std::string known;
  for (const std::string& each : devices()) known += (known.empty() ? "" : ", ") + each;
  CHECK(backend != nullptr, "device is '", device, "', this build has: ", known);
  sampler = std::make_unique<Sampler>(*backend);
}

}  // namespace gptoss::bindings
