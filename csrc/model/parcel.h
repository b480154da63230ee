// Arrays on their way to a device together: written into pinned memory of the host, brought over by one copy that
// takes its turn among the ops. Where an array lies depends on the lengths of those before it only, so a step of
// the same shape finds its arguments at the same addresses, and what a device has recorded can be replayed.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "model/device.h"

namespace gptoss {

// A block of host memory that a device copies from and to. The device outlives it.
class PinnedBlock {
 public:
  explicit PinnedBlock(Device& device) : device_(device) {}
  ~PinnedBlock();
  PinnedBlock(const PinnedBlock&) = delete;
  PinnedBlock& operator=(const PinnedBlock&) = delete;

  // At least `bytes`; what was there is lost when it grows.
  unsigned char* reserve(size_t bytes);

 private:
  Device& device_;
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
};

class Parcel {
 public:
  explicit Parcel(Device& device) : device_(device), host_{PinnedBlock(device), PinnedBlock(device)} {}

  // Adds an array, which must live until `send`; returns its place. Null where there is no array.
  template <typename T>
  size_t add(const T* host, size_t count) {
    const size_t place = bytes_;
    if (host != nullptr) items_.push_back({host, count * sizeof(T), place});
    bytes_ = (bytes_ + count * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return host == nullptr ? kNothing : place;
  }

  void send();  // and begins the next parcel

  // The device's copy of the array at a place of the parcel sent last.
  template <typename T>
  const T* at(size_t place) const {
    return place == kNothing ? nullptr : reinterpret_cast<const T*>(block_ + place);
  }

 private:
  static constexpr size_t kAlign = 256, kNothing = SIZE_MAX;
  struct Item {
    const void* host;
    size_t bytes;
    size_t place;
  };

  Device& device_;
  std::vector<Item> items_;
  size_t bytes_ = 0;
  // Two, in turn: while the device reads one, the host writes the other.
  std::array<PinnedBlock, 2> host_;
  std::array<uint64_t, 2> sent_{};
  size_t turn_ = 0;
  DeviceBuffer<unsigned char> device_block_;
  const unsigned char* block_ = nullptr;
};

}  // namespace gptoss
