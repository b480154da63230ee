// Large arrays on their way to a device, at the speed of the bus: the host fills one pinned block with several threads
// while the device copies from the other.
#pragma once

#include <array>
#include <cstdint>

#include "model/parcel.h"

namespace gptoss {

class Uploader {
 public:
  explicit Uploader(Device& device) : device_(device), blocks_{PinnedBlock(device), PinnedBlock(device)} {}

  // Enqueues the copy; `host` may change on return, the device's memory is there for the ops that follow.
  void copy(void* device, const void* host, size_t bytes);

 private:
  Device& device_;
  std::array<PinnedBlock, 2> blocks_;
  std::array<uint64_t, 2> copied_{};
  size_t turn_ = 0;
};

}  // namespace gptoss
