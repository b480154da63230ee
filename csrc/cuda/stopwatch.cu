// Seconds by the GPU's clock, between two events of the stream.
#include "cuda/backend.h"

namespace gptoss::GPTOSS_GPU {

#ifdef GPTOSS_SIMT

double GpuBackend::seconds(const std::function<void()>& work) { return Backend::seconds(work); }

#else

namespace {

class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "creating an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

double GpuBackend::seconds(const std::function<void()>& work) {
  const Event begin, end;
  check(cudaStreamSynchronize(stream_), "waiting for the device");
  check(cudaEventRecord(begin, stream_), "starting the clock");
  work();
  check(cudaEventRecord(end, stream_), "stopping the clock");
  check(cudaEventSynchronize(end), "waiting for what is timed");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "reading the clock");
  return milliseconds * 1e-3;
}

#endif

}  // namespace gptoss::GPTOSS_GPU
