#include "cpu/thread_pool.h"

#include <chrono>
#include <utility>

#include "core/error.h"

namespace gptoss::cpu {
namespace {

// Ops follow one another within microseconds while a model runs, so a short spin saves a sleep and a wake
// per op; after this long the engine is idle and the thread must cost nothing.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Polls `ready` for kSpin. Yielding now and then lets the awaited thread run when cores are shared.
template <typename Ready>
bool spin_until(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads) : runs_(threads) {
  workers_.reserve(threads - 1);
  try {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
  } catch (const std::exception& error) {
    stop();  // a thread that is never joined would end the process
    CHECK(false, "only ", workers_.size() + 1, " of ", threads, " threads could be started (", error.what(),
          "); ask for fewer threads");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    ++generation_;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int count, Call call, void* context) {
  call_ = call;
  context_ = context;
  const auto border = [&](size_t run) { return count * run / runs_.size(); };
  for (size_t i = 0; i < runs_.size(); ++i)
    runs_[i].tasks.store(kFirst * border(i) + border(i + 1), std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  take_tasks(0);
  while (busy_.load(std::memory_order_acquire) != 0) {
    if (!spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; })) std::this_thread::yield();
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

int ThreadPool::next_task(int worker) {
  for (size_t i = 0; i < runs_.size(); ++i) {
    std::atomic<uint64_t>& tasks = runs_[(worker + i) % runs_.size()].tasks;
    uint64_t left = tasks.load(std::memory_order_relaxed);
    while (left / kFirst < left % kFirst) {
      const uint64_t taken = i == 0 ? left + kFirst : left - 1;
      if (tasks.compare_exchange_weak(left, taken, std::memory_order_relaxed))
        return static_cast<int>(i == 0 ? left / kFirst : taken % kFirst);
    }
  }
  return -1;
}

void ThreadPool::take_tasks(int worker) noexcept {
  try {
    for (int i; (i = next_task(worker)) >= 0;) call_(context_, i, worker);
  } catch (...) {
    std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
    for (Run& run : runs_) run.tasks.store(0, std::memory_order_relaxed);
  }
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  while (true) {
    auto announced = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(announced)) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, announced);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    take_tasks(worker);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace gptoss::cpu
