#include "cuda/backend.h"

#include "cuda/make_backend.h"

#include <cstdlib>
#include <cstring>

namespace gptoss::GPTOSS_GPU {

#ifdef GPTOSS_SIMT

void set_seed(uint64_t seed) { ::simt::set_seed(seed); }

GpuBackend::GpuBackend() = default;
GpuBackend::~GpuBackend() = default;

void* GpuBackend::allocate(size_t bytes) {
  void* memory = nullptr;
  CHECK(posix_memalign(&memory, 1024, bytes == 0 ? 1 : bytes) == 0, "out of memory: ", bytes, " bytes were asked for");
  return std::memset(memory, 0xff, bytes);  // poison: NaN
}
void GpuBackend::release(void* memory) { std::free(memory); }
void GpuBackend::copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
void GpuBackend::copy_out(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }
void GpuBackend::wait() {}

void* Workspace::reserve_bytes(size_t bytes, Stream) {
  if (bytes <= bytes_) return memory_;
  std::free(memory_);
  memory_ = std::malloc(bytes);
  CHECK(memory_ != nullptr, "out of memory: ", bytes, " bytes were asked for");
  std::memset(memory_, zeroed_ ? 0 : 0xff, bytes);
  bytes_ = bytes;
  return memory_;
}
Workspace::~Workspace() { std::free(memory_); }

#else

GpuBackend::GpuBackend() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  CHECK(status == cudaSuccess && count > 0,
        "no usable CUDA device: ", status == cudaSuccess ? "the driver sees none" : cudaGetErrorString(status),
        "; use device='cpu'");
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
}
GpuBackend::~GpuBackend() { cudaStreamDestroy(stream_); }

void* GpuBackend::allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes == 0 ? 1 : bytes), "allocating device memory");
  return memory;
}
void GpuBackend::release(void* memory) { cudaFree(memory); }
void GpuBackend::copy_in(void* device, const void* host, size_t bytes) {
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "copying to the device");
  wait();
}
void GpuBackend::copy_out(void* host, const void* device, size_t bytes) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copying to the host");
  wait();
}
void GpuBackend::wait() { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

void* Workspace::reserve_bytes(size_t bytes, Stream stream) {
  if (bytes <= bytes_) return memory_;
  check(cudaStreamSynchronize(stream), "waiting for the device");
  cudaFree(memory_);
  memory_ = nullptr;
  bytes_ = 0;
  check(cudaMalloc(&memory_, bytes), "allocating a workspace");
  if (zeroed_) check(cudaMemsetAsync(memory_, 0, bytes, stream), "clearing a workspace");
  bytes_ = bytes;
  return memory_;
}
Workspace::~Workspace() { cudaFree(memory_); }

#endif

std::unique_ptr<Backend> make_backend() { return std::make_unique<GpuBackend>(); }

}  // namespace gptoss::GPTOSS_GPU
