// Worker threads that sleep when idle. Our own instead of OpenMP: no runtime library in the wheel, no
// threads that spin between requests, and the same scheduling on every compiler.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace gptoss::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the calling thread is one of them; throws Error when the host has no more
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(index, worker) once for every index in [0, count), worker in [0, threads()), and returns
  // when all are done. Each worker walks up its own run of neighbours, so that weights which lie side by side reach its
  // core as one long stream; one that is done takes over from the ends of others' runs. When a task throws, tasks not
  // begun are dropped and the first exception comes out here. Tasks must not call parallel_for. One caller at a time.
  template <typename Task>
  void parallel_for(int count, Task&& task) {
    if (count <= 1 || workers_.empty()) {
      for (int i = 0; i < count; ++i) task(i, 0);
      return;
    }
    run(
        count,
        [](void* context, int index, int worker) {
          (*static_cast<std::remove_reference_t<Task>*>(context))(index, worker);
        },
        &task);
  }

 private:
  using Call = void (*)(void* context, int index, int worker);

  // The tasks of a run not begun yet: the first in the upper half, the one behind the last in the lower, so that
  // whoever takes one changes both at once.
  struct alignas(64) Run {
    std::atomic<uint64_t> tasks{0};
  };
  static constexpr uint64_t kFirst = uint64_t{1} << 32;

  void run(int count, Call call, void* context);
  void work(int worker);
  int next_task(int worker);  // -1: none is left
  void take_tasks(int worker) noexcept;
  void stop();

  // The job in progress; written by `run` before `generation_` announces it.
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::vector<Run> runs_;       // one a thread
  std::atomic<int> busy_{0};    // workers that have not finished this job
  std::exception_ptr failure_;  // of this job; guarded by `mutex_` until `busy_` is 0

  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace gptoss::cpu
