// Memory of a device, and how it is owned. The CPU's is the host's, where nothing needs to be copied.
#pragma once

#include <algorithm>
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

// Memory of a device that is given back together.
class DeviceStorage {
 public:
  DeviceStorage() = default;
  DeviceStorage(DeviceStorage&& other) noexcept { *this = std::move(other); }
  DeviceStorage& operator=(DeviceStorage&& other) noexcept {
    std::swap(buffers_, other.buffers_);
    std::swap(next_, other.next_);
    std::swap(left_, other.left_);
    std::swap(shared_, other.shared_);
    return *this;
  }

  template <typename T>
  T* take(Device& device, size_t count) {
    return reinterpret_cast<T*>(buffers_.emplace_back(device, bytes_of<T>(count)).data());
  }

  // Likewise, but next to what was last taken so: small arrays share large buffers, and so large pages. A buffer is as
  // large as those before it together, within limits; what nobody takes of it is never touched.
  template <typename T>
  T* take_beside(Device& device, size_t count) {
#ifdef __SANITIZE_ADDRESS__
    return take<T>(device, count);  // which sees who leaves his own
#else
    constexpr size_t kLeast = size_t{4} << 20, kMost = size_t{256} << 20, kLine = 64;
    const size_t lines = (bytes_of<T>(count) + kLine - 1) / kLine * kLine;
    if (lines > left_) {
      const size_t bytes = std::max(lines, std::clamp(shared_, kLeast, kMost));
      next_ = take<unsigned char>(device, bytes);
      left_ = bytes;
      shared_ += bytes;
    }
    left_ -= lines;
    return reinterpret_cast<T*>(std::exchange(next_, next_ + lines));
#endif
  }

 private:
  template <typename T>
  static size_t bytes_of(size_t count) {
    CHECK(count <= std::numeric_limits<size_t>::max() / 2 / sizeof(T), "an array of ", count, " elements of ",
          sizeof(T), " bytes does not fit the address space");
    return count * sizeof(T);
  }

  std::vector<DeviceBuffer<unsigned char>> buffers_;
  unsigned char* next_ = nullptr;
  size_t left_ = 0, shared_ = 0;  // bytes behind next_; of all shared buffers
};

// A device's copy of host memory, kept by `storage`; the memory itself where the device is the host.
template <typename T>
const T* upload(Device& device, const T* host, size_t count, DeviceStorage& storage) {
  if (device.is_host() || host == nullptr) return host;
  T* copy = storage.take<T>(device, count);
  device.copy_in(copy, host, count * sizeof(T));
  return copy;
}

// Host arrays as arguments of one call: copied to the device, and back by `finish`. `copies`: also where the device is
// the host, for arguments that outlive the call.
class Staging {
 public:
  explicit Staging(Device& device, bool copies = false) : device_(device), in_place_(device.is_host() && !copies) {}

  template <typename T>
  const T* in(const T* host, size_t count) {
    if (in_place_ || host == nullptr) return host;
    T* copy = storage_.take<T>(device_, count);
    device_.copy_in(copy, host, count * sizeof(T));
    return copy;
  }

  // A copy of a table that the caller does not keep.
  template <typename T>
  const T* keep(const std::vector<T>& table) {
    T* copy = storage_.take<T>(device_, table.size());
    device_.copy_in(copy, table.data(), table.size() * sizeof(T));
    return copy;
  }

  // Written by the call; `finish` brings it to the host.
  template <typename T>
  T* out(T* host, size_t count) {
    if (in_place_ || host == nullptr) return host;
    T* copy = storage_.take<T>(device_, count);
    results_.push_back({host, copy, count * sizeof(T)});
    return copy;
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
