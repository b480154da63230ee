// What Python holds: a backend, a model with its activations, a KV cache.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "bindings/arrays.h"
#include "cpu/backend.h"

namespace gptoss::bindings {

// A device and the lock that keeps its ops in order when several Python threads call.
struct BackendHandle {
  BackendHandle(const std::string& device, int threads, const std::string& isa) {
    CHECK(device == "cpu", "device is '", device, "', this build has: cpu");
    backend = std::make_unique<cpu::CpuBackend>(threads, isa);
  }

  // Runs `work` without the GIL.
  template <typename Work>
  void run(Work&& work) {
    py::gil_scoped_release release;
    std::lock_guard lock(mutex);
    work();
  }

  std::unique_ptr<cpu::CpuBackend> backend;
  std::mutex mutex;
};

}  // namespace gptoss::bindings
