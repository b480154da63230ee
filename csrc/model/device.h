// Memory of a device, and how it is owned. The CPU's is the host's, where nothing needs to be copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.h"

namespace gptoss {

// Bytes of a device's own memory.
struct DeviceMemory {
  size_t total;
  size_t free;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual void* allocate(size_t bytes) = 0;  // throws Error naming the bytes
  virtual void release(void* memory) = 0;
  // Copies between the device and the host; complete on return.
  virtual void copy_in(void* device, const void* host, size_t bytes) = 0;
  virtual void copy_out(void* host, const void* device, size_t bytes) = 0;
  virtual bool is_host() const = 0;
  virtual std::optional<DeviceMemory> memory() { return std::nullopt; }  // none where it is the host's
  virtual size_t allocated() const { return 0; }                         // bytes taken, where somebody counts them

  // Work in order: copies from and to memory of `allocate_pinned` take their turn among the ops, and the host goes
  // on. `mark` stands for all work so far, `wait_for` returns when that is done.
  virtual void* allocate_pinned(size_t bytes) { return allocate(bytes); }
  virtual void release_pinned(void* memory) { release(memory); }
  virtual void enqueue_copy_in(void* device, const void* pinned, size_t bytes) { copy_in(device, pinned, bytes); }
  virtual void enqueue_copy_out(void* pinned, const void* device, size_t bytes) { copy_out(pinned, device, bytes); }
  virtual uint64_t mark() { return 0; }
  virtual void wait_for(uint64_t) {}
};

// Uninitialised memory of a device. Movable, never copied; the device outlives it.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device& device, size_t count) : device_(&device), count_(count) {
    CHECK(count <= std::numeric_limits<size_t>::max() / sizeof(T), "a buffer of ", count, " elements of ", sizeof(T),
          " bytes does not fit the address space");
    data_ = static_cast<T*>(device.allocate(count * sizeof(T)));
  }
  ~DeviceBuffer() {
    if (data_) device_->release(data_);
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }

 private:
  Device* device_ = nullptr;
  T* data_ = nullptr;
  size_t count_ = 0;
};

using DeviceStorage = std::vector<DeviceBuffer<unsigned char>>;

// A device's copy of host memory, kept by `storage`; the memory itself where the device is the host.
template <typename T>
const T* upload(Device& device, const T* host, size_t count, DeviceStorage& storage) {
  if (device.is_host() || host == nullptr) return host;
  auto& copy = storage.emplace_back(device, count * sizeof(T));
  device.copy_in(copy.data(), host, copy.bytes());
  return reinterpret_cast<const T*>(copy.data());
}

// Host arrays as arguments of one call: copied to the device, and back by `finish`. `copies`: also where the device is
// the host, for arguments that outlive the call.
class Staging {
 public:
  explicit Staging(Device& device, bool copies = false) : device_(device), in_place_(device.is_host() && !copies) {}

  template <typename T>
  const T* in(const T* host, size_t count) {
    if (in_place_ || host == nullptr) return host;
    auto& copy = storage_.emplace_back(device_, count * sizeof(T));
    device_.copy_in(copy.data(), host, copy.bytes());
    return reinterpret_cast<const T*>(copy.data());
  }

  // A copy of a table that the caller does not keep.
  template <typename T>
  const T* keep(const std::vector<T>& table) {
    auto& copy = storage_.emplace_back(device_, table.size() * sizeof(T));
    device_.copy_in(copy.data(), table.data(), copy.bytes());
    return reinterpret_cast<const T*>(copy.data());
  }

  // Written by the call; `finish` brings it to the host.
  template <typename T>
  T* out(T* host, size_t count) {
    if (in_place_ || host == nullptr) return host;
    auto& copy = storage_.emplace_back(device_, count * sizeof(T));
    results_.push_back({host, copy.data(), copy.bytes()});
    return reinterpret_cast<T*>(copy.data());
  }

  // Read and written.
  template <typename T>
  T* in_out(T* host, size_t count) {
    T* copy = out(host, count);
    if (copy != host) device_.copy_in(copy, host, count * sizeof(T));
    return copy;
  }

  void finish() {
    for (const Result& r : results_) device_.copy_out(r.host, r.device, r.bytes);
  }

 private:
  struct Result {
    void* host;
    const void* device;
    size_t bytes;
  };
  Device& device_;
  const bool in_place_;
  DeviceStorage storage_;
  std::vector<Result> results_;
};

}  // namespace gptoss
