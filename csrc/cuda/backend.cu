#include "cuda/backend.h"

#include "cuda/make_backend.h"
#include "cuda/wgmma.cuh"

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace gptoss::GPTOSS_GPU {

#ifdef GPTOSS_SIMT

void set_seed(uint64_t seed) { ::simt::set_seed(seed); }
void set_architecture(int architecture) {
  CHECK(architecture == 80 || architecture == 90, "architecture is ", architecture, ", expected 80 or 90");
  ::simt::architecture = architecture;
}

GpuBackend::GpuBackend() : stream_(nullptr) {}
bool GpuBackend::uses_wgmma() const { return ptx::has_wgmma(); }
GpuBackend::~GpuBackend() = default;

void* GpuBackend::allocate(size_t bytes) {
  void* memory = nullptr;
  CHECK(posix_memalign(&memory, 1024, bytes == 0 ? 1 : bytes) == 0, "out of memory: ", bytes, " bytes were asked for");
  allocated_ += sizes_[memory] = bytes;
  return std::memset(memory, 0xff, bytes);  // poison: NaN
}
void GpuBackend::release(void* memory) {
  allocated_ -= sizes_.extract(memory).mapped();
  std::free(memory);
}
void GpuBackend::copy_in(void* device, const void* host, size_t bytes) { std::memcpy(device, host, bytes); }
void GpuBackend::copy_out(void* host, const void* device, size_t bytes) { std::memcpy(host, device, bytes); }
std::optional<DeviceMemory> GpuBackend::memory() { return std::nullopt; }
void* GpuBackend::allocate_pinned(size_t bytes) { return std::malloc(bytes == 0 ? 1 : bytes); }
void GpuBackend::release_pinned(void* memory) { std::free(memory); }
void GpuBackend::enqueue_copy_in(void* device, const void* pinned, size_t bytes) { copy_in(device, pinned, bytes); }
void GpuBackend::enqueue_copy_out(void* pinned, const void* device, size_t bytes) { copy_out(pinned, device, bytes); }

void* Workspace::reserve_bytes(size_t bytes, Stream) {
  if (bytes <= bytes_) return memory_;
  ++moves_;
  if (memory_) {  // poisoned and dealt to nobody, so that a later use is seen
    static std::vector<void*> given_back;
    given_back.push_back(std::memset(memory_, 0xff, bytes_));
  }
  memory_ = std::malloc(bytes);
  CHECK(memory_ != nullptr, "out of memory: ", bytes, " bytes were asked for");
  std::memset(memory_, zeroed_ ? 0 : 0xff, bytes);
  bytes_ = bytes;
  return memory_;
}
Workspace::~Workspace() { std::free(memory_); }

#else

// There when the build has code for the GPU at hand, of which it says whether its prompts run on wgmma: code for plain
// sm_90 and PTX have none, whatever the GPU can do.
__global__ void probe_kernel(bool* has_wgmma) {
  ptx::wait_for_previous_kernel();
  *has_wgmma = ptx::has_wgmma();
}

namespace {

void* allocate_on_device(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    CHECK(false, "out of GPU memory: ", bytes, " bytes were asked for, ", free, " of ", total,
          " are free; use a shorter context, fewer sequences, a smaller gpu_memory_utilization, or stop what else uses "
          "the GPU");
  }
  check(status, "allocating ", bytes, " bytes on the GPU");
  return memory;
}

Stream open_stream() {
  const std::string problem = cuda::problem();
  CHECK(problem.empty(), problem);
  Stream stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  return stream;
}

}  // namespace

