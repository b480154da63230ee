// What Python holds: a backend, a model with its activations, a KV cache.
#pragma once

#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "model/backend.h"
#include "model/sampler.h"

namespace gptoss::bindings {

// Devices of this build, `cpu` first.
std::vector<std::string> devices();

// Why a device cannot be used, and what to do about it; empty when it can.
std::string device_problem(const std::string& device);

struct KeptOps;

// A device and the lock that keeps its ops in order when several Python threads call.
struct BackendHandle {
  // The rest is the CPU's: 0 threads take every core, isa "" the best of the host; see CpuBackend.
  BackendHandle(const std::string& device, int threads, const std::string& isa, const std::string& dense_dtype);

  // A forked child has no worker threads: joining them, or destroying what they sleep on, would never end.
  ~BackendHandle() {
    sampler.reset();
    if (lost_its_threads()) static_cast<void>(backend.release());
  }

  bool lost_its_threads() const { return threads > 1 && getpid() != process; }

  // Runs `work` without the GIL.
  template <typename Work>
  void run(Work&& work) {
    CHECK(!lost_its_threads(), "this backend was made before the process forked, its ", threads,
          " threads stayed with the parent; make it in the child, or start processes by 'spawn'");
    py::gil_scoped_release release;
    std::lock_guard lock(mutex);
    work();
  }

  const std::string device;
  int threads = 1;
  std::string isa;
  const std::string dense_dtype;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Sampler> sampler;
  std::mutex mutex;
  KeptOps* recording = nullptr;  // where ops go instead of running; changed only with the GIL
  const pid_t process = getpid();
};

}  // namespace gptoss::bindings
