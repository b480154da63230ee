// Launching kernels: on a stream by cudaLaunchKernelEx, or on the simulated GPU.
#pragma once

#include <functional>
#include <vector>

#include "core/error.h"
#include "cuda/device.h"

namespace gptoss::GPTOSS_GPU {

#ifdef GPTOSS_SIMT
// Where launches go while it is set, instead of running: a graph being captured.
using Recording = std::vector<std::function<void()>>;
using Stream = Recording*;
#else
using Stream = cudaStream_t;

// After these, CUDA refuses every later call of the process.
inline bool is_sticky(cudaError_t status) {
  return status == cudaErrorIllegalAddress || status == cudaErrorLaunchFailure ||
         status == cudaErrorMisalignedAddress || status == cudaErrorIllegalInstruction ||
         status == cudaErrorInvalidAddressSpace || status == cudaErrorInvalidPc ||
         status == cudaErrorHardwareStackError || status == cudaErrorAssert || status == cudaErrorLaunchTimeout ||
         status == cudaErrorECCUncorrectable;
}

// `what`: the parts of what was being done, for the message.
template <typename... What>
void check(cudaError_t status, const What&... what) {
  CHECK(status == cudaSuccess, what..., ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")",
        is_sticky(status) ? "; the GPU is lost to this process, start it again" : "");
}
#endif

struct Launch {
  const char* op;  // for messages
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
  Stream stream;
};

// Kernels overlap: one may start while its predecessor ends, and calls ptx::wait_for_previous_kernel() before
// it touches what that wrote (CUDA C++ programming guide, "Programmatic Dependent Launch").
template <typename... Parameters, typename... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
#ifdef GPTOSS_SIMT
  const auto run = [=] { ::simt::run(l.grid, l.block, l.shared_bytes, [&] { kernel(arguments...); }, l.op); };
  if (l.stream) return l.stream->push_back(run);
  run();
#else
  if (l.shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(l.shared_bytes)),
          l.op, ": asking for ", l.shared_bytes, " bytes of shared memory");
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid;
  config.blockDim = l.block;
  config.dynamicSmemBytes = l.shared_bytes;
  config.stream = l.stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), l.op, " in a grid of ", l.grid.x,
        " x ", l.grid.y, " x ", l.grid.z, " blocks of ", l.block.x, " threads");
#endif
}

}  // namespace gptoss::GPTOSS_GPU