// What keeps this build from using the first GPU, and what to do about it; empty when nothing does.
std::string problem() {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  if (driver == 0) return "there is no NVIDIA driver on this machine; install one, or use device='cpu'";
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver)
    return "the NVIDIA driver supports CUDA " + version(driver) + ", this build needs " + version(runtime) +
           "; update the driver, or use device='cpu'";
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0)) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    return visible ? std::string("CUDA_VISIBLE_DEVICES is '") + visible + "', which leaves no GPU; change it, or use " +
                         "device='cpu'"
                   : "the NVIDIA driver sees no GPU; check nvidia-smi, or use device='cpu'";
  }
  if (status != cudaSuccess)
    return std::string("CUDA cannot be started: ") + cudaGetErrorString(status) + "; check nvidia-smi, or use " +
           "device='cpu'";
  cudaDeviceProp gpu{};
  check(cudaGetDeviceProperties(&gpu, 0), "asking for the device's properties");
  cudaFuncAttributes found{};
  if (cudaFuncGetAttributes(&found, probe_kernel) != cudaSuccess) {
    cudaGetLastError();
    return std::string(gpu.name) + " has compute capability " + std::to_string(gpu.major) + "." +
           std::to_string(gpu.minor) + ", this build has kernels for 8.0 and later; use device='cpu'";
  }
  return "";
}

GpuBackend::GpuBackend() : stream_(open_stream()) {
  DeviceBuffer<bool> answer(*this, 1);
  launch({"asking the kernels what they are", 1, 1, 0, stream_}, probe_kernel, answer.data());
  copy_out(&has_wgmma_, answer.data(), sizeof has_wgmma_);
}
bool GpuBackend::uses_wgmma() const { return has_wgmma_; }
GpuBackend::~GpuBackend() {
  cudaStreamSynchronize(stream_);
  graphs_.clear();
  cudaStreamDestroy(stream_);
}

void* GpuBackend::allocate(size_t bytes) {
  void* memory = allocate_on_device(bytes);
  allocated_ += sizes_[memory] = bytes;
  return memory;
}
void GpuBackend::release(void* memory) {
  if (const auto size = sizes_.extract(memory)) allocated_ -= size.mapped();
  cudaFree(memory);
}
void GpuBackend::copy_in(void* device, const void* host, size_t bytes) {
  uploader_.copy(device, host, bytes);
  wait_for(mark());
}
void GpuBackend::copy_out(void* host, const void* device, size_t bytes) {
  enqueue_copy_out(host, device, bytes);
  wait_for(mark());
}
std::optional<DeviceMemory> GpuBackend::memory() {
  DeviceMemory found{};
  check(cudaMemGetInfo(&found.free, &found.total), "asking how much memory the device has");
  return found;
}
void* GpuBackend::allocate_pinned(size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes == 0 ? 1 : bytes), "allocating ", bytes, " bytes of pinned host memory");
  return memory;
}
void GpuBackend::release_pinned(void* memory) { cudaFreeHost(memory); }
void GpuBackend::enqueue_copy_in(void* device, const void* pinned, size_t bytes) {
  check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream_), "copying to the device");
}
void GpuBackend::enqueue_copy_out(void* pinned, const void* device, size_t bytes) {
  check(cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, stream_), "copying to the host");
}

void* Workspace::reserve_bytes(size_t bytes, Stream stream) {
  if (bytes <= bytes_) return memory_;
  ++moves_;
  check(cudaStreamSynchronize(stream), "waiting for the device");
  cudaFree(memory_);
  memory_ = nullptr;
  bytes_ = 0;
  memory_ = allocate_on_device(bytes);
  if (zeroed_) check(cudaMemsetAsync(memory_, 0, bytes, stream), "clearing a workspace");
  bytes_ = bytes;
  return memory_;
}
Workspace::~Workspace() { cudaFree(memory_); }

#endif

void GpuBackend::reserve(const Config& config, const StepLimits& limits) {
  const workspace::Sizes sizes = workspace::sizes(config, limits);
  partial_.reserve<void>(sizes.partial, stream_);
  counters_.reserve<void>(sizes.counters, stream_);
}

uint64_t GpuBackend::mark() { return marks_.mark(stream_); }
void GpuBackend::wait_for(uint64_t mark) { marks_.wait_for(mark); }

void GpuBackend::repeat(const RepeatKey& key, const std::function<void()>& work) {
  // Records hold addresses of workspaces, which move when they grow: in work that ran here for the first time, or in
  // ops that were called one by one since.
  const uint64_t moves = partial_.moves() + counters_.moves();
  if (moves != recorded_at_) graphs_.clear();
  recorded_at_ = moves;
  graphs_.run(key, stream_, work);
}

std::unique_ptr<Backend> make_backend() { return std::make_unique<GpuBackend>(); }

}  // namespace gptoss::GPTOSS_GPU
