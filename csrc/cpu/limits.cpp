// The host's limits as the backend's own threads meet them.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "cpu/backend.h"

namespace gptoss::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRounds = 1 << 12;   // of a burst of arithmetic: tens of microseconds
constexpr size_t kPart = 2 << 20;  // bytes that a thread reads at a time: a huge page
constexpr int kPartsAtLeast = 4;   // for each thread, so that one which wakes late costs little
constexpr size_t kMostBytes = 1ull << 40;

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Zeros in huge pages where the system has them, as large weights lie.
class HugeBuffer {
 public:
  explicit HugeBuffer(size_t bytes) : size_(bytes + kPart) {
    memory_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory_ != MAP_FAILED, "out of memory: ", bytes, " bytes were asked for; measure with fewer");
    madvise(memory_, size_, MADV_HUGEPAGE);  // advice: without it the pages are small
  }
  ~HugeBuffer() { munmap(memory_, size_); }
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;

  float* data() const {
    const auto at = (reinterpret_cast<uintptr_t>(memory_) + kPart - 1) / kPart * kPart;
    return reinterpret_cast<float*>(at);
  }

 private:
  const size_t size_;
  void* memory_;
};

}  // namespace

std::vector<double> CpuBackend::read_bandwidth(size_t bytes, int tries) {
  CHECK(bytes >= kPart && bytes <= kMostBytes, "nbytes is ", bytes, ", expected ", kPart, " to ", kMostBytes);
  CHECK(tries >= 1, "tries is ", tries, ", expected 1 or more");
  const int parts = static_cast<int>(bytes / kPart);
  constexpr size_t floats = kPart / sizeof(float);
  const HugeBuffer buffer(parts * kPart);
  // Written by the threads that read it: that is what gives a page its place.
  pool_.parallel_for(parts, [&](int i, int) { std::fill_n(buffer.data() + i * floats, floats, 1.0f); });
  std::vector<double> found;
  std::vector<float> sums(threads());  // a read whose result nobody keeps would be left out
  for (int t = 0; t < tries; ++t) {
    const auto begin = Clock::now();
    pool_.parallel_for(
        parts, [&](int i, int worker) { sums[worker] += kernels_.limits.read(buffer.data() + i * floats, floats); });
    found.push_back(static_cast<double>(parts) * kPart / since(begin));
  }
  return found;
}

std::vector<double> CpuBackend::peak(Arithmetic kind, double seconds, int tries) {
  CHECK(seconds > 0 && seconds <= 60, "seconds is ", seconds, ", expected more than 0 and at most 60");
  CHECK(tries >= 1, "tries is ", tries, ", expected 1 or more");
  const auto burst = kind == Arithmetic::f32 ? kernels_.limits.multiply_add : kernels_.limits.dot_bytes;
  burst(kRounds);  // wide units take their time to wake up
  const auto start = Clock::now();
  const double each = burst(kRounds);
  const double bursts = std::min(seconds / std::max(since(start), 1e-7), 1e6);
  const int count = pool_.threads() * std::max(kPartsAtLeast, static_cast<int>(bursts));
  std::vector<double> found;
  for (int t = 0; t < tries; ++t) {
    const auto begin = Clock::now();
    pool_.parallel_for(count, [&](int, int) { burst(kRounds); });
    found.push_back(each * count / since(begin));
  }
  return found;
}

}  // namespace gptoss::cpu
