// Points in a stream's work that the host can wait for: a ring of events. The simulated GPU never runs ahead.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/launch.h"

namespace gptoss::GPTOSS_GPU {

#ifdef GPTOSS_SIMT

class Marks {
 public:
  uint64_t mark(Stream) { return ++last_; }
  void wait_for(uint64_t) {}

 private:
  uint64_t last_ = 0;
};

#else

class Marks {
 public:
  Marks() {
    for (cudaEvent_t& event : events_)
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "creating an event");
  }
  ~Marks() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;

  uint64_t mark(Stream stream) {
    check(cudaEventRecord(events_[++last_ % kRing], stream), "marking work");
    return last_;
  }
  // A mark older than the ring is awaited through the younger one that took its event.
  void wait_for(uint64_t mark) {
    if (mark > 0) check(cudaEventSynchronize(events_[mark % kRing]), "waiting for the device");
  }

 private:
  static constexpr uint64_t kRing = 64;
  std::array<cudaEvent_t, kRing> events_{};
  uint64_t last_ = 0;
};

#endif

}  // namespace gptoss::GPTOSS_GPU
