#include "model/upload.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

namespace gptoss {
namespace {

constexpr size_t kBlockBytes = size_t{16} << 20;
// One thread copies about 10 GB/s, a bus takes 25 to 60.
constexpr size_t kThreads = 6, kBytesOfAThread = size_t{2} << 20;

void copy_in_parallel(unsigned char* to, const unsigned char* from, size_t bytes) {
  const size_t helpers = std::min<size_t>({kThreads - 1, bytes / kBytesOfAThread, std::thread::hardware_concurrency()});
  const size_t part = (bytes / (helpers + 1) + 4095) / 4096 * 4096;
  std::vector<std::thread> threads;
  for (size_t i = 1; i <= helpers; ++i) {
    const size_t first = std::min(bytes, i * part), last = std::min(bytes, first + part);
    threads.emplace_back([=] { std::memcpy(to + first, from + first, last - first); });
  }
  std::memcpy(to, from, std::min(bytes, part));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void Uploader::copy(void* device, const void* host, size_t bytes) {
  auto* to = static_cast<unsigned char*>(device);
  const auto* from = static_cast<const unsigned char*>(host);
  for (size_t done = 0; done < bytes; done += kBlockBytes) {
    const size_t size = std::min(kBlockBytes, bytes - done);
    turn_ = 1 - turn_;
    device_.wait_for(copied_[turn_]);
    unsigned char* block = blocks_[turn_].reserve(size);
    copy_in_parallel(block, from + done, size);
    device_.enqueue_copy_in(to + done, block, size);
    copied_[turn_] = device_.mark();
  }
}

}  // namespace gptoss
