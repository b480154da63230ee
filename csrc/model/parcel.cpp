#include "model/parcel.h"

#include <algorithm>
#include <cstring>

namespace gptoss {

PinnedBlock::~PinnedBlock() {
  if (data_) device_.release_pinned(data_);
}

unsigned char* PinnedBlock::reserve(size_t bytes) {
  if (bytes > bytes_) {
    if (data_) device_.release_pinned(data_);
    data_ = nullptr;
    bytes_ = 0;
    const size_t size = std::max(bytes, size_t{4096}) * 2;
    data_ = static_cast<unsigned char*>(device_.allocate_pinned(size));
    bytes_ = size;
  }
  return data_;
}

void Parcel::send() {
  turn_ = 1 - turn_;
  device_.wait_for(sent_[turn_]);
  unsigned char* host = host_[turn_].reserve(bytes_);
  for (const Item& item : items_) std::memcpy(host + item.place, item.host, item.bytes);
  if (device_.is_host()) {
    block_ = host;
  } else {
    if (device_block_.bytes() < bytes_) {
      device_.wait_for(device_.mark());
      device_block_ = {};
      device_block_ = {device_, 2 * std::max(bytes_, size_t{4096})};
    }
    device_.enqueue_copy_in(device_block_.data(), host, bytes_);
    sent_[turn_] = device_.mark();
    block_ = device_block_.data();
  }
  items_.clear();
  bytes_ = 0;
}

}  // namespace gptoss
